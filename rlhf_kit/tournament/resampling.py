"""Bootstrap over prompts (Efron 1979): one set of draws for everything that is said of the same prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlhf_kit.measures import Estimate, Floats

__all__ = ["Resamples"]


@dataclass(frozen=True)
class Resamples:
    """How often each of P prompts is drawn in each of R resamples.

    Attributes:
        counts: (R, P), whole numbers as floats; each row sums to P.
        confidence: the share of the resamples inside an interval.
    """

    counts: Floats
    confidence: float

    @classmethod
    def draw(cls, prompts: int, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> Resamples:
        """Draws with replacement; the same arguments draw the same."""
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
        return cls(counts.astype(np.float64), confidence)

    def estimate(self, value: float, resampled: Floats) -> Estimate:
        """A value with the interval of its resampled values (R,); those that are NaN take no part."""
        tail = (1 - self.confidence) / 2
        if np.isnan(resampled).all():
            return Estimate(value, float("nan"), float("nan"))
        low, high = np.nanquantile(resampled, [tail, 1 - tail])
        return Estimate(value, float(low), float(high))

    def mean(self, values: Floats) -> Estimate:
        """Of values (P,), one a prompt; a NaN is a prompt that has none."""
        there = ~np.isnan(values)
        if not there.any():
            return Estimate(float("nan"), float("nan"), float("nan"))
        sums = self.counts @ np.where(there, values, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            resampled: Floats = sums / (self.counts @ there.astype(np.float64))
        return self.estimate(float(values[there].mean()), resampled)
