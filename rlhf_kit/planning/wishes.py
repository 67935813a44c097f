"""What a plan is asked: which devices, how many, how they share the work, how fast they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rlhf_kit.errors import RlhfKitError

__all__ = ["MODES", "Mode", "Wishes", "bytes_of"]

Mode = Literal["ddp", "zero2", "zero3", "zero3_offload", "fsdp2"]
MODES: tuple[Mode, ...] = ("ddp", "zero2", "zero3", "zero3_offload", "fsdp2")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(k|m|g|t)?(i)?b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class Wishes:
    """The question.

    Attributes:
        device: bytes of memory of a device; None asks for no verdict.
        gpu: the devices are GPUs; else the stages run on this machine's CPU.
        devices: how many there are.
        mode: how several share what is kept, by the names of the launch files.
        throughput: operations a second that a device reaches in training; None leaves times out.
        bandwidth: bytes a second that a device reads, which bounds sampling.
        rows: how many rows a field of `data` has, where the data are not here.
    """

    device: int | None = None
    gpu: bool = False
    devices: int = 1
    mode: Mode = "ddp"
    throughput: float | None = None
    bandwidth: float | None = None
    rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def shards_base(self) -> bool:
        """Whether each device keeps a part of the base only."""
        return self.devices > 1 and self.mode in ("zero3", "zero3_offload", "fsdp2")

    @property
    def joint(self) -> bool:
        """Whether PPO has one backward pass for all roles, as it has on engines that share parameters out."""
        return self.devices > 1 and self.mode != "ddp"


def bytes_of(text: str) -> int:
    """Bytes of `24GB` (10^9 each), `80GiB` (2^30 each) or a plain number.

    Raises:
        RlhfKitError: it is none of these.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise RlhfKitError(f"{text}: no size of a memory; write 24GB or 80GiB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** _POWERS[(match[2] or "").lower()])
