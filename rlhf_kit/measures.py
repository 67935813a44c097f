"""What the kit claims, in numbers: accuracies, win rates and their bootstrap intervals. numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def pair_accuracy(scores: Sequence[float], ranks: Sequence[int]) -> tuple[float, int]:
    """How many of one prompt's ordered pairs the scores order rightly, and how many pairs there are.

    Ranks: 1 = best; tied responses make no pair. Two equal scores on a pair count half, so a scorer that knows nothing
    gets half of the pairs and not none.
    """
    right, pairs = 0.0, 0
    for i in range(len(ranks)):
        for j in range(len(ranks)):
            if ranks[i] < ranks[j]:
                pairs += 1
                right += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
    return right, pairs


def pooled_pair_accuracy(scores: Sequence[Sequence[float]], ranks: Sequence[Sequence[int]]) -> float:
    """`pair_accuracy` pooled over prompts; NaN where there is no pair at all."""
    counted = [pair_accuracy(s, r) for s, r in zip(scores, ranks, strict=True)]
    pairs = sum(n for _, n in counted)
    return sum(right for right, _ in counted) / pairs if pairs else float("nan")


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How often a draw of `ours` beats a draw of `theirs` on one prompt, over all pairs of draws; a tie counts half."""
    a, b = np.asarray(ours, dtype=np.float64)[:, None], np.asarray(theirs, dtype=np.float64)[None, :]
    return float(np.mean((a > b) + 0.5 * (a == b)))


def bootstrap_mean(
    values: Sequence[float] | Floats, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """The mean of `values` with its percentile bootstrap interval (Efron 1979).

    One value a prompt: draws of the same prompt depend on each other and must be averaged first.

    Raises:
        ValueError: no value given.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("bootstrap_mean: no values")
    rng = np.random.default_rng(seed)
    means = data[rng.integers(0, data.size, size=(resamples, data.size))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(data.mean()), float(low), float(high))


Features = Mapping[str, Sequence[Sequence[float]]]


def explain_gain(before: tuple[Features, Sequence[float]], after: tuple[Features, Sequence[float]]) -> dict[str, float]:
    """Splits a rise of the mean score into parts by what is known of the answers (Oaxaca 1973, Blinder 1973).

    A linear model of the score on the features is fitted to the answers before; a feature's part is its coefficients
    times the change of its mean. What the features do not explain is `rest`.

    Args:
        before: named groups of features, a row an answer, and the scores of the answers.
        after: the same of the answers after.

    Returns:
        A part for each group and `rest`, in standard deviations of the scores before; they add up to the whole change.
    """
    scores = np.asarray(before[1], dtype=np.float64)
    spread = float(scores.std()) or 1.0
    columns = {name: np.asarray(rows, dtype=np.float64) for name, rows in before[0].items()}
    later = {name: np.asarray(rows, dtype=np.float64) for name, rows in after[0].items()}
    matrix = np.column_stack([np.ones(len(scores)), *columns.values()])
    coefficients = np.linalg.lstsq(matrix, scores, rcond=None)[0][1:]
    parts, start = {}, 0
    for name, block in columns.items():
        shift = later[name].mean(axis=0) - block.mean(axis=0)
        parts[name] = float(coefficients[start : start + block.shape[1]] @ shift) / spread
        start += block.shape[1]
    total = (float(np.mean(after[1])) - float(scores.mean())) / spread
    parts["rest"] = total - sum(parts.values())
    return parts
