"""Answers of a run's policies to a file of prompts, and what a reward model makes of them.

`drawing` samples K answers of each prompt, `scoring` asks the reward model, `writing` makes rows of them, and
`checkpoints` chooses the checkpoint of SFT whose answers score best. `policy` says who answers.
"""

from .checkpoints import Candidate, Comparison, Standing, candidates, choose, compare, judge_checkpoints
from .drawing import Answer, Progress, Settings, sample_answers, settings_of
from .judges import Judge, judge_at
from .policy import BASE, TRAINED, Policy, find_policy, load_policy, read_prompts
from .scoring import Scorer, best_of, distinct, score_answers
from .served import Server, server_at
from .writing import Account, Keep, sample_file

__all__ = [
    "BASE",
    "TRAINED",
    "Account",
    "Answer",
    "Candidate",
    "Comparison",
    "Judge",
    "Keep",
    "Policy",
    "Progress",
    "Scorer",
    "Server",
    "Settings",
    "Standing",
    "best_of",
    "candidates",
    "choose",
    "compare",
    "distinct",
    "find_policy",
    "judge_at",
    "judge_checkpoints",
    "load_policy",
    "read_prompts",
    "sample_answers",
    "sample_file",
    "score_answers",
    "server_at",
    "settings_of",
]
