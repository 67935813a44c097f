"""How long a stage takes by the operations that it makes and the bytes that it reads; and what this machine reaches."""

from __future__ import annotations

import time

import torch

__all__ = ["measured_bandwidth", "measured_throughput", "sampling_seconds"]

_SECONDS = 1.0
"""Of each measurement."""
# Rows and widths of a matrix product in the size of a small model's layers: what training on a CPU is made of.
_SHAPE = (1024, 1024, 4096)
_READ = 256 * 2**20


def measured_throughput(dtype: torch.dtype) -> float:
    """Operations a second of matrix products on this machine, the best of a second."""
    rows, inner, outer = _SHAPE
    a, b = torch.zeros(rows, inner, dtype=dtype), torch.zeros(inner, outer, dtype=dtype)
    return 2 * rows * inner * outer / _best(lambda: a @ b)


def measured_bandwidth() -> float:
    """Bytes a second that a sum reads on this machine, the best of a second."""
    source = torch.ones(_READ // 4)
    return _READ / _best(source.sum)


def _best(work: object) -> float:
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()  # type: ignore[operator]
        best = min(best, time.perf_counter() - start)
    return best


def sampling_seconds(
    *, prefill: float, step: float, steps: int, read: float, throughput: float, bandwidth: float | None
) -> float:
    """Seconds of one batch of answers: its prompts are bounded by operations, each further token also by what is read.

    Args:
        prefill: operations of the pass over the prompts.
        step: operations of one token of all answers.
        read: bytes that each such step reads: the weights and half of the full KV cache.
    """
    slowest = step / throughput if bandwidth is None else max(step / throughput, read / bandwidth)
    return prefill / throughput + steps * slowest
