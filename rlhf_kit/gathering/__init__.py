"""Answers for labelers and for training: of one or several policies, each text once; prompts that are worth labelling;
and the checkpoint of SFT whose answers score best."""

from .checkpoints import Candidate, Comparison, Standing, candidates, choose, compare, judge_checkpoints
from .gather import Gathered, Wish, gather
from .selection import Select, disagreement, uncertainty

__all__ = [
    "Candidate",
    "Comparison",
    "Gathered",
    "Select",
    "Standing",
    "Wish",
    "candidates",
    "choose",
    "compare",
    "disagreement",
    "gather",
    "judge_checkpoints",
    "uncertainty",
]
