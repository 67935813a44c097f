"""The win rate that is left when length is taken out."""

from __future__ import annotations

import numpy as np

from rlhf_kit.measures import Estimate, Floats

from .resampling import Resamples
from .verdicts import Verdicts

__all__ = ["length_controlled"]

_FITS, _RIDGE = 1000, 0.01


def length_controlled(
    verdicts: Verdicts, lengths: Floats, ours: int, theirs: int, resamples: Resamples
) -> Estimate | None:
    """The win rate that would be left if both answers were equally long (after AlpacaEval 2, arXiv 2404.04475).

    A logistic regression of the outcome on tanh(difference of the lengths / its standard deviation), over all verdicts
    on the two; the rate is its value at no difference. AlpacaEval's term for the difficulty of a prompt is left out: it
    needs many models. A prompt counts once however many verdicts it has.

    Args:
        lengths: (P, N, K) of the answers.

    Returns:
        None where there is no verdict on the two.
    """
    there = (verdicts.ours == ours) & (verdicts.theirs == theirs)
    turned = (verdicts.ours == theirs) & (verdicts.theirs == ours)
    chosen = there | turned
    if not chosen.any():
        return None
    sign = np.where(there, 1.0, -1.0)[chosen]
    prompt = verdicts.prompt[chosen]
    outcome = np.where(there, verdicts.outcome, 1 - verdicts.outcome)[chosen]
    gap = sign * (
        lengths[prompt, verdicts.ours[chosen], verdicts.our_answer[chosen]]
        - lengths[prompt, verdicts.theirs[chosen], verdicts.their_answer[chosen]]
    )
    spread = float(gap.std()) or 1.0
    weight = 1 / np.bincount(prompt, minlength=len(lengths))[prompt]
    longer = np.tanh(gap / spread)
    value = _at_no_difference(longer, outcome, weight[None])[0]
    drawn = _at_no_difference(longer, outcome, weight * resamples.counts[:_FITS, prompt])
    return resamples.estimate(float(value), drawn)


def _at_no_difference(longer: Floats, outcome: Floats, weights: Floats) -> Floats:
    """(R,) logistic regressions of `outcome` (M,) on `longer` (M,) with R sets of weights (R, M), by Newton's method:
    the probability where `longer` is 0. A small ridge keeps what never loses finite."""
    both = np.zeros((len(weights), 2))
    columns = np.stack([np.ones_like(longer), longer])
    for _ in range(25):
        rate = 1 / (1 + np.exp(-both @ columns))
        slope = (weights * (outcome - rate)) @ columns.T - _RIDGE * both
        curve = np.einsum("rm,im,jm->rij", weights * rate * (1 - rate), columns, columns) + _RIDGE * np.eye(2)
        step = np.linalg.solve(curve, slope[..., None])[..., 0]
        both += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    at_zero: Floats = 1 / (1 + np.exp(-both[:, 0]))
    return at_zero
