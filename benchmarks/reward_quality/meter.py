"""The budget of a training run, counted in CPU seconds of its process, and the checkpoints at its marks."""

from __future__ import annotations

import math
import os
import resource
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .settings import Pair, Settings, write_json


def one_core() -> None:
    """One thread on the core that the caller gave to this process: CPU seconds are the wall seconds of a quiet core."""
    torch.set_num_threads(1)
    if len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def arguments(settings: Settings, run: Path) -> dict[str, Any]:
    """The training arguments that are the same for both trainers."""
    return {
        "output_dir": str(run / "trainer"),
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": settings.batch // settings.micro_batch,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": settings.warmup_steps,
        "num_train_epochs": 1000,  # the budget ends it
        "weight_decay": 0.0,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "bf16": settings.dtype == "bfloat16",
        "use_cpu": True,
        "gradient_checkpointing": settings.checkpointing,
        "save_strategy": "no",
        "logging_steps": 5,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


class Meter(TrainerCallback):  # type: ignore[misc]
    """Keeps checkpoints at the marks and at the end of each epoch, and stops when the budget is used.

    A step is never cut: what is kept at a mark is the state after the first step that ends at or after it, with the CPU
    seconds that were really used. The trainer with the longer steps is thus given a little more.

    Args:
        save: writes adapter and head into a directory.
    """

    def __init__(self, settings: Settings, run: Path, pairs: list[Pair], save: Callable[[Path], None]) -> None:
        self._settings, self._run, self._save = settings, run, save
        self._pairs, self._tokens = len(pairs), sum(pair.tokens for pair in pairs)
        self._marks = sorted({*settings.marks, settings.budget})
        self._not_counted = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Starts the clocks."""
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    @property
    def _used(self) -> float:
        return time.process_time() - self._cpu - self._not_counted

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """After each step of the optimiser: a checkpoint where one is due, the end where the budget is used."""
        used, started = self._used, time.process_time()
        wall = time.perf_counter() - self._wall
        epochs, rest = divmod(state.global_step, math.ceil(self._pairs / self._settings.batch))
        passed = [mark for mark in self._marks if mark <= used]
        self._marks = self._marks[len(passed) :]
        if passed or rest == 0:
            meta = {"step": state.global_step, "epoch": state.epoch, "epochs_done": epochs if rest == 0 else None}
            self._keep({**meta, "marks": passed, "cpu_seconds": used, "wall_seconds": wall})
        if used >= self._settings.budget and epochs >= self._settings.least_epochs:
            control.should_training_stop = True
        self._not_counted += time.process_time() - started

    def _keep(self, meta: dict[str, Any]) -> None:
        place = self._run / "checkpoints" / f"step-{meta['step']:06d}"
        scratch = place.with_name(f".{place.name}.partial")
        shutil.rmtree(scratch, ignore_errors=True)
        self._save(scratch)
        write_json(scratch / "meta.json", meta)
        scratch.rename(place)
        print(
            f"{self._settings.trainer} seed {self._settings.seed}: step {meta['step']}, epoch {meta['epoch']:.2f}, "
            f"{meta['cpu_seconds']:.0f} CPU s, {meta['wall_seconds']:.0f} s",
            flush=True,
        )

    def fit(self, trainer: Trainer, notes: dict[str, Any]) -> None:
        """Trains, and writes `done.json` at the end."""
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)
        trainer.train()
        used, state = self._used, trainer.state
        seen = state.epoch * self._pairs
        packages = ("torch", "transformers", "peft", "accelerate", "trl")
        write_json(
            self._run / "done.json",
            {
                "trainer": self._settings.trainer,
                "seed": self._settings.seed,
                "steps": state.global_step,
                "epochs": state.epoch,
                "cpu_seconds": used,
                "wall_seconds": time.perf_counter() - self._wall,
                "cpu_seconds_an_epoch": used / state.epoch,
                "pairs_a_cpu_second": seen / used,
                "text_tokens_a_cpu_second": self._tokens * state.epoch / used,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
                "versions": {name: version(name) for name in packages},
                "losses": [[entry["step"], entry["loss"]] for entry in state.log_history if "loss" in entry],
                **notes,
            },
        )
