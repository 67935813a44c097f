"""Useful tokens a second: the kit's own loop, transformers' `generate` and continuous batching, and vLLM on the CPU.

    python benchmarks/bench_rollout.py [--run runs/quickstart] [--vllm-python PYTHON | --vllm URL] [--merged]

All answer the same prompts of mixed length (20 to 120 tokens) in one run, in turns, one round that warms up and three
that count, with the same number of threads, from the whole vocabulary at the recipe's temperature; one after another,
so that nobody else computes meanwhile. A tiny model from a config would measure Python alone, so it is the quickstart's
model under an adapter: the policy of the run that is named, or an untrained adapter of the same shape without one
(it answers as the base does, which seldom stops early).

Each response ends where the policy ends it, or at `--tokens`. Every sampler draws for itself, so that lengths are the
same in distribution and not row by row; hence tokens a second are compared, and useful ones only: EOS counts, padding
after it does not, nor do rows that are computed on. `response_length` says what each had. Forced lengths would be
equal, but no engine stops by them as it does by EOS. `--merged` adds the peers with the adapter merged into the base,
which PPO cannot have for nothing: it learns between two rollouts.

A decoding step reads every weight once. `bandwidth_share` is what the steps after the first token read in the time
that they took, by what this machine reads (a sum over 512 MiB): (bytes of base and adapter) x steps / seconds /
bandwidth. Its seconds are those of a round less those of a round of one token, which is what reading the prompts costs;
keys and values are not counted. The steps are those of batches of like length, the longest response each.

Wanted: `ratio_to_generate` at least 1.25. What could not run says so under its name. The last line is JSON; it ends
with 0 whatever the ratios are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from ppo_speed.limits import bandwidth
from rollout_speed.asked import POLICY, Asked, backbone_with, prompts_of
from rollout_speed.samplers import Sampler, continuous, generate, kit, peers_model
from rollout_speed.served import Server, serving, vllm

from rlhf_kit import Recipe, load_recipe
from rlhf_kit.data import Encoder
from rlhf_kit.models import Backbone
from rlhf_kit.models.sources import resolve
from rlhf_kit.process import prepare_torch

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
BAR = 1.25
SHORTEST, LONGEST = 20, 120
IN_BATCHES = ("kit", "generate", "generate_merged")
"""Samplers whose steps are known: batches of like length, each as long as its longest response."""
Figures = dict[str, Any]


@dataclass
class Timed:
    """What a sampler did in its rounds.

    Attributes:
        seconds, lengths: of each round; tokens of each response, in the order of the prompts.
        first: seconds of a round of one token, measured once, after the round that warms up.
        failure: why it could not, if it could not.
    """

    seconds: list[float] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    first: float = 0.0
    failure: str | None = None


def measure(samplers: dict[str, Sampler], asked: Asked, rounds: int) -> dict[str, Timed]:
    """All in turns. Whoever fails is left out from then on."""
    found = {name: Timed() for name in samplers}
    for number in range(rounds + 1):
        for name, sampler in samplers.items():
            timed = found[name]
            if timed.failure is not None:
                continue
            torch.manual_seed(number)
            try:
                seconds, lengths = _clocked(sampler, asked)
                if number == 0 and name in IN_BATCHES:
                    timed.first = _clocked(sampler, replace(asked, most=1))[0]
            except Exception as failure:
                timed.failure = f"{type(failure).__name__}: {failure}"
                print(f"{name}: {timed.failure}", file=sys.stderr, flush=True)
                continue
            rate = sum(lengths) / seconds
            print(f"round {number}, {name}: {seconds:.2f} s, {rate:.0f} tokens/s, longest {max(lengths)}", flush=True)
            if number > 0:  # the first one warms up
                timed.seconds.append(seconds)
                timed.lengths.append(lengths)
    return found


def _clocked(sampler: Sampler, asked: Asked) -> tuple[float, list[int]]:
    start = time.perf_counter()
    responses = sampler(asked)
    return time.perf_counter() - start, list(map(len, responses))


def figures_of(name: str, timed: Timed, asked: Asked, weights: int, reading: float) -> Figures:
    """What one sampler reached: medians of the rounds."""
    if timed.failure is not None:
        return {"failed": timed.failure}
    rates = [sum(lengths) / seconds for lengths, seconds in zip(timed.lengths, timed.seconds, strict=True)]
    found: Figures = {
        "useful_tokens_per_second": round(median(rates), 1),
        "of_each_round": [round(rate, 1) for rate in rates],
        "seconds": round(median(timed.seconds), 2),
        "response_length": round(mean(length for lengths in timed.lengths for length in lengths), 1),
        "cut_off": round(mean(length == asked.most for lengths in timed.lengths for length in lengths), 3),
    }
    if name in IN_BATCHES:
        steps = [_steps(asked, lengths) for lengths in timed.lengths]
        spent = [max(1e-9, whole - timed.first) for whole in timed.seconds]
        shares = [weights * count / seconds / reading for count, seconds in zip(steps, spent, strict=True)]
        found["seconds_of_a_step"] = round(median(s / n for s, n in zip(spent, steps, strict=True)), 4)
        found["seconds_of_the_prompts"] = round(timed.first, 2)
        found["bandwidth_share"] = round(median(shares), 3)
    return found


def _steps(asked: Asked, lengths: list[int]) -> int:
    """Decoding steps after the first token of each batch."""
    order = sorted(range(len(lengths)), key=lambda row: len(asked.prompts[row]))
    batches = (order[start : start + asked.beside] for start in range(0, len(order), asked.beside))
    return sum(max(lengths[row] for row in batch) - 1 for batch in batches)


def weights_read(backbone: Backbone) -> int:
    """Bytes that a decoding step reads: the base (tied embeddings once, as the head) and the policy's adapter."""
    ours = {id(parameter) for parameter in backbone.adapter_parameters(POLICY)}
    head = backbone.base.get_output_embeddings().weight
    embedding = backbone.base.get_input_embeddings().weight
    return sum(
        parameter.numel() * parameter.element_size()
        for name, parameter in backbone.base.named_parameters()
        if ("lora_" not in name or id(parameter) in ours) and (parameter is head or parameter is not embedding)
    )


