"""The page of a run or of several, and every number on it as JSON: drawn from what the others measured."""

from .writing import write_report

__all__ = ["write_report"]
