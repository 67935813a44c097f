"""Log loss, and whether a difference of scores means the probability that it stands for in training.

P(the first of two is preferred) is sigmoid of the difference of their scores (Bradley and Terry 1952). In both
directions it says the same, so each pair is taken once, from the side that the model prefers: its confidence is
sigmoid(|difference|), from 0.5 to 1, and it is right or wrong.
"""

from __future__ import annotations

import math

import numpy as np

from .figures import Bin, Calibration, LogLoss
from .resampling import Bootstrap, by_cluster, ratio
from .table import Floats, Ints

__all__ = ["best_temperature", "calibration_of", "log_loss_of"]

_BINS = 10
_STEPS = 200


def log_loss_of(difference: Floats, prompt: Ints, bootstrap: Bootstrap) -> LogLoss | None:
    """Mean of -log sigmoid(difference) (M,) with its interval; None where there is no pair."""
    if not len(difference):
        return None
    losses = np.logaddexp(0.0, -difference)
    columns = by_cluster(prompt, [losses, np.ones(len(losses))])
    low, high = bootstrap.interval(columns, ratio)
    return LogLoss(float(losses.mean()), low, high, math.log(2))


def calibration_of(difference: Floats) -> Calibration | None:
    """The reliability curve of the score differences (M,), preferred minus other; None where there is no pair.

    A pair with equal scores is half right with confidence 0.5.
    """
    if not len(difference):
        return None
    confidence = 1 / (1 + np.exp(-np.abs(difference)))
    right = (difference > 0) + 0.5 * (difference == 0)
    width = _bins(confidence, right, np.linspace(0.5, 1.0, _BINS + 1))
    count = _bins(confidence, right, _equal_count_edges(confidence))
    temperature, loss = best_temperature(difference)
    return Calibration(width, count, _error(width), _error(count), temperature, loss)


def best_temperature(difference: Floats) -> tuple[float | None, float]:
    """By what the scores would have to be divided for the least log loss, and that loss.

    The loss is convex in a = 1 / temperature: its slope, the mean of -difference * sigmoid(-a difference), is zero in
    one place, which is found by bisection. There is none where every pair is right (a grows for ever, the loss goes to
    0) nor where the mean difference is not above 0 (a = 0 is best, and the loss log 2).
    """
    if difference.mean() <= 0:
        return None, math.log(2)
    if difference.min() >= 0:
        # Equal scores stay a coin whatever they are divided by.
        return None, float((difference == 0).mean() * math.log(2))
    low, high = 0.0, 1.0 / float(np.abs(difference).max())
    for _ in range(_STEPS):
        if _slope(high, difference) >= 0:
            break
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _slope(middle, difference) < 0 else (low, middle)
    scale = (low + high) / 2
    return 1 / scale, float(np.logaddexp(0.0, -scale * difference).mean())


def _slope(scale: float, difference: Floats) -> float:
    with np.errstate(over="ignore"):
        return float((-difference / (1 + np.exp(scale * difference))).mean())


def _equal_count_edges(confidence: Floats) -> Floats:
    inner = np.quantile(confidence, np.linspace(0, 1, _BINS + 1)[1:-1])
    edges: Floats = np.unique(np.concatenate([[0.5], inner, [1.0]]))
    return edges


def _bins(confidence: Floats, right: Floats, edges: Floats) -> tuple[Bin, ...]:
    place = np.clip(np.searchsorted(edges, confidence, "right") - 1, 0, len(edges) - 2)
    count = np.bincount(place, minlength=len(edges) - 1)
    sums = [np.bincount(place, weights=values, minlength=len(count)) for values in (confidence, right)]
    return tuple(
        Bin(low, high, pairs, sure / pairs if pairs else None, hits / pairs if pairs else None)
        for low, high, pairs, sure, hits in zip(
            edges[:-1].tolist(), edges[1:].tolist(), count.tolist(), sums[0].tolist(), sums[1].tolist(), strict=True
        )
    )


def _error(bins: tuple[Bin, ...]) -> float:
    pairs = sum(part.pairs for part in bins)
    apart = (
        part.pairs * abs(part.accuracy - part.confidence)
        for part in bins
        if part.accuracy is not None and part.confidence is not None
    )
    return sum(apart) / pairs
