"""Scored rankings as plain arrays: responses, strict pairs and tied pairs, from which every figure is counted."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..checks.labelers import dense
from ..checks.ledger import prompt_of
from .figures import Scored

__all__ = ["Floats", "Ints", "Names", "Table", "table_of", "wins"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Names:
    """What each of some things is called, as numbers into a list; empty texts where it was not said."""

    numbers: Ints
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """R rankings with N responses, M strict and T tied pairs."""

    prompts: int
    """Different ones."""
    prompt: Ints
    """(R,) number of the prompt of a ranking, in the order in which prompts come."""
    size: Ints
    """(R,) its number of responses K."""
    category: Names
    labeler: Names
    """(R,) each."""
    score: Floats
    length: Floats
    ended: Floats
    """(N,) each."""
    source: Names
    """(N,)"""
    ranking: Ints
    """(N,) which ranking a response is in."""
    better: Ints
    worse: Ints
    """(M,) each: numbers of responses."""
    gap: Ints
    """(M,) places between them, by ranks without gaps."""
    tied: tuple[Ints, Ints]
    """(T,) each: numbers of responses."""

    @property
    def pair_ranking(self) -> Ints:
        """(M,) which ranking a strict pair is of."""
        return self.ranking[self.better]

    @property
    def pair_prompt(self) -> Ints:
        """(M,) which prompt a strict pair is of."""
        return self.prompt[self.pair_ranking]

    @property
    def difference(self) -> Floats:
        """(M,) score of the preferred response minus that of the other."""
        return self.score[self.better] - self.score[self.worse]


def wins(one: Floats, other: Floats) -> Floats:
    """1 where `one` is greater, 0 where it is less, a half where they are equal."""
    result: Floats = (one > other) + 0.5 * (one == other)
    return result


def table_of(scored: Sequence[Scored], what: str = "ranking") -> Table:
    """The arrays of some scored rankings; `what` they are called in errors.

    Raises:
        ValueError: a ranking has another number of scores or lengths than responses, or a score that is no finite
            number; it is named by its id, or by its place from 1.
    """
    _check(scored, what)
    numbers: dict[Hashable, int] = {}
    prompt = np.array([numbers.setdefault(prompt_of(one.record), len(numbers)) for one in scored], dtype=np.int64)
    size = np.array([len(one.scores) for one in scored], dtype=np.int64)
    rank = np.array([r for one in scored for r in dense([a.rank for a in one.record.responses])], dtype=np.int64)
    better, worse, first, second = _pairs(size, rank)
    answers = [response for one in scored for response in one.record.responses]
    return Table(
        prompts=len(numbers),
        prompt=prompt,
        size=size,
        category=_named([one.record.category for one in scored]),
        labeler=_named([one.record.labeler for one in scored]),
        score=np.array([score for one in scored for score in one.scores], dtype=np.float64),
        length=np.array([length for one in scored for length in one.lengths], dtype=np.float64),
        ended=np.array([answer.ended for answer in answers], dtype=np.float64),
        source=_named([answer.source for answer in answers]),
        ranking=np.repeat(np.arange(len(scored), dtype=np.int64), size),
        better=better,
        worse=worse,
        gap=rank[worse] - rank[better],
        tied=(first, second),
    )


def _check(scored: Sequence[Scored], what: str) -> None:
    for number, one in enumerate(scored, 1):
        name = f"{what} {one.record.id!r}" if one.record.id is not None else f"{what} {number}"
        size = len(one.record.responses)
        if len(one.scores) != size or len(one.lengths) != size:
            words = f"{name}: {size} responses, but {len(one.scores)} scores and {len(one.lengths)} lengths"
            raise ValueError(words)
        for place, score in enumerate(one.scores, 1):
            if not math.isfinite(score):
                raise ValueError(f"{name}: the score of its response {place} is {score}, which is no finite number")


def _named(texts: Sequence[str | None]) -> Names:
    numbers: dict[str, int] = {}
    found = [numbers.setdefault(text or "", len(numbers)) for text in texts]
    return Names(np.array(found, dtype=np.int64), tuple(numbers))


def _pairs(size: Ints, rank: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """The better and the worse of each strict pair, the first and the second of each tied one; by ranking."""
    start = np.cumsum(size) - size
    empty = np.zeros(0, dtype=np.int64)
    ones, others = [empty], [empty]
    for k in np.unique(size):
        i, j = np.triu_indices(int(k), 1)
        base = start[size == k][:, None]
        ones.append((base + i).ravel())
        others.append((base + j).ravel())
    one, other = np.concatenate(ones), np.concatenate(others)
    order = np.argsort(one, kind="stable")
    one, other = one[order], other[order]
    tie, first_wins = rank[one] == rank[other], rank[one] < rank[other]
    better, worse = np.where(first_wins, one, other), np.where(first_wins, other, one)
    return better[~tie], worse[~tie], one[tie], other[tie]
