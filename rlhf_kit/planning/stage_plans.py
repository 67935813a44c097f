"""The plan of each stage: what it keeps, what its phases add to that, and how much it does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlhf_kit.planning.footprint import Footprint, footprint
from rlhf_kit.planning.lengths import Lengths, lengths_of
from rlhf_kit.planning.phases import TILE, Ranked, Supervised
from rlhf_kit.planning.results import PhaseMemory, StagePlan, Work
from rlhf_kit.planning.setup import Setup
from rlhf_kit.planning.sharing import Kept, divided
from rlhf_kit.planning.stages import Batches, ranked_batches, reward_setup, sft_setup, supervised_batches
from rlhf_kit.planning.weights import Weights, kept, weights_of
from rlhf_kit.planning.wishes import Wishes
from rlhf_kit.recipe import Recipe, RewardSection, SftSection

__all__ = ["loading", "memory_of", "plan_reward", "plan_sft", "shared_out"]

# A CUDA context with the libraries' own workspaces, and what NCCL takes where several devices talk: assumed, for no
# plan can know them.
_CUDA, _NCCL = 3 * 2**28, 2**29
# On a CPU. What a stage brings into the process beside tensors when it begins (data, modules that are imported late):
# 49 to 56 MiB with three models.
_PROCESS = 50 * 2**20
# What glibc cannot use again of the blocks that a step takes and gives back, as a share of them: pieces between small
# objects, because the kit has it keep freed memory (`process.prepare_torch`). Fitted on three models of 40M to 152M
# parameters in both precisions: 0.11 to 0.39 for a training step that repeats itself. In PPO sampling leaves pieces of
# its growing caches behind, 85 to 165 MiB, and the updates fit into most of the rest.
_KEPT, _KEPT_BY_UPDATES = 0.2, 0.1
LEFT_BY_SAMPLING = 100 * 2**20
_OPTIM = "adamw_torch"


def plan_sft(recipe: Recipe, wishes: Wishes) -> StagePlan:
    """Supervised fine-tuning."""
    section = recipe.sft
    _, setup = sft_setup(recipe, wishes)
    weights = weights_of(setup)
    lengths = lengths_of(recipe, "demonstrations", recipe.model, section.max_length, wishes.rows)
    batches = supervised_batches(lengths, section.per_device_train_batch_size)
    held = shared_out(kept(weights, *_optim(section.trainer, "sft")), weights, wishes)
    found = footprint(setup, Supervised(batches.rows, batches.width))
    if wishes.gpu:
        found = _tiled(found, batches, setup)
    work = _trained(section, lengths, lengths.rows, batches, found, wishes)
    step = memory_of("the training step", held, found, weights, setup, wishes)
    phases = (*loading(setup, weights, wishes), step)
    return StagePlan("sft", weights.parameters, weights.trained, phases, held.host, work)


def loading(setup: Setup, weights: Weights, wishes: Wishes) -> tuple[PhaseMemory, ...]:
    """On a CPU: the file is in memory beside the weights that are made of it, where they have another precision."""
    stored = getattr(setup.config, "dtype", None)
    if wishes.gpu or (stored == setup.dtype and setup.quantization is None):
        return ()
    width = 4 if stored is None else stored.itemsize
    parts = {"base": weights.base, "loading": weights.parameters["base"] * width, "libraries": _PROCESS}
    return (PhaseMemory("loading", parts),)


def _tiled(found: Footprint, batches: Batches, setup: Setup) -> Footprint:
    """On a GPU TRL's kernel holds one tile of logits in the dtype of the base and changes it in place."""
    vocabulary = setup.config.get_text_config().vocab_size
    tile = min(TILE[0], batches.rows * batches.width) * min(TILE[1], vocabulary) * setup.dtype.itemsize
    return Footprint({**found.parts, "logits": tile}, found.flops, found.cache)


