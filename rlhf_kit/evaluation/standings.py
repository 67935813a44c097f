"""How the policies stand with one judge: win rates, strengths, bias and flags, as JSON for the page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from rlhf_kit.evaluation.judges.base import Judge, Judgement
from rlhf_kit.measures import Estimate, Floats
from rlhf_kit.tournament import (
    Position,
    Resamples,
    Verdicts,
    bradley_terry,
    elo,
    length_controlled,
    position_bias,
    win_matrix,
    win_rates,
)

__all__ = ["by_policy", "mean_scores", "standings"]


def standings(
    judge: Judge, judgement: Judgement, names: Sequence[str], lengths: Floats, resamples: Resamples, seed: int
) -> dict[str, Any]:
    """Everything that one judge says of the policies, with intervals over prompts.

    Args:
        names: of the first N policies of the judgement; those behind them are left out.
        lengths: (P, N, K) of the answers, in characters: tokens of different tokenizers cannot be compared.
    """
    prompts = len(lengths)
    verdicts = judgement.verdicts.among(len(names))
    matrix = win_matrix(verdicts, prompts, len(names))
    scores = mean_scores(judgement)
    return {
        "name": judge.name,
        "kind": judge.kind,
        "what": judge.what,
        "scores": None
        if scores is None
        else by_policy(names, [resamples.mean(column) for column in scores.T[: len(names)]]),
        "win_rates": _rates(verdicts, names, matrix, lengths, resamples),
        "bradley_terry": by_policy(names, bradley_terry(matrix, resamples)),
        "elo": by_policy(names, elo(matrix, resamples, seed=seed)),
        "position": _position(position_bias(verdicts, prompts, resamples)),
        "flags": _flags(judgement, names, resamples),
        "missing": judgement.missing,
    }


def mean_scores(judgement: Judgement) -> Floats | None:
    """(P, N): the mean score of each policy's answers to each prompt; None of a judge that gives none."""
    if judgement.scores is None:
        return None
    there = ~np.isnan(judgement.scores)
    with np.errstate(invalid="ignore"):
        means: Floats = np.where(there, judgement.scores, 0.0).sum(axis=2) / there.sum(axis=2)
    return means


def by_policy(names: Sequence[str], estimates: Sequence[Estimate | None]) -> dict[str, Any]:
    """Those that there are, for JSON."""
    return {name: found.as_dict() for name, found in zip(names, estimates, strict=True) if found is not None}


def _rates(
    verdicts: Verdicts, names: Sequence[str], matrix: Floats, lengths: Floats, resamples: Resamples
) -> dict[str, Any]:
    rates = win_rates(matrix, resamples)
    found: dict[str, Any] = {name: {} for name in names}
    for i, j in combinations(range(len(names)), 2):
        rate = rates[i][j]
        if rate is None:
            continue
        controlled = length_controlled(verdicts, lengths, i, j, resamples)
        prompts = int((~np.isnan(matrix[:, i, j])).sum())
        found[names[i]][names[j]] = _rate(rate, controlled, prompts)
        found[names[j]][names[i]] = _rate(_turned(rate), controlled and _turned(controlled), prompts)
    return found


def _rate(rate: Estimate, controlled: Estimate | None, prompts: int) -> dict[str, Any]:
    level = None if controlled is None else controlled.as_dict()
    return {**rate.as_dict(), "prompts": prompts, "length_controlled": level}


def _turned(rate: Estimate) -> Estimate:
    """The same as the other side sees it: what one wins the other loses."""
    return Estimate(1 - rate.value, 1 - rate.high, 1 - rate.low)


def _position(found: Position | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "first_preferred": found.first_preferred.as_dict(),
        "consistent": found.consistent.as_dict(),
        "asked_both": found.asked_both,
    }


def _flags(judgement: Judgement, names: Sequence[str], resamples: Resamples) -> dict[str, Any] | None:
    """How many of a policy's answers have each flag, counted by prompts: one counts as the share of its answers."""
    if not judgement.flags:
        return None
    found: dict[str, Any] = {name: {} for name in names}
    for flag, shares in judgement.flags.items():
        for name, column in zip(names, shares.T[: len(names)], strict=True):
            there = ~np.isnan(column)
            if there.any():
                yes, rate = float(column[there].sum()), resamples.mean(column)
                found[name][flag] = {"yes": yes, "of": int(there.sum()), "rate": rate.as_dict()}
    return found
