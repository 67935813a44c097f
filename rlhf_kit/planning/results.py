"""What a plan says: frozen, and as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

__all__ = ["PARTS", "Change", "PhaseMemory", "Plan", "StagePlan", "Work"]

PARTS = {
    "base": "base",
    "adapters": "adapters and heads",
    "gradients": "gradients",
    "optimizer": "optimiser state",
    "states": "states below the adapters",
    "activations": "activations",
    "logits": "logits",
    "cache": "KV cache",
    "ordered": "matrices in order",
    "workspace": "workspace",
    "gathered": "gathered parts of the base",
    "loading": "the file that is read",
    "libraries": "libraries",
    "kept": "kept by malloc",
}
"""The parts of a device's memory and their names for people."""


@dataclass(frozen=True)
class PhaseMemory:
    """Memory of a device at the worst moment of a phase.

    Attributes:
        name: of the phase.
        parts: bytes by the names of `PARTS`.
    """

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Work:
    """How much a stage does.

    Attributes:
        rows: of its data that are learned from; None where nobody says.
        steps: optimiser steps; of PPO, updates.
        tokens: that go through the model in training, padding included; of PPO those of its answers and prompts, once.
        shape: of the largest forward pass, for people.
        flops: of the whole stage, on all devices together.
        seconds: by the throughput given.
        source: how rows and lengths are known.
    """

    rows: int | None
    steps: int | None
    tokens: int | None
    shape: str
    flops: float | None
    seconds: float | None
    source: str


@dataclass(frozen=True)
class StagePlan:
    """A stage.

    Attributes:
        stage: `sft`, `reward` or `ppo`.
        parameters: by role.
        trained: how many of them learn.
        phases: memory of a device, phase by phase.
        host: bytes of the machine's memory that a device's share takes, where something is moved there.
        work: how much there is to do.
        notes: what else one should know.
    """

    stage: str
    parameters: dict[str, int]
    trained: int
    phases: tuple[PhaseMemory, ...]
    host: int
    work: Work
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> PhaseMemory:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            **dataclasses.asdict(self),
            "phases": [{**dataclasses.asdict(phase), "total": phase.total} for phase in self.phases],
            "peak": {"phase": self.peak.name, "bytes": self.peak.total},
        }


@dataclass(frozen=True)
class Change:
    """Settings that make a plan fit, or need less.

    Attributes:
        settings: `section.key=value` of the recipe, or options of the command.
        cost: in words.
        peaks: bytes of a device, stage by stage, with the change.
        fits: whether all stages fit then.
    """

    settings: tuple[str, ...]
    cost: str
    peaks: dict[str, int]
    fits: bool


@dataclass(frozen=True)
class Plan:
    """All stages of a recipe.

    Attributes:
        model: its name.
        source: where its architecture is from.
        dtype: of the base.
        quantization: of the base.
        mode: how devices share; `single` for one.
        device: bytes of a device, where a verdict was asked for.
        changes: what would help, the cheapest first, where something does not fit or only just.
    """

    model: str
    source: str
    dtype: str
    quantization: str | None
    machine: str
    devices: int
    mode: str
    device: int | None
    stages: tuple[StagePlan, ...]
    changes: tuple[Change, ...] = field(default_factory=tuple)

    @property
    def peak(self) -> int:
        """Bytes of the stage that needs most."""
        return max(stage.peak.total for stage in self.stages)

    @property
    def fits(self) -> bool | None:
        """Whether every stage fits into a device; None where none was named."""
        return None if self.device is None else self.peak <= self.device

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            **dataclasses.asdict(self),
            "stages": [stage.as_json() for stage in self.stages],
            "peak": self.peak,
            "fits": self.fits,
        }
