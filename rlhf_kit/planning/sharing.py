"""What several devices divide among themselves, by the engines' own settings and defaults."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_kit.planning.wishes import Wishes

__all__ = ["Kept", "divided"]

# DeepSpeed's defaults, which recipes/accelerate leaves as they are: parameters that ZeRO-3 has put together at a time,
# and those that it puts together ahead (stage3_max_live_parameters, stage3_prefetch_bucket_size).
_LIVE, _AHEAD = 1_000_000_000, 50_000_000
# Layers that FSDP2 has put together at a time: the one that computes and the next.
_FSDP_LAYERS = 2
FLOAT = 4


@dataclass(frozen=True)
class Kept:
    """What a device keeps through a stage, in bytes.

    Attributes:
        gathered: the most of the base that is put together at a time where it is sharded.
        host: in the memory of the machine, of this device's share.
    """

    base: int
    adapters: int
    gradients: int
    optimizer: int
    gathered: int
    host: int


def divided(whole: Kept, wishes: Wishes, *, parameters: int, layer: int, rest: int) -> Kept:
    """The part of one device.

    DDP copies the gradients into buckets. ZeRO keeps a part of them, a part of the optimiser's state and a float32 copy
    of that part of what learns; ZeRO-3 and FSDP2 keep a part of the base as well, and FSDP2 a part of the adapters.

    Args:
        whole: of one device alone.
        parameters: of the base.
        layer: bytes of its largest decoder layer.
        rest: bytes of all that is no decoder layer.
    """
    n, trained = wishes.devices, whole.gradients
    if n == 1:
        return whole
    if wishes.mode == "ddp":
        return Kept(whole.base, whole.adapters, 2 * trained, whole.optimizer, 0, whole.host)
    copy = trained // n  # float32, as the gradients are
    if wishes.mode == "fsdp2":
        gathered = min(whole.base, rest + _FSDP_LAYERS * layer)
        each = (whole.base // n, whole.adapters // n, trained // n, whole.optimizer // n)
        return Kept(*each, gathered, whole.host // n)
    optimizer, host = whole.optimizer // n + copy, whole.host // n
    if wishes.mode == "zero2":
        return Kept(whole.base, whole.adapters, trained // n, optimizer, 0, host)
    live = min(whole.base, whole.base * (_LIVE + _AHEAD) // parameters)
    adapters = whole.adapters // n + min(whole.adapters, layer)
    if wishes.mode == "zero3_offload":  # parameters and optimiser are in the memory of the machine
        host += optimizer + trained // n + (whole.base + whole.adapters) // n
        return Kept(0, min(whole.adapters, layer), trained // n, 0, live, host)
    return Kept(whole.base // n, adapters, trained // n, optimizer, live, host)
