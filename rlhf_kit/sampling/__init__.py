"""Answers to prompts, and what a reward model makes of them.

`drawing` samples K answers of each prompt of a chunk, `served` has a server do it; `scoring` asks the reward model that
`judges` names, and `writing` makes rows of them. Who answers is said above: `evaluation.policies`, `gathering`.
"""

from .drawing import Answer, Progress, Settings, settings_of
from .judges import Judge, judge_at
from .prompts import read_prompts
from .scoring import Scorer, best_of, distinct, score_answers
from .served import Server, server_at
from .writing import Keep

__all__ = [
    "Answer",
    "Judge",
    "Keep",
    "Progress",
    "Scorer",
    "Server",
    "Settings",
    "best_of",
    "distinct",
    "judge_at",
    "read_prompts",
    "score_answers",
    "server_at",
    "settings_of",
]