def plan_reward(recipe: Recipe, wishes: Wishes) -> StagePlan:
    """The reward model."""
    section = recipe.reward
    _, setup = reward_setup(recipe, wishes)
    weights = weights_of(setup)
    lengths = lengths_of(recipe, "rankings", recipe.reward_model, section.max_length, wishes.rows)
    packed = section.packing == "auto"
    batches = ranked_batches(lengths, section.per_device_train_batch_size, packed=packed)
    rows = lengths.rows
    if rows is not None and recipe.data.rankings_heldout is None:
        rows -= round(section.heldout_fraction * rows)
    held = shared_out(kept(weights, *_optim(section.trainer, "reward")), weights, wishes)
    found = footprint(setup, Ranked(batches.rows, batches.width, batches.answers, packed))
    work = _trained(section, lengths, rows, batches, found, wishes)
    step = memory_of("the training step", held, found, weights, setup, wishes)
    phases = (*loading(setup, weights, wishes), step)
    notes = ["answers to a prompt share a row (packing), if the model is found to be able to"] if packed else []
    if section.phases or section.labeler_folds:
        notes.append("the steps of reward.phases and of labeler_folds are not counted")
    return StagePlan("reward", weights.parameters, weights.trained, phases, held.host, work, tuple(notes))


def _optim(trainer: Mapping[str, Any], stage: str) -> tuple[str, str]:
    return str(trainer.get("optim", _OPTIM)), f"{stage}.trainer.optim"


def shared_out(whole: Kept, weights: Weights, wishes: Wishes) -> Kept:
    """What a device keeps of it."""
    return divided(whole, wishes, parameters=weights.parameters["base"], layer=weights.layer, rest=weights.outside)


def memory_of(
    name: str,
    held: Kept,
    found: Footprint,
    weights: Weights,
    setup: Setup,
    wishes: Wishes,
    *,
    gathered: int | None = None,
    left: int | None = None,
) -> PhaseMemory:
    """A phase's parts beside what is kept.

    Args:
        gathered: bytes of the base that are put together, where these are not the training step's.
        left: bytes that the phases before an update of PPO have left in the heap of a CPU.
    """
    parts = {
        "base": held.base,
        "adapters": held.adapters,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
        **found.parts,
        "gathered": held.gathered if gathered is None else gathered,
    }
    if found.cache:
        parts["cache"] = found.cache
        parts["workspace"] = max(0, parts.get("workspace", 0) - found.cache)
    if setup.quantization is not None:  # the largest matrix is unpacked to be multiplied
        parts["workspace"] = parts.get("workspace", 0) + weights.largest * setup.dtype.itemsize
    if wishes.gpu:
        parts["libraries"] = _CUDA + (_NCCL if wishes.devices > 1 else 0)
    else:
        parts["libraries"] = _PROCESS
        passing = sum(parts.get(part, 0) for part in ("activations", "logits", "workspace", "cache"))
        parts["kept"] = int(_KEPT * passing) if left is None else int(_KEPT_BY_UPDATES * passing) + left
    return PhaseMemory(name, {part: size for part, size in parts.items() if size})


def _trained(
    section: SftSection | RewardSection,
    lengths: Lengths,
    rows: int | None,
    batches: Batches,
    found: Footprint,
    wishes: Wishes,
) -> Work:
    """Steps and operations of transformers' Trainer: an epoch's batches are shared out and accumulated, the rest of an
    epoch makes a step of its own."""
    size, accumulation = section.per_device_train_batch_size, section.gradient_accumulation_steps
    steps: int | None = section.trainer.get("max_steps")
    if steps is None and rows is not None:
        of_epoch = math.ceil(math.ceil(rows / (size * wishes.devices)) / accumulation)
        steps = math.ceil(section.num_train_epochs * of_epoch)
    shape = f"{batches.rows} x {batches.width} tokens"
    if steps is None:
        return Work(rows, None, None, shape, None, None, lengths.source)
    passes = steps * accumulation * wishes.devices
    if rows is not None and section.trainer.get("max_steps") is None:
        passes = min(passes, math.ceil(section.num_train_epochs * math.ceil(rows / size)))
    flops = found.flops * batches.mean / (batches.rows * batches.width) * passes
    seconds = None if wishes.throughput is None else flops / wishes.throughput / wishes.devices
    return Work(rows, steps, round(batches.mean * passes), shape, flops, seconds, lengths.source)
