"""Whether a judge prefers what it is shown first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlhf_kit.measures import Estimate

from .resampling import Resamples
from .verdicts import Verdicts

__all__ = ["Position", "position_bias"]


@dataclass(frozen=True)
class Position:
    """What it is worth to be shown first.

    Attributes:
        first_preferred: the share of verdicts for the answer shown first, a tie counting half; 0.5 is no bias.
        consistent: the share of pairs on which both orders say the same.
        asked_both: the number of pairs that were asked in both orders.
    """

    first_preferred: Estimate
    consistent: Estimate
    asked_both: int


def position_bias(verdicts: Verdicts, prompts: int, resamples: Resamples) -> Position | None:
    """Of a judge that is shown two answers; None where no pair was asked in both orders.

    Only those pairs count: what was asked in one order says nothing of it.
    """
    if verdicts.orders is None:
        return None
    both = ~np.isnan(verdicts.orders).any(axis=1)
    if not both.any():
        return None
    orders, prompt = verdicts.orders[both], verdicts.prompt[both]
    first = (orders[:, 0] + 1 - orders[:, 1]) / 2
    same = (orders[:, 0] == orders[:, 1]).astype(np.float64)
    numbers = np.bincount(prompt, minlength=prompts)
    with np.errstate(invalid="ignore"):
        by_prompt = [np.bincount(prompt, weights=column, minlength=prompts) / numbers for column in (first, same)]
    return Position(resamples.mean(by_prompt[0]), resamples.mean(by_prompt[1]), int(both.sum()))
