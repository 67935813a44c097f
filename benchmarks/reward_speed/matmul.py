"""How fast this machine multiplies matrices of the model's shapes: `python -m reward_speed.matmul SETTINGS ROWS`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch
from transformers import AutoConfig

from reward_speed.common import MARK, Settings, prepare


def shapes(model: str) -> list[tuple[int, int]]:
    """(inputs, outputs) of the linear layers of one block of a Llama-type model."""
    config = AutoConfig.from_pretrained(model)
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return [(hidden, query), (hidden, key), (hidden, key), (query, hidden), *[(hidden, inner)] * 2, (inner, hidden)]


def rate(rows: int, linears: list[tuple[int, int]], dtype: torch.dtype, seconds: float = 0.3) -> float:
    """GFLOP/s of one block's products, forward (x W') and backward (g W), each the best of many rounds."""
    spent, operations = 0.0, 0
    for inputs, outputs in linears:
        weight = torch.randn(outputs, inputs, dtype=dtype)
        x, gradient = torch.randn(rows, inputs, dtype=dtype), torch.randn(rows, outputs, dtype=dtype)
        spent += _best(lambda: x @ weight.T, seconds) + _best(lambda: gradient @ weight, seconds)  # noqa: B023
        operations += 4 * rows * inputs * outputs
    return operations / spent / 1e9


def _best(product: Callable[[], torch.Tensor], seconds: float) -> float:
    """Seconds of the fastest of all rounds in a while; other load on the machine hits some of them only."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Prints GFLOP/s, and what a token costs in training."""
    settings, rows = Settings.of_command_line(), int(sys.argv[2])
    prepare(settings)
    linears, rank = shapes(settings.model), settings.lora["r"]
    layers = AutoConfig.from_pretrained(settings.model).num_hidden_layers
    base = layers * sum(a * b for a, b in linears)
    adapter = layers * sum((a + b) * rank for a, b in linears)
    found = {
        "gflops": rate(rows, linears, getattr(torch, settings.dtype)),
        "rows": rows,
        "base_parameters": base,
        "adapter_parameters": adapter,
        "flop_per_token": 4 * base + 6 * adapter,
    }
    print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
