"""From a recipe's sections to what is measured: the model of each stage, its phases and its batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlhf_kit.models.loading import resolve_dtype
from rlhf_kit.packing import PackedRows
from rlhf_kit.planning.architectures import Architecture, architecture_of
from rlhf_kit.planning.lengths import Item, Lengths
from rlhf_kit.planning.setup import Setup
from rlhf_kit.planning.wishes import Wishes
from rlhf_kit.recipe import ModelSection, Recipe

__all__ = ["Batches", "dtype_of", "ppo_setup", "ranked_batches", "reward_setup", "sft_setup", "supervised_batches"]

_DRAWN = 200
"""Batches that are drawn to find the mean size of one."""
POLICY, REFERENCE, REWARD, VALUE = "policy", "sft", "reward", "value"


@dataclass(frozen=True)
class Batches:
    """Batches of one device.

    Attributes:
        rows: of the largest.
        width: tokens of each of its rows.
        answers: whose scores are read, in the largest.
        mean: tokens of a batch in the mean, padding included.
    """

    rows: int
    width: int
    answers: int
    mean: float


def dtype_of(model: ModelSection, wishes: Wishes) -> torch.dtype:
    """Of the base: auto is bfloat16 on a GPU, and what this machine has in hardware on a CPU."""
    if model.dtype == "auto" and wishes.gpu:
        return torch.bfloat16
    return resolve_dtype(model.dtype)


def _setup(recipe: Recipe, model: ModelSection, wishes: Wishes, **fields: Any) -> tuple[Architecture, Setup]:
    architecture = architecture_of(model)
    dtype = dtype_of(model, wishes)
    autocast = dtype == torch.bfloat16
    options = {"lora": recipe.lora, **fields}
    return architecture, Setup(
        architecture.config, dtype, model.attn_implementation, autocast, model.quantization, **options
    )


def sft_setup(recipe: Recipe, wishes: Wishes) -> tuple[Architecture, Setup]:
    """The base with the adapter `sft`."""
    return _setup(
        recipe,
        recipe.model,
        wishes,
        adapters=("sft",),
        trained=("sft",),
        heads={},
        checkpointing=recipe.sft.gradient_checkpointing,
        inputs_learn=True,
    )


def reward_setup(recipe: Recipe, wishes: Wishes) -> tuple[Architecture, Setup]:
    """The base with the adapter `reward` and its head."""
    section = recipe.reward
    return _setup(
        recipe,
        recipe.reward_model,
        wishes,
        lora=section.lora or recipe.lora,
        adapters=(REWARD,),
        trained=(REWARD,),
        heads={REWARD: len(section.axes)},
        adapters_learn=section.train == "lora",
        checkpointing=section.gradient_checkpointing,
    )


def ppo_setup(recipe: Recipe, wishes: Wishes) -> tuple[Architecture, Setup]:
    """The base with all roles that share it."""
    ppo = recipe.ppo
    scores = REWARD in ppo.reward_funcs and recipe.reward.model is None
    adapters = [POLICY] if ppo.init == "base" else [REFERENCE, POLICY]
    heads = {REWARD: len(recipe.reward.axes)} if scores else {}
    adapters += [REWARD] if scores else []
    adapters += [VALUE] if ppo.value == "adapter" else []
    heads |= {} if ppo.value == "model" else {VALUE: 1}
    return _setup(
        recipe,
        recipe.model,
        wishes,
        adapters=tuple(adapters),
        trained=(POLICY,) if ppo.value == "model" else (POLICY, VALUE),
        heads=heads,
        checkpointing=ppo.gradient_checkpointing,
    )


# -------------------------------------------------------------------- batches


def supervised_batches(lengths: Lengths, size: int) -> Batches:
    """Of demonstrations, padded to the longest of a batch."""
    tokens = [sum(item) for item in lengths.items]
    drawn = [max(batch) * len(batch) for batch in _drawn(tokens, size)]
    return Batches(min(size, lengths.rows or size), max(tokens), 0, sum(drawn) / len(drawn))


def ranked_batches(lengths: Lengths, size: int, *, packed: bool) -> Batches:
    """Of rankings, `size` prompts with all their answers: packed, or one answer a row."""
    items = list(lengths.items)
    longest = max(items, key=sum)
    shapes = [_shape(batch, packed=packed) for batch in _drawn(items, size)]
    # The largest batch is one with the longest item in it: as many rows as any has, each as wide as that item.
    rows = max(shape[0] for shape in shapes)
    width = sum(longest) if packed else max(item[0] for item in items) + max(max(item[1:]) for item in items)
    answers = max(sum(len(item) - 1 for item in batch) for batch in _drawn(items, size))
    mean = sum(shape[0] * shape[1] for shape in shapes) / len(shapes)
    return Batches(rows, width, answers, mean)


def _shape(batch: Sequence[Item], *, packed: bool) -> tuple[int, int]:
    if packed:
        rows = PackedRows.collate(
            [[0] * item[0] for item in batch], [[[0] * length for length in item[1:]] for item in batch], 0
        )
        return int(rows.input_ids.size(0)), int(rows.input_ids.size(1))
    width = max(item[0] for item in batch) + max(max(item[1:]) for item in batch)
    return sum(len(item) - 1 for item in batch), width


def _drawn(items: Sequence[Any], size: int) -> list[list[Any]]:
    """Random batches, the same ones every time."""
    rng = random.Random(0)
    return [rng.choices(items, k=size) for _ in range(1 if len(items) == 1 else _DRAWN)]
