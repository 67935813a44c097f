"""Verdicts on pairs of answers, and how often each policy wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_kit.measures import Estimate, Floats

from .resampling import Resamples

__all__ = ["Ints", "Verdicts", "win_matrix", "win_rates"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Verdicts:
    """M verdicts on pairs of answers by N policies to P prompts.

    Attributes:
        prompt: (M,) which prompt, from 0.
        ours, theirs: (M,) whose answers, from 0; never the same.
        our_answer, their_answer: (M,) which of their answers to the prompt, from 0.
        outcome: (M,) 1 where ours is better, 0 where theirs is, 0.5 for a tie; the mean of `orders` if there are two.
        orders: (M, 2) the same for each order of a judge that is shown two answers: ours first, then theirs first. NaN
            where an order was not asked. None of a judge that sees one answer at a time.
    """

    prompt: Ints
    ours: Ints
    theirs: Ints
    our_answer: Ints
    their_answer: Ints
    outcome: Floats
    orders: Floats | None = None

    @classmethod
    def of_scores(cls, scores: Floats) -> Verdicts:
        """Every answer against every answer of each other policy to the same prompt, by their scores (P, N, K).

        Equal scores tie. A NaN is an answer that is not there.
        """
        prompts, policies, samples = scores.shape
        ours, theirs = np.triu_indices(policies, 1)
        p, pair, a, b = (
            grid.ravel()
            for grid in np.meshgrid(
                np.arange(prompts), np.arange(len(ours)), np.arange(samples), np.arange(samples), indexing="ij"
            )
        )
        first, second = scores[p, ours[pair], a], scores[p, theirs[pair], b]
        outcome = (first > second) + 0.5 * (first == second)
        there = ~(np.isnan(first) | np.isnan(second))
        p, one, other, a, b = (column[there].astype(np.int64) for column in (p, ours[pair], theirs[pair], a, b))
        return cls(p, one, other, a, b, outcome[there].astype(np.float64))

    def among(self, policies: int) -> Verdicts:
        """Those on the first so many policies."""
        chosen = (self.ours < policies) & (self.theirs < policies)
        columns = (self.prompt, self.ours, self.theirs, self.our_answer, self.their_answer)
        p, one, other, a, b = (column[chosen] for column in columns)
        orders = None if self.orders is None else self.orders[chosen]
        return Verdicts(p, one, other, a, b, self.outcome[chosen], orders)

    @classmethod
    def of_rows(cls, rows: Sequence[tuple[int, int, int, int, int, float, float]]) -> Verdicts:
        """Of (prompt, ours, theirs, our answer, their answer, outcome with ours shown first, outcome with theirs shown
        first); both outcomes are for ours, and NaN is an order that was not asked."""
        table = np.asarray(rows, dtype=np.float64).reshape(-1, 7)
        orders = table[:, 5:]
        p, one, other, a, b = table[:, :5].astype(np.int64).T
        with np.errstate(invalid="ignore"):
            outcome = np.nanmean(orders, axis=1) if len(table) else np.empty(0)
        return cls(p, one, other, a, b, outcome, orders)


def win_matrix(verdicts: Verdicts, prompts: int, policies: int) -> Floats:
    """(P, N, N): the mean outcome of each pair of policies on each prompt, NaN where there is no verdict."""
    shape = (prompts, policies, policies)
    sums, numbers = np.zeros(shape), np.zeros(shape)
    for ours, theirs, outcome in (
        (verdicts.ours, verdicts.theirs, verdicts.outcome),
        (verdicts.theirs, verdicts.ours, 1 - verdicts.outcome),
    ):
        np.add.at(sums, (verdicts.prompt, ours, theirs), outcome)
        np.add.at(numbers, (verdicts.prompt, ours, theirs), 1)
    with np.errstate(invalid="ignore"):
        matrix: Floats = sums / numbers
    return matrix


def win_rates(matrix: Floats, resamples: Resamples) -> list[list[Estimate | None]]:
    """How often each policy beats each other one, a tie counting half; None where they never met."""
    policies = matrix.shape[1]
    return [
        [
            None if i == j or np.isnan(matrix[:, i, j]).all() else resamples.mean(matrix[:, i, j])
            for j in range(policies)
        ]
        for i in range(policies)
    ]
