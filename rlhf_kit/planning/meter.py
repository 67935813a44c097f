"""What a piece of code would hold in memory at its worst moment, and how much it computes: counted on fake tensors."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

__all__ = ["ACTIVATIONS", "LOGITS", "WORKSPACE", "Event", "Meter"]

ACTIVATIONS, LOGITS, WORKSPACE = "activations", "logits", "workspace"

Event = tuple[int, int]
"""A number and bytes: a block of memory was taken (bytes 0 and more) or given back (-1)."""

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Meter(TorchDispatchMode):
    """Adds up the bytes of every storage from the moment it is made to the moment it is given back.

    A storage is `workspace` until autograd saves it for the backward pass (then `activations`), or until somebody
    says what it is; whatever is as wide as the vocabulary, or as one of the parts that losses cut it into, is `logits`.

    Args:
        widths: of logits.
        record: keeps every taking and giving back in `events`, in their order.
    """

    def __init__(self, widths: frozenset[int], *, record: bool = False) -> None:
        super().__init__()
        self.widths = widths
        self.live: dict[str, int] = {}
        self.total = 0
        self.peak_total = 0
        self.peak: dict[str, int] = {}
        self.flops = 0
        self.events: list[Event] | None = [] if record else None
        self._number = 0
        self._kinds: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            # What code asks of values: whether all of a mask is real (no: batches are padded), or a count.
            return False if args[0].dtype == torch.bool else 1
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        self.flops += _flops(func._overloadpacket, args, kwargs, made)
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self._add(one)
        return made

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._kinds:
            return
        wide = tensor.dim() > 1 and tensor.size(-1) in self.widths
        self._number += 1
        self._book(key, LOGITS if wide else WORKSPACE, storage.nbytes())
        if self.events is not None:
            self.events.append((self._number, storage.nbytes()))
        weakref.finalize(storage, self._gone, key, self._number).atexit = False

    def _book(self, key: int, kind: str, size: int) -> None:
        self._kinds[key] = (kind, size)
        self.live[kind] = self.live.get(kind, 0) + size
        self.total += size
        if self.total > self.peak_total:
            self.peak_total, self.peak = self.total, dict(self.live)

    def _gone(self, key: int, number: int) -> None:
        kind, size = self._kinds.pop(key)
        self.live[kind] -= size
        self.total -= size
        if self.events is not None:
            self.events.append((number, -1))

    def call(self, tensor: Tensor, kind: str) -> None:
        """Says what the storage of a tensor is."""
        key = tensor.untyped_storage()._cdata
        before, size = self._kinds[key]
        self._kinds[key] = (kind, size)
        self.live[before] -= size
        self.live[kind] = self.live.get(kind, 0) + size

    def start(self) -> None:
        """Forgets the peak and the operations so far."""
        self.peak_total, self.peak, self.flops = self.total, dict(self.live), 0

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Inside, what autograd saves is called activations."""

        def saved(tensor: Tensor) -> Tensor:
            kind, _ = self._kinds.get(tensor.untyped_storage()._cdata, ("", 0))
            if kind == WORKSPACE:
                self.call(tensor, ACTIVATIONS)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(saved, _same):
            yield


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _flops(packet: Any, args: Any, kwargs: Any, made: Any) -> int:
    """Multiplications and additions of a matrix product or an attention, by torch's own counter."""
    if packet is _ATTENTION:
        return int(sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape))
    if packet is _ATTENTION_BACKWARD:
        return int(sdpa_backward_flop_count(args[0].shape, args[1].shape, args[2].shape, args[3].shape))
    count: Callable[..., int] | None = flop_registry.get(packet)
    return 0 if count is None else int(count(*args, **kwargs, out_val=made))
