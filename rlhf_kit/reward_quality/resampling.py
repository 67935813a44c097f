"""Bootstrap over prompts (Efron 1979; of clusters: Field and Welsh 2007), fast for a hundred thousand pairs.

Every figure here is a function of sums over prompts: of pairs that are right, of pairs, of losses. So a resample needs
the sums of each prompt only, and prompts with the same sums need one draw of how many times they come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..stats.intervals import FEWEST
from .figures import Accuracy
from .table import Floats, Ints

__all__ = ["Bootstrap", "Interval", "by_cluster"]

Interval = tuple[float, float] | tuple[None, None]
_CELLS = 2_000_000
_FEW_ROWS = 200
_WORTH = 20
"""Drawing how often a row of sums comes costs about as much as drawing so many prompts one by one."""


def by_cluster(cluster: Ints, columns: Sequence[Floats]) -> Floats:
    """The sums of each column (M,) over the entries of each cluster that has any: (clusters, columns)."""
    _, place = np.unique(cluster, return_inverse=True)
    size = int(place.max()) + 1 if len(place) else 0
    return np.stack([np.bincount(place, weights=column, minlength=size) for column in columns], axis=1)


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How resampling is done. The same data in another order give the same intervals."""

    resamples: int
    confidence: float
    seed: int

    def sums(self, columns: Floats, stream: int = 0) -> Floats:
        """Sums of each column over as many rows as there are, drawn with replacement.

        Args:
            columns: (G, C) a row a prompt.
            stream: another number draws independently of the first.

        Returns:
            (resamples, C).
        """
        rows, times = np.unique(columns, axis=0, return_counts=True)
        rng = np.random.default_rng([self.seed, stream])
        total = len(columns)
        if len(rows) > _FEW_ROWS and len(rows) * _WORTH > total:
            rows = np.repeat(rows, times, axis=0)
            drawn = [
                np.bincount(rng.integers(0, total, size=total), minlength=total) @ rows for _ in range(self.resamples)
            ]
            return np.array(drawn)
        step = max(1, _CELLS // len(rows))
        parts = [
            rng.multinomial(total, times / total, size=min(step, self.resamples - start)) @ rows
            for start in range(0, self.resamples, step)
        ]
        return np.concatenate(parts)

    def interval(self, columns: Floats, statistic: Callable[[Floats], Floats]) -> Interval:
        """The percentile interval of a statistic of resampled sums; none where prompts are too few.

        Args:
            columns: (G, C) sums of each prompt.
            statistic: from sums (resamples, C) to values (resamples,).
        """
        if len(columns) < FEWEST:
            return None, None
        return self.percentiles(statistic(self.sums(columns)))

    def percentiles(self, values: Floats) -> tuple[float, float]:
        """The ends of the interval of resampled values; a resample without a value (NaN) takes no part."""
        tail = (1 - self.confidence) / 2
        low, high = np.nanquantile(values, [tail, 1 - tail])
        return float(low), float(high)

    def accuracy(self, right: Floats, prompt: Ints) -> Accuracy:
        """The pooled mean of `right` (M,), of pairs of the prompts `prompt` (M,), with its interval."""
        if not len(right):
            return Accuracy(None, None, None, 0, 0)
        columns = by_cluster(prompt, [right, np.ones(len(right))])
        low, high = self.interval(columns, ratio)
        return Accuracy(float(right.mean()), low, high, len(right), len(columns))

    def mean_by_prompt(self, right: Floats, prompt: Ints) -> Accuracy:
        """The mean over prompts of the means of their pairs, with its interval."""
        if not len(right):
            return Accuracy(None, None, None, 0, 0)
        sums = by_cluster(prompt, [right, np.ones(len(right))])
        columns = np.stack([sums[:, 0] / sums[:, 1], np.ones(len(sums))], axis=1)
        low, high = self.interval(columns, ratio)
        return Accuracy(float(columns[:, 0].mean()), low, high, len(right), len(columns))

    def difference(self, one: tuple[Floats, Ints], other: tuple[Floats, Ints]) -> Accuracy:
        """Accuracy on some pairs minus that on others that prompts may share: a prompt is drawn with both its parts.

        Args:
            one: `right` (M,) and the prompts (M,) of the pairs; at least one pair.
            other: the same; prompts with the same number are the same.
        """
        here, there = np.ones(len(one[0])), np.ones(len(other[0]))
        prompt = np.concatenate([one[1], other[1]])
        zeros = np.zeros(len(here)), np.zeros(len(there))
        parts = [(one[0], zeros[1]), (here, zeros[1]), (zeros[0], other[0]), (zeros[0], there)]
        columns = by_cluster(prompt, [np.concatenate(part) for part in parts])
        value = float(one[0].mean() - other[0].mean())
        enough = min((columns[:, 1] > 0).sum(), (columns[:, 3] > 0).sum()) >= FEWEST
        low, high = self.interval(columns, _ratio_difference) if enough else (None, None)
        return Accuracy(value, low, high, len(prompt), len(columns))


def ratio(sums: Floats) -> Floats:
    """The first column over the second; NaN where the second is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Floats = sums[:, 0] / sums[:, 1]
    return result


def _ratio_difference(sums: Floats) -> Floats:
    return ratio(sums[:, :2]) - ratio(sums[:, 2:])
