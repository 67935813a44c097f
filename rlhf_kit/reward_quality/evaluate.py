"""All figures of one reward model."""

from __future__ import annotations

from collections.abc import Sequence

from . import groups
from .calibration import calibration_of, log_loss_of
from .ceiling import ceiling_of, memorised_of
from .figures import Counts, CurvePoint, Quality, Scored
from .length import distinct_responses, length_of
from .resampling import Bootstrap
from .table import table_of, wins
from .verdict import verdict_of

__all__ = ["evaluate"]


def evaluate(
    scored: Sequence[Scored],
    *,
    training: Sequence[Scored] = (),
    training_labelers: frozenset[str] = frozenset(),
    heldout_labelers: frozenset[str] = frozenset(),
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    curve: Sequence[CurvePoint] = (),
) -> Quality:
    """Everything that says whether a reward model is good enough, from its scores on held-out rankings.

    Args:
        scored: held-out rankings, none of whose prompts the model was trained on.
        training: rankings that it was trained on, or some of them; they tell whether it memorised.
        training_labelers: names of those whose rankings it was trained on. Where they are known, any other is held-out.
        heldout_labelers: names of those whose rankings were kept from it.
        bootstrap: resamples of prompts for each interval.
        confidence: of the intervals, between 0 and 1.
        seed: of the resampling; the same data and seed give the same intervals.
        curve: points of a learning curve, measured already.

    Raises:
        ValueError: no ranking at all; a ranking with another number of scores or lengths than responses, or with a
            score that is no finite number, named by its id or place.
    """
    if not scored:
        raise ValueError("evaluate: no rankings")
    if bootstrap < 1 or not 0 < confidence < 1:
        raise ValueError(f"evaluate: bootstrap={bootstrap} must be at least 1, confidence={confidence} within 0 and 1")
    table, how = table_of(scored), Bootstrap(bootstrap, confidence, seed)
    difference, prompt = table.difference, table.pair_prompt
    right = wins(table.score[table.better], table.score[table.worse])
    accuracy = how.accuracy(right, prompt)
    labelers = groups.labeler_sets(table, right, how, training_labelers, heldout_labelers)
    log_loss = log_loss_of(difference, prompt, how)
    length = length_of(table, distinct_responses(scored), right, how)
    ceiling = ceiling_of(scored, table, right, how)
    memorised = memorised_of(training, table, right, how)
    return Quality(
        confidence=confidence,
        resamples=bootstrap,
        counts=Counts(
            prompts=table.prompts,
            rankings=len(scored),
            responses=len(table.score),
            strict_pairs=len(right),
            tied_pairs=len(table.tied[0]),
            equal_scores=int((difference == 0).sum()),
        ),
        accuracy=accuracy,
        accuracy_by_prompt=how.mean_by_prompt(right, prompt),
        ties=groups.ties_of(table),
        by_rank_gap=groups.by_rank_gap(table, right, how),
        by_k=groups.by_k(table, right, how),
        by_category=groups.by_category(table, right, how),
        by_labeler=groups.by_labeler(table, right, how, training_labelers, heldout_labelers),
        by_source=groups.by_source(table, right, how),
        labelers=labelers,
        log_loss=log_loss,
        calibration=calibration_of(difference),
        length=length,
        ceiling=ceiling,
        memorised=memorised,
        curve=tuple(curve),
        verdict=verdict_of(accuracy, length, log_loss, ceiling, memorised, labelers, curve),
    )
