"""Which answers a judge that compares is shown, and what its answers come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rlhf_kit.evaluation.judges.base import Question
from rlhf_kit.tournament import Verdicts

__all__ = ["Pair", "pairs_of", "verdicts_of"]


@dataclass(frozen=True)
class Pair:
    """Answer `answer` of policy `ours` beside the one of policy `theirs` to the same prompt; all count from 0."""

    prompt: int
    ours: int
    theirs: int
    answer: int


def pairs_of(questions: Sequence[Question], comparisons: int | None = None) -> list[Pair]:
    """The first answer of each policy beside the first of each other one, the second beside the second, and so on.

    Args:
        comparisons: of two policies on one prompt; None for as many as there are answers.
    """
    return [
        Pair(p, ours, theirs, k)
        for p, question in enumerate(questions)
        for ours, theirs in combinations(range(len(question.answers)), 2)
        for k in range(min(len(question.answers[ours]), len(question.answers[theirs]), comparisons or 1 << 30))
    ]


def verdicts_of(
    questions: Sequence[Question], pairs: Sequence[Pair], said: Callable[[int, str, str], float | None]
) -> tuple[Verdicts, int]:
    """The verdicts on pairs, and how many pairs have none.

    A pair counts where both orders are there: half of one would count the judge's liking for a place as a liking for an
    answer. The same text twice is a tie, of which the judge's orders say nothing.

    Args:
        said: by prompt and the texts in the order in which they were shown: 1 where the first is better, 0 where the
            second is, 0.5 for a tie, None where it is not known.
    """
    rows, missing = list[tuple[int, int, int, int, float, float, float]](), 0
    for pair in pairs:
        answers = questions[pair.prompt].answers
        first, second = answers[pair.ours][pair.answer].text, answers[pair.theirs][pair.answer].text
        where = (pair.prompt, pair.ours, pair.theirs, pair.answer)
        if first == second:
            rows.append((*where, 0.5, np.nan, np.nan))
            continue
        one, other = said(pair.prompt, first, second), said(pair.prompt, second, first)
        if one is None or other is None:
            missing += 1
        else:
            rows.append((*where, (one + 1 - other) / 2, one, 1 - other))
    table = np.asarray(rows, dtype=np.float64).reshape(-1, 7)
    prompt, ours, theirs, answer = table[:, :4].astype(np.int64).T
    return Verdicts(prompt, ours, theirs, answer, answer, table[:, 4], table[:, 5:]), missing
