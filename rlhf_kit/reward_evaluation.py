"""Whether a reward model is good enough to optimise against: ranked files in, its scores, and every figure out.

Nothing is measured on prompts that the model was trained on. Their rankings are counted apart: beside the others they
tell whether it memorised.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from rlhf_kit import reward_quality
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.ranked_files import SourceFile
from rlhf_kit.records import Conversation, Ranking
from rlhf_kit.reward_material import NOTHING, Known, Material, name_of
from rlhf_kit.reward_quality import CurvePoint, Quality, Scored

__all__ = ["Evaluation", "LengthBin", "Scorer", "evaluate_reward", "score_rankings"]

_POINTS = 400
_BINS = 10


class Scorer(Protocol):
    """What is needed of a reward model; `RewardModel` is one."""

    @property
    def name(self) -> str:
        """The run, or the Hub id."""

    @property
    def shortened_prompts(self) -> int:
        """How many prompts lost their oldest turns, so far."""

    @property
    def cut_responses(self) -> int:
        """How many responses were cut, so far."""

    def lengths(self, responses: Sequence[str]) -> list[int]:
        """(N,) tokens of each response, without EOS."""

    def score(
        self,
        prompts: Sequence[Conversation],
        responses: Sequence[str],
        *,
        ended: Sequence[bool] | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Tensor:
        """(N,) float32 on the CPU."""


@dataclass(frozen=True, slots=True)
class LengthBin:
    """Different responses of about the same length."""

    low: int
    high: int
    """Tokens of the shortest and of the longest."""
    responses: int
    mean: float
    std: float
    """Of their scores."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A reward model, what it was measured on, and all figures."""

    model: str
    known: Known
    sources: tuple[SourceFile, ...]
    notes: tuple[str, ...]
    """What a reader must know before believing the figures, one sentence each."""
    quality: Quality
    length_bins: tuple[LengthBin, ...]
    length_points: tuple[tuple[int, float], ...]
    """(tokens, score) of some hundred responses."""

    def to_json(self) -> dict[str, Any]:
        """All numbers, by name; the figures of `Quality` stand beside the others."""
        trained_on = None if self.known.prompts is None else len(self.known.prompts)
        return {
            "model": self.model,
            "prompts_trained_on": trained_on,
            "log_odds": self.known.log_odds,
            "sources": [asdict(source) for source in self.sources],
            "notes": list(self.notes),
            "settings": self.known.settings,
            **self.quality.to_json(),
            "score_by_length": {
                "bins": [asdict(one) for one in self.length_bins],
                "points": [list(point) for point in self.length_points],
            },
        }


def evaluate_reward(
    model: Scorer,
    material: Material,
    known: Known = NOTHING,
    *,
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    curve: Sequence[CurvePoint] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Scores every response once and says all there is to say of the scores.

    Log loss, calibration and the gaps of ties are of scores on the scale that was trained, where a difference is a
    log-odds; no other figure depends on their scale. `length_bins` and `length_points` have them as they are given.

    Args:
        model: a `RewardModel`.
        material: from `material_of`.
        known: from `known_of`.
        bootstrap: resamples of prompts for each interval.
        confidence: of the intervals.
        seed: of the resampling.
        curve: points of a learning curve, measured already.
        progress: is called with the number of responses of each batch when it is done.

    Raises:
        RlhfKitError: a score that is not finite.
    """
    before = model.shortened_prompts, model.cut_responses
    scored = score_rankings(model, [*material.heldout, *material.training], progress)
    heldout, training = scored[: len(material.heldout)], scored[len(material.heldout) :]
    quality = reward_quality.evaluate(
        _times(heldout, known.log_odds),
        training=_times(training, known.log_odds),
        training_labelers=known.labelers,
        heldout_labelers=known.heldout_labelers,
        bootstrap=bootstrap,
        confidence=confidence,
        seed=seed,
        curve=curve,
    )
    notes = list(material.notes)
    if shortened := model.shortened_prompts - before[0]:
        notes.append(f"Prompts longer than the model takes, which lost their oldest turns: {shortened}.")
    if cut := model.cut_responses - before[1]:
        notes.append(f"Responses longer than the model takes, which were cut: {cut}.")
    axes = (known.settings.get("reward") or {}).get("axes") or {}
    if len(axes) > 1:
        said = f"The score is a sum of {len(axes)} axes ({', '.join(axes)}), each trained by itself"
        notes.append(f"{said}: a difference of such scores is no log-odds, so log loss and calibration mean less.")
    bins, points = _by_length(heldout, seed)
    return Evaluation(model.name, known, material.sources, tuple(notes), quality, bins, points)


def score_rankings(
    model: Scorer, rankings: Sequence[Ranking], progress: Callable[[int], None] = lambda done: None
) -> list[Scored]:
    """The rankings with their scores and lengths; what several labelers ranked is scored once.

    Raises:
        RlhfKitError: a score that is not finite.
    """
    places: dict[Hashable, int] = {}
    prompts: list[Conversation] = []
    texts: list[str] = []
    ended: list[bool] = []
    rows = []
    for record in rankings:
        row = []
        for response in record.responses:
            place = places.setdefault(name_of(record, response), len(places))
            if place == len(texts):
                prompts.append(record.prompt)
                texts.append(response.text)
                ended.append(response.ended)
            row.append(place)
        rows.append(row)
    scores = model.score(prompts, texts, ended=ended, progress=progress).tolist()
    broken = [place for place, score in enumerate(scores) if not np.isfinite(score)]
    if broken:
        raise RlhfKitError(f"{model.name}: {len(broken)} of {len(scores)} scores are not finite; the model is damaged")
    lengths = model.lengths(texts)
    return [
        Scored(record, tuple(scores[i] for i in row), tuple(lengths[i] for i in row))
        for record, row in zip(rankings, rows, strict=True)
    ]


def _times(scored: Sequence[Scored], factor: float) -> list[Scored]:
    return [replace(one, scores=tuple(factor * score for score in one.scores)) for one in scored]


def _by_length(scored: Sequence[Scored], seed: int) -> tuple[tuple[LengthBin, ...], tuple[tuple[int, float], ...]]:
    """Bins of about as many different responses each, by length, and some of the responses."""
    found = {
        name_of(one.record, response): (length, score)
        for one in scored
        for response, length, score in zip(one.record.responses, one.lengths, one.scores, strict=True)
    }
    lengths, scores = np.array(list(found.values()), dtype=np.float64).T
    starts = np.unique(np.quantile(lengths, np.arange(_BINS) / _BINS, method="lower"))
    place = np.searchsorted(starts, lengths, side="right")
    bins = []
    for number in np.unique(place):
        of_bin, of_scores = lengths[place == number], scores[place == number]
        low, high = int(of_bin.min()), int(of_bin.max())
        bins.append(LengthBin(low, high, len(of_bin), float(of_scores.mean()), float(of_scores.std())))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(lengths))[:_POINTS])
    points = tuple((int(lengths[i]), round(float(scores[i]), 6)) for i in chosen)
    return tuple(bins), points
