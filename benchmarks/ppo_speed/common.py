"""What all sides are given, and how all are measured. It does not import the kit: the peer's environment lacks it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from reward_speed.common import MARK, memory

PARTS = ("generate", "score", "train")


@dataclass(frozen=True)
class Settings:
    """One process of one side.

    Attributes:
        model: a directory in the Hugging Face layout; its tokenizer is used even where `config` is given.
        config: fields of a `LlamaConfig`: a model of random weights instead of those of `model`.
        updates: timed updates; one more is done before them, which warms up.
        batch: episodes of an update.
        mini_batch: episodes of one optimiser step, and of one forward and backward pass.
        value: the value model: `shared` or `adapter` (kit), `full` or `lora` (peer).
        keep_memory: malloc's thresholds as the kit's command line raises them.
    """

    model: str
    config: dict[str, Any] | None
    updates: int
    batch: int
    mini_batch: int
    epochs: int
    prompt_length: int
    response_length: int
    temperature: float
    vocabulary: int
    pad_token: str
    eos_token_id: int
    dtype: str
    attention: str
    value: str
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


def prompts(settings: Settings) -> list[list[int]]:
    """The same prompts in every process, without a token that ends or pads."""
    first = settings.eos_token_id + 1
    return [
        [rng.randrange(first, settings.vocabulary) for _ in range(settings.prompt_length)]
        for rng in map(random.Random, range(settings.batch))
    ]


def arguments(settings: Settings, folder: str) -> dict[str, Any]:
    """The arguments that have the same name and meaning in both trainers; both keep their own default for the rest."""
    return {
        "output_dir": folder,
        "total_episodes": (settings.updates + 1) * settings.batch,
        "num_ppo_epochs": settings.epochs,
        "response_length": settings.response_length,
        "temperature": settings.temperature,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "seed": 0,
        "bf16": settings.dtype == "bfloat16",
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


@dataclass
class Meter:
    """Seconds of every update, and memory before and after training."""

    walls: list[float] = field(default_factory=list)
    processors: list[float] = field(default_factory=list)
    imported_mib: float = field(default_factory=lambda: memory("VmRSS"))
    loaded_mib: float = 0.0
    loaded_peak_mib: float = 0.0

    def start(self) -> None:
        """Everything is loaded; training begins."""
        self.loaded_mib, self.loaded_peak_mib = memory("VmRSS"), memory("VmHWM")
        self.tick()

    def tick(self) -> None:
        """An update has ended."""
        self.walls.append(time.perf_counter())
        self.processors.append(time.process_time())

    def report(self, parts: list[dict[str, float]], lengths: list[float], **notes: Any) -> None:
        """Prints one line; the first update, which warms up, is not among the seconds.

        Args:
            parts: the seconds of generate, score and train of every update.
            lengths: the mean response of every update, in tokens.
        """
        seconds, cpu_seconds = spans(self.walls)[1:], spans(self.processors)[1:]
        if len(parts) != len(seconds) + 1:
            raise SystemExit(f"{len(parts)} updates have a breakdown, {len(seconds) + 1} were made")
        found = {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "parts": parts[1:],
            "response_length": lengths,
            "imported_mib": self.imported_mib,
            "loaded_mib": self.loaded_mib,
            "loaded_peak_mib": self.loaded_peak_mib,
            "peak_mib": memory("VmHWM"),
            **notes,
        }
        print(MARK + json.dumps(found), flush=True)


def spans(clocks: list[float]) -> list[float]:
    """From each clock to the next."""
    return [after - before for before, after in itertools.pairwise(clocks)]
