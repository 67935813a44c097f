"""What both trainers are given, and where a run keeps what it makes. The standard library only."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRAINERS = ("kit", "trl")


@dataclass(frozen=True)
class Settings:
    """One training run. Everything but `trainer` and `micro_batch` is the same for both trainers.

    Attributes:
        model: a directory in the Hugging Face layout.
        micro_batch: pairs of one forward and backward pass; `batch` is made of them by accumulation.
        budget: CPU seconds of training. Saving is not counted.
        marks: CPU seconds at which a checkpoint is kept.
        least_epochs: training goes on beyond the budget until these are done, for the comparison at equal epochs.
        fingerprint: of the token ids.
    """

    trainer: str
    seed: int
    model: str
    dtype: str
    attention: str
    pad_token: str
    fingerprint: str
    learning_rate: float
    warmup_steps: int
    batch: int
    micro_batch: int
    checkpointing: bool
    lora: dict[str, Any]
    max_length: int
    budget: float
    marks: tuple[float, ...]
    least_epochs: int

    def write(self, run: Path) -> None:
        """Keeps the settings beside what they lead to."""
        write_json(run / "settings.json", dataclasses.asdict(self))

    @classmethod
    def read(cls, run: Path) -> Settings:
        """The settings of a run."""
        values = read_json(run / "settings.json")
        return cls(**{**values, "marks": tuple(values["marks"])})


@dataclass(frozen=True)
class Pair:
    """Token ids of a prompt with its better and its worse answer; `key` names the prompt."""

    key: str
    prompt: list[int]
    better: list[int]
    worse: list[int]

    @property
    def tokens(self) -> int:
        """Of both texts, the prompt counted with each."""
        return 2 * len(self.prompt) + len(self.better) + len(self.worse)


def read_pairs(run: Path, side: str) -> list[Pair]:
    """The pairs of one side (`training` or `heldout`) of the seed that a run belongs to."""
    return [Pair(**row) for row in read_json(run.parent / "data.json")[side]]


def checkpoints(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The checkpoints of a run with what is known of each, in the order of training."""
    found = [path for path in (run / "checkpoints").glob("step-*") if (path / "meta.json").is_file()]
    return [(path, read_json(path / "meta.json")) for path in sorted(found)]


def is_finished(run: Path) -> bool:
    """Whether its training came to its end."""
    return (run / "done.json").is_file()


def start_anew(run: Path) -> None:
    """Removes what an interrupted run left; only a folder that holds such a run, or nothing, is touched."""
    if run.exists() and any(run.iterdir()) and not (run / "settings.json").is_file():
        raise SystemExit(f"{run}: holds something else than a run of this benchmark; choose another --out")
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(json.dumps(value), encoding="utf-8")
    os.replace(scratch, path)
