"""Which prompts are worth a labeler's time, by what reward models say of their answers; numpy only.

A reward model says of two answers with which probability the first is preferred, p = sigmoid(s_1 - s_2) (Bradley and
Terry 1952). Where it is sure, a label tells it little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Select", "disagreement", "most", "uncertainty"]

Floats = NDArray[np.float64]
Select = Literal["uncertainty", "disagreement"]


def uncertainty(scores: Floats) -> float:
    """The mean entropy of the verdicts on all pairs of K answers, in nats: 0 is sure, ln 2 is a coin.

    Of several models the entropy of their mean verdict.

    Args:
        scores: (R, K) of R models, as log-odds.
    """
    return float(_entropy(_verdicts(scores).mean(axis=0)).mean())


def disagreement(scores: Floats) -> float:
    """What a verdict on a pair would tell about which model is right: the mutual information of the two in nats, mean
    over all pairs of K answers (arXiv 1112.5745, eq. 2).

    It is 0 where all models say the same, however unsure they are.

    Args:
        scores: (R, K) of R models, as log-odds.
    """
    verdicts = _verdicts(scores)
    return float((_entropy(verdicts.mean(axis=0)) - _entropy(verdicts).mean(axis=0)).mean())


def most(values: Sequence[float], number: int) -> list[int]:
    """The places of the `number` highest values, in their own order; of equal ones the first."""
    order = sorted(range(len(values)), key=lambda place: -values[place])
    return sorted(order[:number])


def _verdicts(scores: Floats) -> Floats:
    """(R, pairs) with which probability the first of two answers is preferred."""
    first, second = np.triu_indices(scores.shape[1], k=1)
    return np.exp(-np.logaddexp(0.0, -(scores[:, first] - scores[:, second])))


def _entropy(p: Floats) -> Floats:
    """Of a verdict with probability p, in nats."""
    inside = np.clip(p, 1e-300, 1.0), np.clip(1.0 - p, 1e-300, 1.0)
    return np.asarray(-(p * np.log(inside[0]) + (1.0 - p) * np.log(inside[1])))
