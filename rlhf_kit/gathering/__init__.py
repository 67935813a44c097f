"""Answers for labelers: of several policies, each text once, and of the prompts those that are worth labelling."""

from .gather import Gathered, Wish, gather
from .selection import Select, disagreement, uncertainty

__all__ = ["Gathered", "Select", "Wish", "disagreement", "gather", "uncertainty"]