def samplers_of(recipe: Recipe, backbone: Backbone, adapter: Path, *, merged: bool) -> dict[str, Sampler]:
    """All that run in this process."""
    pad, eos = backbone.padding_id, int(backbone.tokenizer.eos_token_id)
    found = {"kit": kit(backbone)}
    for ending, how in (("", False), ("_merged", True)) if merged else (("", False),):
        found[f"generate{ending}"] = generate(peers_model(recipe.model, adapter, merged=how), pad, eos)
        # Another model: its attention is replaced by a paged one for good.
        paged = recipe.model.model_copy(update={"attn_implementation": "sdpa"})
        found[f"continuous{ending}"] = continuous(peers_model(paged, adapter, merged=how), pad, eos)
    return found


@contextlib.contextmanager
def server_for(arguments: argparse.Namespace, recipe: Recipe, backbone: Backbone, scratch: Path) -> Iterator[str]:
    """The URL of vLLM's server."""
    if arguments.vllm is not None:
        yield arguments.vllm
        return
    model = resolve(recipe.model.name_or_path, recipe.model.sha256)
    dtype = str(backbone.base.dtype).removeprefix("torch.")
    length = 2 * LONGEST + arguments.tokens
    server = Server(arguments.vllm_python, model, dtype, arguments.threads, recipe.lora.r, arguments.batch, length)
    with serving(server, scratch / "vllm.log") as url:
        yield url


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished quickstart, whose policy answers")
    parser.add_argument("--rows", type=int, default=64, help="prompts")
    parser.add_argument("--batch", type=int, default=64, help="of them side by side")
    parser.add_argument("--tokens", type=int, default=64, help="of a response at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of all samplers; all cores if left out")
    parser.add_argument("--samplers", nargs="+", help="those of these names only; kit is always among them")
    parser.add_argument("--merged", action="store_true", help="also the peers with the adapter merged")
    served = parser.add_mutually_exclusive_group()
    served.add_argument("--vllm", metavar="URL", help="of a running server; its threads are its own affair")
    served.add_argument("--vllm-python", metavar="PYTHON", type=Path, help="of an environment with vLLM")
    return parser.parse_args()


def main() -> None:
    """Measures all samplers."""
    arguments = parsed()
    prepare_torch()
    torch.set_num_threads(arguments.threads)
    recipe = load_recipe(RECIPE)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        scratch = Path(folder)
        backbone, adapter = backbone_with(recipe, arguments.run, scratch)
        encoder = Encoder(backbone.tokenizer, max_prompt_length=LONGEST)
        prompts = prompts_of(recipe, encoder, arguments.rows, SHORTEST, LONGEST)
        asked = Asked(prompts, arguments.tokens, recipe.ppo.temperature, arguments.batch)
        samplers = samplers_of(recipe, backbone, adapter, merged=arguments.merged)
        if arguments.samplers:
            samplers = {name: one for name, one in samplers.items() if name in {"kit", *arguments.samplers}}
        absent: Figures = {} if arguments.vllm or arguments.vllm_python else {"vllm": {"failed": "not asked for"}}
        if not absent:
            try:
                url = stack.enter_context(server_for(arguments, recipe, backbone, scratch))
                samplers["vllm"] = vllm(url, backbone.tokenizer, adapter, recipe.lora.r, scratch / "adapters")
            except Exception as failure:  # whatever it is, the rest is measured, and the reason is told
                absent["vllm"] = {"failed": f"{type(failure).__name__}: {failure}"}
        reading, weights = bandwidth()[0], weights_read(backbone)
        timed = measure(samplers, asked, arguments.rounds)
        sides = {name: figures_of(name, one, asked, weights, reading) for name, one in timed.items()} | absent
    print(json.dumps(result(sides, asked, arguments, weights, reading, str(backbone.base.dtype))))


def result(
    sides: dict[str, Figures], asked: Asked, arguments: argparse.Namespace, weights: int, reading: float, dtype: str
) -> Figures:
    """The last line."""
    rates = {name: one["useful_tokens_per_second"] for name, one in sides.items() if "failed" not in one}
    lengths = list(map(len, asked.prompts))
    return {
        "benchmark": "rollout",
        **{f"ratio_to_{name}": round(rates["kit"] / rate, 3) for name, rate in rates.items() if name != "kit"},
        "bar": BAR,
        "sides": sides,
        "policy": "untrained adapter" if arguments.run is None else "the run's",
        "rows": len(lengths),
        "batch": asked.beside,
        "tokens": asked.most,
        "temperature": asked.temperature,
        "prompt_length": [min(lengths), round(mean(lengths), 1), max(lengths)],
        "weights_mib": round(weights / 2**20),
        "read_gb_per_second": round(reading / 1e9, 1),
        "dtype": dtype.removeprefix("torch."),
        "threads": arguments.threads,
        "load": [round(value, 1) for value in os.getloadavg()],
    }


if __name__ == "__main__":
    main()
