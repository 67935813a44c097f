"""A training step of the kit's `RewardTrainer` beside one of TRL's over all pairs of the same prompts.

    python benchmarks/bench_reward.py [--k 6|all] [--rounds 2] [--threads N]      (make bench-reward [K=all])

SmolLM2-135M of the quickstart, LoRA (r = 16) on every linear layer of every block, 8 prompts of 160 tokens with K
responses of 16 to 48 tokens (drawn once, the same ids for both), bfloat16 where this CPU multiplies it, else float32.
One step is forward, backward and AdamW over the 8 prompts: the kit takes 2 prompts a micro-batch and accumulates 4,
TRL takes 8 pairs and accumulates until all 8 C(K,2) pairs were seen. Each gets the attention that serves it best
here: the kit sdpa (smaller; eager is a sixth faster), TRL eager (a tenth faster than its default sdpa, and larger:
`--peer-attention sdpa`). Neither uses gradient checkpointing, TRL's default (`--checkpointing`); both have the
thresholds of malloc that the kit's command line sets (`--malloc`). What was measured stands in RESULTS.md.
TRL loads the base in that dtype and trains under `bf16=True`, as the kit does; both keep adapters in float32.

Each side runs in processes of its own, TRL's in an environment of its own (`.venv-trl`), in turns. The first step of a
process warms up; the median of the rest counts. Memory is the highest resident size of the process (VmHWM), libraries
and weights included. `cpu_seconds` is the process's own time: with `--threads 1` it says what a quiet core would
need, where others use the machine.

`matmul` is the most tokens a second that this machine's matrix products allow: GFLOP/s of the linear layers' products
at the rows of the kit's micro-batch, over 4 N + 6 M operations a token, N being the weights of the blocks' linear
layers (no gradient of their own: 2 forward, 2 backward) and M those of the adapters. Attention, norms and head are
not counted.

Wanted: `time_ratio` at most 0.08 and `memory_ratio` at most 0.30 for K = 6, `time_ratio` at most 1.0 for K = 2. The
last line is JSON (for `all` that of K = 6, with the others' ratios in `table`); it ends with 0 whatever the ratios
are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from reward_speed.common import MARK, Settings

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "recipes" / "quickstart.yaml"
PEER = HERE.parent / ".venv-trl" / "bin" / "python"
TABLE = (2, 4, 6, 9)
BARS = {2: (1.0, None), 6: (0.08, 0.30)}
PROMPTS, PROMPTS_A_MICRO_BATCH, PAIRS_A_MICRO_BATCH = 8, 2, 8


def common_settings(options: argparse.Namespace) -> Settings:
    """What both sides share: the quickstart's model, every linear layer adapted."""
    from transformers import AutoConfig

    from rlhf_kit import load_recipe
    from rlhf_kit.models.loading import load_tokenizer, resolve_dtype
    from rlhf_kit.models.sources import resolve

    recipe = load_recipe(RECIPE)
    model = resolve(recipe.model.name_or_path, recipe.model.sha256)
    tokenizer = load_tokenizer(recipe.model)
    return Settings(
        model=model,
        k=0,
        steps=0,
        micro_batch=0,
        batch=PROMPTS,
        prompt_length=160,
        shortest=16,
        longest=48,
        vocabulary=AutoConfig.from_pretrained(model).vocab_size,
        pad_token=tokenizer.pad_token,
        eos_token_id=tokenizer.eos_token_id,
        dtype=str(resolve_dtype(options.dtype)).removeprefix("torch."),
        attention="eager",
        checkpointing=False,
        packed=not options.unpacked,
        keep_memory=options.malloc == "both",
        threads=options.threads,
        lora={"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": list(recipe.lora.target_modules)},
    )


def run(python: Path, module: str, settings: Settings, *more: str) -> dict[str, Any]:
    """What one process measured.

    Raises:
        SystemExit: it failed; its last lines are shown.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(settings.threads),
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [str(python), "-m", f"reward_speed.{module}", settings.argument(), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode != 0 or not lines:
        raise SystemExit(
            f"reward_speed.{module} failed ({done.returncode}):\n" + "\n".join(done.stderr.splitlines()[-15:])
        )
    found: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
    return found


def summary(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the steps of all processes of a side, and its highest memory."""
    runs = list(runs)
    seconds = median(value for found in runs for value in found["seconds"])
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(median(value for found in runs for value in found["cpu_seconds"]), 3),
        "steps": sum(len(found["seconds"]) for found in runs),
        "slowest": round(max(value for found in runs for value in found["seconds"]), 3),
        "peak_mib": round(max(found["peak_mib"] for found in runs)),
        "memory_before_mib": round(median(found["memory_before_mib"] for found in runs)),
        "peak_before_mib": round(max(found["peak_before_mib"] for found in runs)),
        "tokens": runs[0]["tokens"],
        "tokens_with_padding": round(median(value for found in runs for value in found["tokens_with_padding"])),
        "tokens_per_second": round(runs[0]["tokens"] / seconds, 1),
        "pairs": runs[0]["pairs"],
        "trained_parameters": runs[0]["trained_parameters"],
        "first_loss": round(runs[0]["losses"][0], 4),
    }


