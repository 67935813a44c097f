"""What the reward model starts from: the SFT adapter, the raw base, or another run."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from rlhf_kit.checkpoint import MANIFEST, read_manifest
from rlhf_kit.errors import CheckpointError
from rlhf_kit.models import Backbone, ScalarHead, load_backbone, lora_config
from rlhf_kit.models.backbone import WEIGHTS_FILE
from rlhf_kit.models.heads import HEAD_FILE
from rlhf_kit.models.loading import base_id
from rlhf_kit.recipe import Recipe
from rlhf_kit.rewards import REWARD

log = logging.getLogger(__name__)


def start(recipe: Recipe, sft: Path | None) -> Backbone:
    """Base, adapter and head of the reward model as training begins, with what learns marked.

    Raises:
        CheckpointError: `reward.init` names nothing that fits.
    """
    section = recipe.reward
    backbone = load_backbone(recipe.reward_model)
    origin = origin_of(recipe, sft)
    if origin is None:
        torch.manual_seed(recipe.seed)
        backbone.add_adapter(REWARD, lora_config(section.lora or recipe.lora))
    else:
        backbone.load_adapter(REWARD, origin)
    torch.manual_seed(recipe.seed)
    head = ScalarHead(backbone.hidden_size, axes=tuple(section.axes), weights=list(section.axes.values()))
    if origin is not None and (origin / HEAD_FILE).is_file():
        _go_on_from(head, ScalarHead.load(origin, backbone.hidden_size))
    backbone.add_head(REWARD, head)
    backbone.train_only(REWARD, adapters=section.train == "lora")
    if section.gradient_checkpointing:
        backbone.use_checkpointing()
    return backbone


def origin_of(recipe: Recipe, sft: Path | None) -> Path | None:
    """The directory of the adapter that `reward.init` means; None is the raw base."""
    init = recipe.reward.init
    if init == "base" or (init == "sft" and recipe.reward.model is not None):
        return None
    if init == "sft":
        return sft
    found = next((p for p in (Path(init), Path(init) / REWARD) if (p / WEIGHTS_FILE).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"reward.init: {init}: no {WEIGHTS_FILE} in it, nor in its folder {REWARD}; name sft, base, or the "
            "directory of a run or of one of its stages"
        )
    if (found / MANIFEST).is_file():
        trained_on, ours = read_manifest(found).base["id"], base_id(recipe.reward_model)
        if trained_on != ours:
            raise CheckpointError(f"reward.init: {init}: was trained on {trained_on}, not on {ours}")
    return found


def _go_on_from(head: ScalarHead, before: ScalarHead) -> None:
    """Takes the outputs of the axes that both heads have; their normalisation is made anew."""
    kept = [axis for axis in head.axes if axis in before.axes]
    with torch.no_grad():
        for axis in kept:
            to, where = head.axes.index(axis), before.axes.index(axis)
            head.linear.weight[to] = before.linear.weight[where]
            head.linear.bias[to] = before.linear.bias[where]
    if len(kept) < len(head.axes):
        new = [axis for axis in head.axes if axis not in kept]
        log.info("reward: outputs that the run in reward.init does not have begin anew: %s", ", ".join(new))
