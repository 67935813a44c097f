"""What both sides are given, and how both are measured. It does not import the kit: the peer's environment lacks it."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = "measured: "


@dataclass(frozen=True)
class Settings:
    """One process of one side.

    Attributes:
        model: a directory in the Hugging Face layout.
        k: responses to a prompt.
        steps: timed steps; one more is done before them, which warms up.
        micro_batch: prompts (kit) or pairs (peer) of one forward and backward pass.
        batch: prompts of one step.
        packed: False gives each response of the kit a row of its own.
        keep_memory: malloc's thresholds as the kit's command line raises them.
    """

    model: str
    k: int
    steps: int
    micro_batch: int
    batch: int
    prompt_length: int
    shortest: int
    longest: int
    vocabulary: int
    pad_token: str
    eos_token_id: int
    dtype: str
    attention: str
    checkpointing: bool
    packed: bool
    keep_memory: bool
    threads: int
    lora: dict[str, Any]

    @classmethod
    def of_command_line(cls) -> Settings:
        """The settings that the caller put into the one argument."""
        return cls(**json.loads(sys.argv[1]))

    def argument(self) -> str:
        """The other way round."""
        return json.dumps(dataclasses.asdict(self))

    @property
    def pairs(self) -> int:
        """All pairs of all prompts of a step."""
        return self.batch * self.k * (self.k - 1) // 2


@dataclass(frozen=True)
class Item:
    """A prompt and its K responses, the best first, as token ids; each response ends with EOS."""

    prompt: list[int]
    responses: list[list[int]]


def items(settings: Settings) -> list[Item]:
    """The same prompts and responses in every process; those of K = 4 begin as those of K = 2 do."""
    found = []
    for number in range(settings.batch):
        rng = random.Random(number)

        def text(length: int, rng: random.Random = rng) -> list[int]:
            return [rng.randrange(settings.eos_token_id + 1, settings.vocabulary) for _ in range(length)]

        prompt = text(settings.prompt_length)
        responses = []
        for _ in range(settings.k):
            responses.append([*text(rng.randint(settings.shortest, settings.longest) - 1), settings.eos_token_id])
        found.append(Item(prompt, responses))
    return found


def prepare(settings: Settings) -> None:
    """Threads and memory, before the model is loaded."""
    import torch

    torch.set_num_threads(settings.threads)
    if settings.keep_memory and sys.platform == "linux":  # as in rlhf_kit/process.py
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 1 << 30)
        libc.mallopt(-3, 32 << 20)


def arguments(settings: Settings, folder: str, micro_batches: int) -> dict[str, Any]:
    """The training arguments that are the same for both trainers."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": micro_batches,
        "max_steps": settings.steps + 1,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "seed": 0,
        "data_seed": 0,
        "bf16": settings.dtype == "bfloat16",
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def memory(field: str) -> float:
    """MiB of this process: `VmRSS` now, `VmHWM` at its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("bench_reward needs Linux: memory is read from /proc/self/status")


def measure(trainer: Any, count: Callable[[Any], tuple[int, int]], **notes: Any) -> None:
    """Trains and prints one line: wall and CPU seconds of each step, tokens, memory.

    A step is what lies between the ends of two optimiser steps, so that fetching its data counts. The first one, which
    warms up, is not among the seconds.

    Args:
        trainer: transformers' `Trainer`, each epoch being one step.
        count: of what its collator makes, (real tokens, tokens with padding).
    """
    from transformers import PrinterCallback, TrainerCallback

    clocks: list[tuple[float, float, int, int]] = []
    tokens = [0, 0]
    inner = trainer.data_collator

    def collate(rows: Any) -> Any:
        batch = inner(rows)
        for place, value in enumerate(count(batch)):
            tokens[place] += value
        return batch

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clocks.append((time.perf_counter(), time.process_time(), *tokens))

    trainer.data_collator = collate
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Clock())
    before, before_peak = memory("VmRSS"), memory("VmHWM")
    trainer.train()
    spans = [[b - a for a, b in zip(first, then, strict=True)] for first, then in itertools.pairwise(clocks)]
    walls, processors, real, padded = ([span[place] for span in spans] for place in range(4))
    if len(set(real)) != 1:
        raise SystemExit(f"the steps were not the same: {real} tokens")
    found = {
        "seconds": walls,
        "cpu_seconds": processors,
        "tokens": real[0],
        "tokens_with_padding": padded,
        "memory_before_mib": before,
        "peak_before_mib": before_peak,
        "peak_mib": memory("VmHWM"),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        **notes,
    }
    print(MARK + json.dumps(found), flush=True)
