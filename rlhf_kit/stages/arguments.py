"""Between a recipe's section and the trainer behind it: its argument object, and running it."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from rlhf_kit import launch
from rlhf_kit.checkpoint import CHECKPOINTS, LAUNCH, checkpoints, last_checkpoint, read_json, write_json
from rlhf_kit.errors import CheckpointError, RlhfKitError
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
    deepspeed = "deepspeed" in trainer or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    values: dict[str, Any] = {
        "output_dir": str(work / CHECKPOINTS),
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        # DeepSpeed's own bf16 would cast what is trained; under it the kit's autocast alone decides.
        "bf16": resolve_dtype(recipe.model.dtype) == torch.bfloat16 and not deepspeed,
        "ddp_broadcast_buffers": False,  # all processes load the same ones
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
    arguments = cls(**values)
    _refuse_what_trains_wrongly(recipe, arguments)
    sizes = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    sizes = batches(work, mode(arguments), *sizes)
    arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps = sizes
    return arguments


def mode(arguments: TrainingArguments) -> str:
    """How the processes of a stage work together: ddp (one process too), zero1 to zero3, or fsdp."""
    if arguments.deepspeed_plugin is not None:
        return f"zero{arguments.deepspeed_plugin.zero_stage}"
    return "fsdp" if launch.by_fsdp() else "ddp"


def _refuse_what_trains_wrongly(recipe: Recipe, arguments: TrainingArguments) -> None:
    plugin = arguments.deepspeed_plugin
    if plugin is not None:
        on = [name for name in ("bf16", "fp16") if plugin.deepspeed_config.get(name, {}).get("enabled") is True]
        if on:
            raise RlhfKitError(
                f"the DeepSpeed configuration enables {on[0]}, which casts what is trained; leave it out: the base is "
                "in the precision of model.dtype, and what is trained on it in float32 under autocast"
            )
    if launch.by_fsdp() and os.environ.get("FSDP_VERSION") != "2":
        raise RlhfKitError("the launcher asks for FSDP 1, which this kit does not train on; set fsdp_version: 2")
    for field, model in (("model", recipe.model), ("reward.model", recipe.reward_model)):
        if model.quantization is not None and mode(arguments) in ("zero3", "fsdp"):
            raise RlhfKitError(
                f"{field}.quantization {model.quantization} cannot be shared out by {mode(arguments)}. Use "
                "multi_gpu.yaml or zero2.yaml, where each device has the whole quantised base"
            )


def batches(work: Path, mode: str, per_device: int, accumulated: int) -> tuple[int, int]:
    """The batch of each process and how many of them make a step, so that a step is what it was when the stage began.

    Args:
        work: of the stage; what was begun there before is gone on from if it has a checkpoint.
        mode: as `mode` says.
        per_device: `per_device_train_batch_size` of the recipe.
        accumulated: `gradient_accumulation_steps` of the recipe.

    Raises:
        CheckpointError: what was begun there before cannot be gone on from in this way.
    """
    now = {"processes": launch.processes(), "mode": mode}
    known: dict[str, Any] = read_json(work / LAUNCH) if (work / LAUNCH).is_file() else now
    before = launch.agreed(known if checkpoints(work) else now)
    if before["mode"] != mode or (mode != "ddp" and before != now):
        raise CheckpointError(
            f"{work}: was begun by {before['processes']} processes ({before['mode']}), and the state of its optimiser "
            f"is kept so; this is {now['processes']} ({mode}). Start it as it was begun, or remove that directory to "
            "begin the stage anew"
        )
    if launch.is_main():
        work.mkdir(parents=True, exist_ok=True)
        write_json(work / LAUNCH, before)
    rows = per_device * accumulated * before["processes"]
    steps = -(-rows // (per_device * now["processes"]))
    if rows % (steps * now["processes"]):
        raise CheckpointError(
            f"{work}: was begun by {before['processes']} processes in steps of {rows}; {now['processes']} processes "
            f"cannot make steps of that size. Start a number of them that divides {rows}"
        )
    return rows // (steps * now["processes"]), steps


def fit(trainer: Trainer, work: Path) -> None:
    """Trains, from the last whole checkpoint in `work` where there is one."""
    trainer.remove_callback(PrinterCallback)  # `MetricsLog` prints the same, one line a step
    checkpoint = launch.agreed(last_checkpoint(work) if launch.is_main() else None)
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
        elif key == "optim" and (wrong := _wrong_optimizer(str(section.trainer[key]))):
            yield f"{stage}.trainer.optim", wrong


def _wrong_optimizer(name: str) -> str | None:
    """Why an optimiser cannot be used, where it cannot."""
    known = [one.value for one in OptimizerNames]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        return f"no optimiser of transformers{f'; did you mean {close[0]!r}?' if close else ''}"
    of_bitsandbytes = "bnb" in name or name.startswith(("paged_", "lion_", "ademamix")) or name == "adamw_8bit"
    if of_bitsandbytes and find_spec("bitsandbytes") is None:
        return f"{name} needs bitsandbytes: pip install 'rlhf-kit[quant]'"
    return None
