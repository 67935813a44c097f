"""Between a recipe's section and the trainer behind it: its argument object, and running it."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from rlhf_kit.checkpoint import CHECKPOINTS, last_checkpoint
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.models.loading import resolve_dtype
from rlhf_kit.recipe import Recipe

Arguments = TypeVar("Arguments", bound=TrainingArguments)

# What a recipe says in a place of its own, or what a stage needs as it is.
RESERVED = {
    "output_dir": "use the recipe's output_dir",
    "seed": "use the recipe's seed",
    "data_seed": "use the recipe's seed",
    "max_length": "write it in the stage's own section",
    "remove_unused_columns": "the kit's batches need it off",
    "do_train": "has no effect here",
    "resume_from_checkpoint": "the last whole checkpoint of a stage is found by itself",
    "logging_strategy": "the stage's figures are made from its log; logging_steps may be set",
}


def build(
    cls: type[Arguments], recipe: Recipe, work: Path, fixed: dict[str, Any], trainer: dict[str, Any]
) -> Arguments:
    """The trainer's arguments: the kit's defaults, then what the stage fixes, then the recipe's `trainer` mapping."""
    values: dict[str, Any] = {
        "output_dir": str(work / CHECKPOINTS),
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "bf16": resolve_dtype(recipe.model.dtype) == torch.bfloat16 and recipe.model.quantization is None,
        "use_cpu": not torch.accelerator.is_available(),
        "report_to": "none",
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "weight_decay": 0.0,
        "disable_tqdm": not os.isatty(2),
        "dataloader_pin_memory": torch.cuda.is_available(),
        **fixed,
        **trainer,
    }
    return cls(**values)


def refuse_many_processes(stage: str, arguments: TrainingArguments) -> None:
    """Stops a stage whose gradients would not be synchronised: several processes would each train a model of their own.

    Raises:
        RlhfKitError: the stage was launched on more than one process.
    """
    if arguments.world_size > 1:
        raise RlhfKitError(
            f"{stage}: launched on {arguments.world_size} processes, but this version trains it on one only "
            "(SFT runs on several); start it without torchrun, or with --num_processes 1"
        )


def fit(trainer: Trainer, work: Path) -> None:
    """Trains, from the last whole checkpoint in `work` where there is one."""
    trainer.remove_callback(PrinterCallback)  # `MetricsLog` prints the same, one line a step
    checkpoint = last_checkpoint(work)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def mistakes(cls: type[TrainingArguments], stage: str, section: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with a stage's `trainer` mapping, as (dotted field, reason)."""
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    own = set(type(section).model_fields) - {"trainer"}
    for key in section.trainer:
        if key in RESERVED:
            yield f"{stage}.trainer.{key}", f"cannot be set here; {RESERVED[key]}"
        elif key in own:
            yield f"{stage}.trainer.{key}", f"belongs one level up: {stage}.{key}"
        elif key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            yield f"{stage}.trainer.{key}", f"not an argument of {cls.__name__}{hint}"
