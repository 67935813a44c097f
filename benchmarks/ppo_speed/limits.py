"""The least time that this machine allows for an update: `python -m ppo_speed.limits SETTINGS`.

Training and scoring are bounded by the matrix products of the blocks' linear layers and of the output head at the
rows of a minibatch, decoding by reading every weight once a step. Attention, norms, softmax and the optimiser are not
counted, so nothing reaches these times.

Operations a token, with N weights of the blocks' linear layers, M of their adapters and E of the head: 2 (N + M)
forward; in training 4 N + 6 M where the base is frozen (no gradient of its own), 6 N where the model is trained in
full; the head counts at the response's positions only, 2 E forward and 4 E in training.

With adapters on the upper half of the layers only, the lower half's forward pass is made once in scoring, decoding
makes it anew, and training makes neither it nor its backward pass.

Passes that cannot be left out: reference (its head included) and reward model, and the value model where it is one of
its own; the policy's log-probabilities and shared values could come out of decoding.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import torch
from reward_speed.common import MARK, prepare
from reward_speed.matmul import rate, shapes
from transformers import AutoConfig

from ppo_speed.common import Settings

ADAPTER_BYTES = 4  # adapters are float32 on both sides


@dataclass(frozen=True)
class Sizes:
    """Weights that take part in matrix products: N, M and E of the module's docstring."""

    base: int
    adapter: int
    head: int

    @classmethod
    def of(cls, settings: Settings) -> Sizes:
        """Those of the settings' model."""
        config, linears, rank = AutoConfig.from_pretrained(settings.model), shapes(settings.model), settings.lora["r"]
        return cls(
            config.num_hidden_layers * sum(a * b for a, b in linears),
            config.num_hidden_layers * sum((a + b) * rank for a, b in linears),
            config.hidden_size * config.vocab_size,
        )


@dataclass(frozen=True)
class Machine:
    """Operations a second in the blocks and in the head, bytes a second."""

    blocks: float
    head: float
    reading: float
    copying: float


def bandwidth(megabytes: int = 512, seconds: float = 1.5) -> tuple[float, float]:
    """Bytes a second of a sum, which reads, and of a copy, which reads and writes (both counted); the best of many."""
    source = torch.ones(megabytes * 2**20 // 4)
    target = torch.empty_like(source)
    size, best = source.numel() * source.element_size(), [float("inf")] * 2
    for place, work in enumerate((lambda: source.sum(), lambda: target.copy_(source))):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            work()
            best[place] = min(best[place], time.perf_counter() - start)
    return size / best[0], 2 * size / best[1]


def measured(settings: Settings) -> Machine:
    """The machine at the rows of a minibatch."""
    dtype = getattr(torch, settings.dtype)
    config = AutoConfig.from_pretrained(settings.model)
    rows = settings.mini_batch * (settings.prompt_length + settings.response_length)
    answers = settings.mini_batch * settings.response_length
    return Machine(
        1e9 * rate(rows, shapes(settings.model), dtype),
        1e9 * rate(answers, [(config.hidden_size, config.vocab_size)], dtype, seconds=1.0),
        *bandwidth(),
    )


def least(settings: Settings, sizes: Sizes, machine: Machine) -> dict[str, dict[str, float]]:
    """Seconds of generate, score and train for each kind of value model."""
    answers = settings.batch * settings.response_length
    tokens = settings.batch * (settings.prompt_length + settings.response_length)
    forward = tokens * 2 * (sizes.base + sizes.adapter) / machine.blocks
    frozen = settings.epochs * tokens * (4 * sizes.base + 6 * sizes.adapter) / machine.blocks
    full = settings.epochs * tokens * 6 * sizes.base / machine.blocks
    policy = frozen + settings.epochs * answers * 4 * sizes.head / machine.head
    reference = tokens * 2 * sizes.base / machine.blocks + answers * 2 * sizes.head / machine.head
    width = getattr(torch, settings.dtype).itemsize
    weights = width * (sizes.base + sizes.head) + ADAPTER_BYTES * sizes.adapter
    prompts = settings.batch * settings.prompt_length * 2 * (sizes.base + sizes.adapter) / machine.blocks
    generate = prompts + settings.response_length * weights / machine.reading
    score = {"shared": reference + forward, "adapter": reference + 2 * forward, "full": reference + 2 * forward}
    train = {"shared": policy, "adapter": policy + frozen, "full": policy + full}
    found = {kind: {"generate": generate, "score": score[kind], "train": train[kind]} for kind in score}
    # Half of every pass of the layers, one lower half in scoring, half of the adapters' bytes in decoding.
    head = {"score": answers * 2 * sizes.head / machine.head, "train": settings.epochs * answers * 4 * sizes.head}
    found["upper_half"] = {
        "generate": generate - settings.response_length * ADAPTER_BYTES * sizes.adapter / 2 / machine.reading,
        "score": tokens * sizes.base / machine.blocks + (score["shared"] - head["score"]) / 2 + head["score"],
        "train": frozen / 2 + head["train"] / machine.head,
    }
    return found


def main() -> None:
    """Prints the machine's rates and the least seconds."""
    settings = Settings.of_command_line()
    prepare(settings)
    machine, sizes = measured(settings), Sizes.of(settings)
    found = {
        "gflops": machine.blocks / 1e9,
        "head_gflops": machine.head / 1e9,
        "read_gb_per_second": machine.reading / 1e9,
        "copy_gb_per_second": machine.copying / 1e9,
        "least_seconds": least(settings, sizes, machine),
    }
    print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
