"""What the reward model starts from: the SFT adapter, the raw base, or another run."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from rlhf_kit.classifier import OFFSET_FILE, exported_head
from rlhf_kit.models import Backbone, ScalarHead, load_backbone, lora_config
from rlhf_kit.models.heads import HEAD_FILE
from rlhf_kit.recipe import Recipe
from rlhf_kit.rewards import REWARD
from rlhf_kit.stages.origin import adapter_at

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
    before = None if origin is None else _head_at(origin, backbone.hidden_size)
    if before is not None:
        _go_on_from(head, before)
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
    return adapter_at("reward.init", init, (REWARD,), recipe.reward_model)


def _head_at(origin: Path, hidden_size: int) -> ScalarHead | None:
    """The head beside an adapter, as a stage or as an export has written it."""
    if (origin / HEAD_FILE).is_file():
        return ScalarHead.load(origin, hidden_size)
    return exported_head(origin) if (origin / OFFSET_FILE).is_file() else None


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
