"""`export --check`: what is wrong with an adapter directory, whoever wrote it."""

from .checking import Check, Finding, check

__all__ = ["Check", "Finding", "check"]
