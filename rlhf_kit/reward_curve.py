"""The learning curve of a reward model: the run's own recipe, trained anew on growing parts of its prompts.

What is finished is kept: a curve that was interrupted goes on with the training that it was in.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf_kit import files, pipeline, reward_quality, seen
from rlhf_kit.checkpoint import read_json, read_manifest, write_json
from rlhf_kit.errors import CheckpointError, DataError, Problem
from rlhf_kit.outputs import Files, json_line, row_of
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Ranking
from rlhf_kit.reward_evaluation import Scorer, score_rankings
from rlhf_kit.reward_material import known_of
from rlhf_kit.reward_quality import Accuracy, CurvePoint
from rlhf_kit.rewards import stage_of

__all__ = ["FRACTIONS", "Plan", "Trained", "learning_curve", "plan_of", "train_fraction"]

log = logging.getLogger(__name__)

FRACTIONS = (0.125, 0.25, 0.5, 1.0)
_POINT = "point.json"


class Trained(NamedTuple):
    """A reward model of a part of the data."""

    model: Scorer
    seconds: float
    """That its training took."""


@dataclass(frozen=True)
class Plan:
    """What a run was trained with, so that it can be done again with less."""

    recipe: Recipe
    rankings: tuple[Ranking, ...]
    """That it was trained on."""


Train = Callable[[Plan, Sequence[Ranking], Path], Trained]
"""Trains on some of the plan's rankings in a directory of its own, or takes what is finished there."""


def plan_of(run: str | Path) -> Plan:
    """The recipe of a run and the rankings that it was trained on.

    Raises:
        CheckpointError: it is no run, or does not say what it was trained on.
        DataError: its rankings are no longer there, or have changed.
    """
    stage = stage_of(run)
    if stage is None:
        raise CheckpointError(f"{run}: no finished reward stage in it; --curve trains the recipe of a run anew")
    manifest, known = read_manifest(stage), known_of(stage)
    recipe = Recipe.model_validate(manifest.recipe).model_copy(update={"output_dir": str(stage.parent)})
    source = recipe.data.rankings or ""
    before = manifest.inputs.get("data", {}).get("rankings")
    if before != source:  # a Hub id stands for itself
        try:
            now = files.sha256_of(source)
        except (DataError, OSError):
            reason = "is not there; put it back for --curve, or start from the directory where the run was started"
            raise DataError([Problem(source, "", reason)]) from None
        if before not in (None, now):
            raise DataError([Problem(source, "", "has changed since the run; put it back for --curve")])
    if known.prompts is None:
        raise CheckpointError(f"{stage}: does not say which prompts it was trained on; train the run anew for --curve")
    records = files.load(source, "ranking")
    return Plan(recipe, tuple(record for record in records if seen.prompt_key(record.prompt) in known.prompts))


def learning_curve(
    plan: Plan,
    heldout: Sequence[Ranking],
    folder: Path,
    *,
    train: Train,
    fractions: Sequence[float] = FRACTIONS,
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[CurvePoint, ...]:
    """The accuracy on the same held-out rankings after training on each fraction of the prompts, the least first.

    Each part has all the prompts of the smaller ones. A point that is there already with the same inputs is not
    measured again.

    Args:
        plan: from `plan_of`.
        heldout: that none of the models is trained on.
        folder: gets a directory for each fraction.
        train: `train_fraction`, or a stand-in for it.
        fractions: above 0, at most 1.
        bootstrap: resamples of prompts for each interval.
        confidence: of the intervals.
        seed: of the choice of prompts and of the resampling.
        progress: is called with the number of responses of each batch that is scored.
    """
    names = list(dict.fromkeys(seen.prompt_key(record.prompt) for record in plan.rankings))
    names = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    points: dict[int, CurvePoint] = {}
    for fraction in sorted(fractions):
        count = max(1, round(fraction * len(names)))
        chosen = set(names[:count])
        part = [record for record in plan.rankings if seen.prompt_key(record.prompt) in chosen]
        pairs = sum(len(record.pairs) for record in part)
        if not pairs:
            log.info("curve: %g of the prompts have no pair to learn from; left out", fraction)
            continue
        work = folder / f"{fraction:g}"
        inputs = _digest(plan.recipe, part, heldout, [bootstrap, confidence, seed])
        if (done := _finished(work / _POINT, inputs)) is not None:
            log.info("curve: %d prompts: measured before", count)
            points[count] = done
            continue
        log.info("curve: training on %d of %d prompts", count, len(names))
        work.mkdir(parents=True, exist_ok=True)
        trained = train(plan, part, work)
        scored = score_rankings(trained.model, heldout, progress)
        quality = reward_quality.evaluate(scored, bootstrap=bootstrap, confidence=confidence, seed=seed)
        points[count] = CurvePoint(fraction, count, pairs, quality.accuracy, trained.seconds)
        write_json(work / _POINT, {"inputs": inputs, "point": asdict(points[count])})
    return tuple(points.values())


def _digest(recipe: Recipe, part: Sequence[Ranking], heldout: Sequence[Ranking], options: list[Any]) -> str:
    settings = recipe.model_dump(mode="json", include={"model", "lora", "reward", "data", "seed"})
    rows = [[row_of(record) for record in records] for records in (part, heldout)]
    return hashlib.sha256(json_line([settings, rows, options])).hexdigest()


def _finished(path: Path, inputs: str) -> CurvePoint | None:
    """The point of an earlier curve, where it was made of the same; a damaged one is made again."""
    if not path.is_file():
        return None
    try:
        found = read_json(path)
        if found["inputs"] != inputs:
            return None
        point = found["point"]
        return CurvePoint(**{**point, "accuracy": Accuracy(**point["accuracy"])})
    except (CheckpointError, KeyError, TypeError):
        return None


def train_fraction(plan: Plan, rankings: Sequence[Ranking], work: Path) -> Trained:
    """Trains the plan's reward stage on these rankings in `work/reward`, from the run's own SFT stage.

    Nothing is held out of them, and no further models are trained for single labelers. Rated answers and earlier
    phases are those of the run. On all rankings that the run was trained on, it is the run's own model.

    Raises:
        RlhfKitError: as the stage itself does.
    """
    from rlhf_kit.reward_model import RewardModel

    if len(rankings) == len(plan.rankings):
        whole = Path(plan.recipe.output_dir) / "reward"
        return Trained(RewardModel.from_run(whole), read_manifest(whole).seconds)
    work.mkdir(parents=True, exist_ok=True)
    source = work / "rankings.jsonl"
    with Files([source]) as written:
        for record in rankings:
            written.write(source, json_line(row_of(record)))
    data = plan.recipe.data.model_copy(update={"rankings": str(source), "rankings_heldout": None})
    reward = plan.recipe.reward.model_copy(update={"heldout_fraction": 0.0, "labeler_folds": 0})
    recipe = plan.recipe.model_copy(update={"data": data, "reward": reward})
    records = pipeline.load_data(recipe, ["reward"])
    if "ratings" in records:  # the run did not learn from those of its held-out prompts either
        trained_on = known_of(plan.recipe.output_dir).prompts or frozenset()
        records["ratings"] = [one for one in records["ratings"] if seen.prompt_key(one.prompt) in trained_on]
    stage = work / "reward"
    pipeline.run_records(recipe, "reward", records, stage)
    return Trained(RewardModel.from_run(stage), read_manifest(stage).seconds)
