"""Stage 2: a reward model from ranked answers: an adapter and a scalar head on the same base (arXiv 2203.02155,
section 3.5).

All C(K,2) pairs of a prompt are one element of a batch, each response goes through the model once, and where the model
can be packed, so does the prompt.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import TrainingArguments

from rlhf_kit import launch, opinions, seen
from rlhf_kit.checkpoint import CHECKPOINTS, LAUNCH, MetricsLog, read_json, write_json
from rlhf_kit.data import Encoder, RankedCollator, RankedIds, rated_items, split_by_prompt
from rlhf_kit.errors import DataError, Problem, RlhfKitError
from rlhf_kit.models import Backbone
from rlhf_kit.recipe import Recipe, RewardPhase, RewardSection
from rlhf_kit.records import Demonstration, Ranking, Rating
from rlhf_kit.rewards import REWARD, can_pack, outputs, save
from rlhf_kit.stages.arguments import build, fit, mode
from rlhf_kit.stages.reward_measures import accuracy_of, measure
from rlhf_kit.stages.reward_start import start
from rlhf_kit.stages.reward_trainer import RewardTrainer

__all__ = ["RewardTrainer", "normalise", "train"]

log = logging.getLogger(__name__)

_ARGUMENTS = {
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "save_steps",
}
PHASES, FOLDS = "phases", "folds"


def train(
    recipe: Recipe,
    rankings: list[Ranking],
    heldout: list[Ranking],
    demonstrations: list[Demonstration],
    sft: Path | None,
    work: Path,
    *,
    ratings: Sequence[Rating] = (),
    phases: Sequence[list[Ranking]] = (),
) -> dict[str, Any]:
    """Trains the reward model, normalises its scores over the demonstrations, measures it, saves it.

    Args:
        heldout: rankings that nothing is trained on; where empty, `reward.heldout_fraction` of the prompts is held out.
        sft: run directory of the SFT stage; None starts from the raw base, unless `reward.init` names a run.
        ratings: rated answers, learned from beside the rankings.
        phases: the rankings of each of `reward.phases`.

    Raises:
        DataError: there is no pair to learn from.
        RlhfKitError: the loss became NaN, or the model scores all demonstrations alike.
    """
    section = recipe.reward
    if mode(_arguments(recipe, section, work)) != "ddp" and (section.phases or section.labeler_folds):
        raise RlhfKitError(
            "reward: phases and labeler_folds train one model after another, which DeepSpeed's engine does not take; "
            "use multi_gpu.yaml for them, or train a phase as a run of its own and name it in reward.init"
        )
    backbone = start(recipe, sft)
    encoder = Encoder(
        backbone.tokenizer,
        max_prompt_length=recipe.data.max_prompt_length,
        max_length=min(section.max_length, backbone.context_length),
    )
    if not heldout:
        rankings, heldout = split_by_prompt(rankings, section.heldout_fraction, recipe.seed)
    ratings = _not_held_out(ratings, heldout, "data.ratings")
    phases = [_not_held_out(records, heldout, f"reward.phases.{n}.rankings") for n, records in enumerate(phases)]
    rated = rated_items(encoder, ratings)
    items = _items(encoder, opinions.merge(rankings, section.labelers), section, "data.rankings", rated)
    encoder.report("reward")
    backbone.packs_up_to = 0 if section.packing == "off" else None
    packed = launch.agreed(_can_pack(backbone, items))

    metrics: dict[str, Any] = {"packed": packed}
    for n, (phase, records) in enumerate(zip(section.phases, phases, strict=True)):
        first = _items(encoder, opinions.merge(records, section.labelers), section, f"reward.phases.{n}.rankings")
        metrics[f"phase_{n}"] = _phase(recipe, backbone, phase, first, work / PHASES / str(n), packed)
    if section.labeler_folds:
        metrics |= _folds(recipe, backbone, encoder, rankings, heldout, rated, work / FOLDS, packed)
    trainer = _fit(recipe, backbone, items, section, work, packed)

    if demonstrations:
        launch.serve(trainer.model_wrapped, lambda: normalise(backbone, encoder, demonstrations))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    metrics |= {"prompts": len(items), "pairs": sum(len(r.pairs) for r in rankings), "ratings": len(ratings)}
    metrics |= {"loss_first": losses[0], "loss_last": losses[-1]}
    metrics |= {"shortened_prompts": encoder.shortened_prompts, "cut_responses": encoder.cut_responses}
    if heldout:
        some = [record for record in rankings if record.pairs][: len(heldout)]
        metrics |= launch.serve(trainer.model_wrapped, lambda: measure(backbone, encoder, heldout, recipe))
        seen_before = launch.serve(trainer.model_wrapped, lambda: accuracy_of(backbone, encoder, some))
        metrics["train_pair_accuracy"] = seen_before[0]
    metrics |= {"processes": trainer.args.world_size, "distributed": mode(trainer.args)}
    save(backbone, work)
    if launch.is_main():
        trained = [*rankings, *ratings, *(record for records in phases for record in records)]
        seen.write(work, trained)
    return metrics


Judged = TypeVar("Judged", Ranking, Rating)


def _not_held_out(records: Sequence[Judged], heldout: Sequence[Ranking], what: str) -> list[Judged]:
    """Those to prompts that are not held out: a file of held-out rankings is checked for leaks, a part is not."""
    names = {seen.prompt_key(record.prompt) for record in heldout}
    kept = [record for record in records if seen.prompt_key(record.prompt) not in names]
    if len(kept) < len(records):
        log.info("reward: %d of %s are to held-out prompts and not learned from", len(records) - len(kept), what)
    return kept


def _items(
    encoder: Encoder, records: Sequence[Ranking], section: RewardSection, field: str, rated: Sequence[RankedIds] = ()
) -> list[RankedIds]:
    """What can be learned from: rankings with a pair on one of the axes, then the rated answers.

    Raises:
        DataError: there is nothing.
    """
    items = [item for item in map(encoder.ranking, records) if _has_pair(item, section)] + list(rated)
    if not items:
        what = "no pair to learn from: all responses of every prompt are tied"
        if tuple(section.axes) != ("overall",):
            what += f", or have no rank on {', '.join(section.axes)}"
        raise DataError([Problem(field, "", what)])
    return items


def _has_pair(item: RankedIds, section: RewardSection) -> bool:
    for axis in section.axes:
        ranks = [rank for rank in item.ranks_on(axis) if rank is not None]
        if len(set(ranks)) > 1 or (section.ties == "half" and len(ranks) > 1):
            return True
    return False


def _can_pack(backbone: Backbone, items: Sequence[RankedIds]) -> bool:
    prompts = [item.prompt for item in items for _ in item.responses]
    return can_pack(backbone, prompts, [response for item in items for response in item.responses])


# -------------------------------------------------------------------- training


def _fit(
    recipe: Recipe, backbone: Backbone, items: list[RankedIds], section: RewardSection, work: Path, packed: bool
) -> RewardTrainer:
    trainer = RewardTrainer(
        model=backbone,
        args=_arguments(recipe, section, work),
        data_collator=RankedCollator(backbone.tokenizer.pad_token_id, backbone.heads[REWARD].axes, packed),
        train_dataset=items,
        callbacks=[MetricsLog("reward", work)],
        section=section,
    )
    fit(trainer, work)
    return trainer


def _arguments(recipe: Recipe, section: RewardSection, work: Path) -> TrainingArguments:
    fixed = section.model_dump(include=_ARGUMENTS)
    fixed |= {"remove_unused_columns": False, "logging_steps": 1, "label_names": []}
    fixed |= {"ddp_find_unused_parameters": False}
    return build(TrainingArguments, recipe, work, fixed, section.trainer)


def _phase(
    recipe: Recipe, backbone: Backbone, phase: RewardPhase, items: list[RankedIds], work: Path, packed: bool
) -> dict[str, Any]:
    """Trains on one of `reward.phases`, or takes what it left when it was done before an interruption."""
    done = work / "done.json"
    if done.is_file():
        backbone.reload_adapter(REWARD, work)
        backbone.heads[REWARD].load_state_dict(backbone.heads[REWARD].load(work, backbone.hidden_size).state_dict())
        figures: dict[str, Any] = read_json(done)
        return figures
    work.mkdir(parents=True, exist_ok=True)
    own = phase.model_dump(exclude={"rankings"}, exclude_none=True)
    log.info("reward: phase %s: %d prompts", work.name, len(items))
    trainer = _fit(recipe, backbone, items, recipe.reward.model_copy(update=own), work, packed)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    save(backbone, work)
    figures = {"prompts": len(items), "loss_first": losses[0], "loss_last": losses[-1]}
    _note_done(done, figures)
    return figures


def _note_done(done: Path, figures: dict[str, Any]) -> None:
    """What a part of the training is known by when it is done; its checkpoints are not needed any more."""
    launch.wait()
    if launch.is_main():
        write_json(done, figures)
        shutil.rmtree(done.parent / CHECKPOINTS, ignore_errors=True)
        (done.parent / LAUNCH).unlink(missing_ok=True)
    launch.wait()


def _folds(
    recipe: Recipe,
    backbone: Backbone,
    encoder: Encoder,
    rankings: list[Ranking],
    heldout: list[Ranking],
    rated: Sequence[RankedIds],
    work: Path,
    packed: bool,
) -> dict[str, Any]:
    """Models that each have never seen one part of the labelers, measured on held-out prompts: on the labelers that
    they learned from, and on the others (arXiv 2203.02155, section 4.1: 72.4 against 69.6 %).

    The weights are afterwards what they were before.
    """
    section, before = recipe.reward, _snapshot(backbone)
    parts = opinions.folds(rankings, section.labeler_folds, recipe.seed)
    found = []
    for n, left_out in enumerate(parts):
        done = work / str(n) / "fold.json"
        if not done.is_file():
            done.parent.mkdir(parents=True, exist_ok=True)
            log.info("reward: fold %d of %d, without %d labelers", n + 1, len(parts), len(left_out))
            kept = opinions.merge([r for r in rankings if r.labeler not in left_out], section.labelers)
            field = f"data.rankings without the labelers of fold {n + 1}"
            _fit(recipe, backbone, _items(encoder, kept, section, field, rated), section, done.parent, packed)
            figures: dict[str, Any] = {"labelers": sorted(left_out)}
            for name, others in (
                ("heldout_labelers", [r for r in heldout if r.labeler in left_out]),
                ("training_labelers", [r for r in heldout if r.labeler is not None and r.labeler not in left_out]),
            ):
                accuracy, pairs = accuracy_of(backbone, encoder, others)
                figures[name] = {"accuracy": accuracy, "pairs": pairs}
            _note_done(done, figures)
            _restore(backbone, before)
        found.append(read_json(done))
    means: dict[str, Any] = {"labeler_folds": found}
    for name in ("heldout_labelers", "training_labelers"):
        values = torch.tensor([f[name]["accuracy"] for f in found if f[name]["pairs"]])
        if values.numel():
            means |= {f"{name}_accuracy": float(values.mean()), f"{name}_std": float(values.std(correction=0))}
    return means


def _snapshot(backbone: Backbone) -> list[Tensor]:
    return [p.detach().clone() for p in (*backbone.adapter_parameters(REWARD), *backbone.heads[REWARD].parameters())]


@torch.no_grad()
def _restore(backbone: Backbone, values: list[Tensor]) -> None:
    parameters = (*backbone.adapter_parameters(REWARD), *backbone.heads[REWARD].parameters())
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
        parameter.grad = None


def normalise(backbone: Backbone, encoder: Encoder, demonstrations: Sequence[Demonstration]) -> None:
    """Scores over the demonstrations get mean 0 and standard deviation 1; the constants are kept with the head."""
    prompts = [encoder.prompt(d.prompt) for d in demonstrations]
    responses = [encoder.response(d.completion, len(p)) for d, p in zip(demonstrations, prompts, strict=True)]
    try:
        backbone.heads[REWARD].normalise(outputs(backbone, prompts, responses))
    except ValueError as failure:
        raise RlhfKitError(f"reward: {failure}; see metrics.jsonl, and try another reward.learning_rate") from failure
