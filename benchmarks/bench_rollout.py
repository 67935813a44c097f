"""The kit's sampling loop beside transformers' `generate`: the same model, prompts and lengths, in one run.

    python benchmarks/bench_rollout.py [--rows 16] [--tokens 48]

Ends with one JSON line. `time_ratio` is ours / theirs, the best of three rounds each, in turns; below 1 is faster. A
tiny model from a config would measure Python alone, so the model is the quickstart's.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from rlhf_kit import load, load_backbone, load_recipe
from rlhf_kit.data import Encoder
from rlhf_kit.models import Backbone
from rlhf_kit.rollout import sample

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"


def ours(backbone: Backbone, prompts: list[list[int]], tokens: int) -> int:
    """Tokens sampled by the kit's loop."""
    return sum(map(len, sample(backbone, prompts, max_new_tokens=tokens)))


def theirs(backbone: Backbone, prompts: list[list[int]], tokens: int) -> int:
    """Useful tokens (EOS included, what follows it not) sampled by `generate` from the whole softmax."""
    tokenizer, width = backbone.tokenizer, max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with torch.no_grad():
        whole = backbone.base.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    new = whole[:, width:].tolist()
    return sum(row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row) for row in new)


def seconds(run: Callable[[Backbone, list[list[int]], int], int], *arguments: object) -> tuple[float, int]:
    """Wall time of one round and the useful tokens it made."""
    start = time.perf_counter()
    count = run(*arguments)  # type: ignore[arg-type]
    return time.perf_counter() - start, count


def main() -> None:
    """Measures both in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args()
    recipe = load_recipe(RECIPE)
    backbone = load_backbone(recipe.model)
    encoder = Encoder(backbone.tokenizer, max_prompt_length=recipe.data.max_prompt_length)
    prompts = [encoder.prompt(p.prompt) for p in load(recipe.data.prompts, "prompt")[: arguments.rows]]
    times: dict[str, list[float]] = {"kit": [], "generate": []}
    rates: dict[str, list[float]] = {"kit": [], "generate": []}
    for _ in range(3):
        for name, run in (("kit", ours), ("generate", theirs)):
            spent, count = seconds(run, backbone, prompts, arguments.tokens)
            times[name].append(spent)
            rates[name].append(count / spent)
    print(
        json.dumps(
            {
                "benchmark": "rollout",
                "rows": arguments.rows,
                "tokens": arguments.tokens,
                "dtype": str(backbone.base.dtype),
                "seconds_kit": round(min(times["kit"]), 2),
                "seconds_generate": round(min(times["generate"]), 2),
                "useful_tokens_per_second_kit": round(max(rates["kit"]), 1),
                "useful_tokens_per_second_generate": round(max(rates["generate"]), 1),
                "time_ratio": round(min(times["kit"]) / min(times["generate"]), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