def compare(shared: Settings, k: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turns for one K."""
    kit = replace(
        shared,
        k=k,
        steps=options.kit_steps,
        micro_batch=PROMPTS_A_MICRO_BATCH,
        attention=options.kit_attention,
        checkpointing=options.checkpointing in ("both", "kit"),
    )
    peer = replace(
        kit,
        steps=options.peer_steps,
        micro_batch=PAIRS_A_MICRO_BATCH,
        attention=options.peer_attention,
        checkpointing=options.checkpointing in ("both", "peer"),
    )
    runs: dict[str, list[dict[str, Any]]] = {"kit": [], "peer": [], "matmul": []}
    for number in range(options.rounds):
        for side, python, settings in (("kit", Path(sys.executable), kit), ("peer", options.peer, peer)):
            if side not in options.sides:
                continue
            runs[side].append(run(python, side, settings))
            found = runs[side][-1]
            print(
                f"K = {k}, round {number + 1}, {side}: "
                + ", ".join(f"{value:.2f}" for value in found["seconds"])
                + f" s a step, {found['peak_mib']:.0f} MiB, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
        rows = max(
            1, runs["kit"][-1]["tokens_with_padding"][0] * PROMPTS_A_MICRO_BATCH // PROMPTS if runs["kit"] else 700
        )
        runs["matmul"].append(run(Path(sys.executable), "matmul", kit, str(rows)))
    return result(k, runs, options)


def result(k: int, runs: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one K."""
    matmul = max(runs["matmul"], key=lambda found: float(found["gflops"]))
    limit = 1e9 * matmul["gflops"] / matmul["flop_per_token"]
    sides = {side: summary(runs[side]) for side in ("kit", "peer") if runs[side]}
    for found in sides.values():
        found["share_of_matmul_limit"] = round(found["tokens_per_second"] / limit, 3)
    figures: dict[str, Any] = {"benchmark": "reward", "k": k}
    if len(sides) == 2:
        for name, key in (("time_ratio", "seconds"), ("cpu_time_ratio", "cpu_seconds"), ("memory_ratio", "peak_mib")):
            figures[name] = round(sides["kit"][key] / sides["peer"][key], 4)
        figures["bars"] = dict(zip(("time_ratio", "memory_ratio"), BARS.get(k, (None, None)), strict=True))
    return {
        **figures,
        **sides,
        "matmul": {
            "gflops": round(matmul["gflops"], 1),
            "flop_per_token": matmul["flop_per_token"],
            "tokens_per_second": round(limit, 1),
        },
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", default="6", help="responses to a prompt, or `all` for 2, 4, 6 and 9")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side")
    parser.add_argument("--kit-steps", type=int, default=3, help="timed steps of each process of the kit")
    parser.add_argument("--peer-steps", type=int, default=1, help="timed steps of each process of the peer")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of both sides; all cores if left out")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--kit-attention", default="sdpa", choices=["eager", "sdpa"])
    parser.add_argument("--peer-attention", default="eager", choices=["eager", "sdpa"])
    parser.add_argument("--checkpointing", default="none", choices=["none", "both", "kit", "peer"])
    parser.add_argument("--malloc", default="both", choices=["both", "none"], help="raise malloc's thresholds or not")
    parser.add_argument("--unpacked", action="store_true", help="the kit with a row for each response")
    parser.add_argument("--sides", nargs="+", default=["kit", "peer"], choices=["kit", "peer"])
    parser.add_argument("--peer", type=Path, default=PEER, help="the Python of TRL's environment")
    return parser.parse_args()


def main() -> None:
    """Measures one K, or the table."""
    options = parsed()
    if "peer" in options.sides and not options.peer.exists():
        raise SystemExit(f"{options.peer} is not there: `make bench-reward` makes TRL's environment")
    shared = common_settings(options)
    print(f"{shared.dtype}, {shared.threads} threads, load {os.getloadavg()[0]:.1f}", flush=True)
    if options.k == "all":
        table = {k: compare(shared, k, options) for k in TABLE}
        for found in table.values():
            print(json.dumps(found))
        rows = [{key: found.get(key) for key in ("k", "time_ratio", "memory_ratio")} for found in table.values()]
        print(json.dumps({**table[6], "table": rows}))
    else:
        print(json.dumps(compare(shared, int(options.k), options)))


if __name__ == "__main__":
    main()
