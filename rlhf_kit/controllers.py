"""What PPO carries from one update to the next besides weights: the KL coefficient, and running moments of rewards.

Each is a few numbers with a state of plain floats, so that a checkpoint holds them exactly.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

# How much of the relative error of the KL counts (arXiv 1909.08593, section 2.2).
_MOST_ERROR = 0.2


@dataclass
class KlController:
    """The KL coefficient: fixed, or moved towards a target KL.

    beta <- beta (1 + clip(KL / target - 1, -0.2, 0.2) * episodes / horizon)   (arXiv 1909.08593, section 2.2, in the
    form of its code)

    Attributes:
        coef: beta, now.
        target: nats a response; None keeps beta as it is.
        horizon: episodes in which an error of 0.2 moves beta by about 20 %.
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, episodes: int) -> None:
        """Takes the mean KL of a response over an update of so many episodes."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -_MOST_ERROR), _MOST_ERROR)
            self.coef *= 1 + error * episodes / self.horizon


@dataclass
class RunningMoments:
    """Mean and variance of all values seen so far, by the parallel formula of Chan, Golub and LeVeque (1979)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    """The sum of squared differences from the mean."""

    def update(self, values: Tensor) -> None:
        """Takes further values, a tensor of any shape; NaN stands for none."""
        known = values[~values.isnan()].double()
        count = known.numel()
        if count == 0:
            return
        mean = float(known.mean())
        total, delta = self.count + count, mean - self.mean
        self.squares += float(((known - mean) ** 2).sum()) + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def std(self) -> float:
        """The standard deviation (divided by n); 1 while nothing has varied."""
        variance = self.squares / self.count if self.count else 0.0
        return variance**0.5 if variance > 1e-12 else 1.0

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return asdict(self)


def batch_moments(values: Tensor) -> RunningMoments:
    """Those of one tensor."""
    moments = RunningMoments()
    moments.update(values)
    return moments


def normalised(values: Tensor, moments: RunningMoments) -> Tensor:
    """`values` with the moments' mean taken off, divided by their deviation; float32."""
    return ((values.double() - moments.mean) / moments.std).to(torch.float32)
