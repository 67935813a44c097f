"""An update of the kit's `PPOTrainer` beside one of TRL 1.12's, the last TRL with PPO.

    python benchmarks/bench_ppo.py [--updates 2] [--rounds 2] [--threads N] [--sizes]      (make bench-ppo)

SmolLM2-135M of the quickstart, LoRA (r = 16) on every linear layer of every block, 16 prompts of 32 tokens (drawn
once, the same ids for all), responses of exactly 32 tokens, 4 PPO epochs of 2 minibatches, 8 rows in one forward pass;
bfloat16 where this CPU multiplies it, else float32. An update is sampling, scoring and all 8 optimiser steps.

The kit has the value head on the policy (`shared`) or a value adapter (`adapter`, its default), the reward an adapter
with a head on the same base in both; `upper_half` is `shared` with adapters on the upper half of the layers only, so
that what the lower half makes of an update's answers is computed once.

TRL as shipped (`peer`): `peft_config` for the policy, the adapter off as reference, reward and value model sequence
classification models of the same weights. TRL trains the value model in full; with LoRA put into it by hand it is the
other variant, and the faster of the two counts (`--peer-value`). `upper_half` is held against TRL with adapters on
every layer, as the others are, and in `time_ratio_upper_half_both` against TRL with adapters on the same upper half
(`peer_upper_half`).

Both sides have eager attention, the faster here (`--kit-attention`, `--peer-attention`), and the
thresholds of malloc that the kit's command line sets (`--malloc`); neither uses gradient checkpointing (TRL's default
is on). What was measured stands in RESULTS.md.

Each side runs in processes of its own, TRL's in an environment of its own (`.venv-trl-ppo`), in turns. The first
update of a process warms up; the median of the rest counts. Memory is the highest resident size of the process
(VmHWM), libraries and weights included. `cpu_seconds` is the process's own time: with `--threads 1` it says what a
quiet core would need, where others use the machine.

`limits` are this machine's matrix products and memory bandwidth, and the least seconds that they allow
(`ppo_speed/limits.py` says what is counted); `breakdown` has them beside the measured seconds.

`--sizes` trains three Llamas of random weights for one small update and shows how the peak grows with the base
(`memory_by_size`): the growth above the imported process over the bytes of one base (`bases`), and how much it grows
with each byte that the base is larger than the smallest (`bases_more_per_base_more`), activations, adapters, their
gradients and optimiser states included. Four models in memory would be at least 4.

Wanted: `time_ratio_shared` at most 0.42, `time_ratio_adapter` at most 0.80, `time_ratio_upper_half` at most 0.33,
`memory_ratio` (of the adapter side, the larger) at most 0.42. The last line is JSON; it ends with 0 whatever the ratios
are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from ppo_speed.common import PARTS, Settings
from reward_speed.common import MARK

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "recipes" / "quickstart.yaml"
PEER = HERE.parent / ".venv-trl-ppo" / "bin" / "python"
BARS = {
    "time_ratio_shared": 0.42,
    "time_ratio_adapter": 0.80,
    "time_ratio_upper_half": 0.33,
    "memory_ratio": 0.42,
}
KIT = ("shared", "adapter", "upper_half")
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Llamas in the proportions of SmolLM2's 135M and 360M, and a larger one.
SIZES = {
    name: {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 3,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }
    for name, hidden, intermediate, layers, heads in (
        ("135M", 576, 1536, 30, 9),
        ("360M", 960, 2560, 32, 15),
        ("700M", 1344, 3584, 34, 21),
    )
}
Run = dict[str, Any]


def common_settings(options: argparse.Namespace) -> Settings:
    """What all sides share: the quickstart's model, every linear layer adapted."""
    from transformers import AutoConfig

    from rlhf_kit import load_recipe
    from rlhf_kit.models.loading import load_tokenizer, resolve_dtype
    from rlhf_kit.models.sources import resolve

    recipe = load_recipe(RECIPE)
    model = resolve(recipe.model.name_or_path, recipe.model.sha256)
    tokenizer = load_tokenizer(recipe.model)
    return Settings(
        model=model,
        config=None,
        updates=options.updates,
        batch=16,
        mini_batch=8,
        epochs=4,
        prompt_length=32,
        response_length=32,
        temperature=0.7,
        vocabulary=AutoConfig.from_pretrained(model).vocab_size,
        pad_token=tokenizer.pad_token,
        eos_token_id=tokenizer.eos_token_id,
        dtype=str(resolve_dtype(options.dtype)).removeprefix("torch."),
        attention=options.kit_attention,
        value="adapter",
        keep_memory=options.malloc == "both",
        threads=options.threads,
        lora={"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": LINEARS},
    )


def run(python: Path, module: str, settings: Settings) -> Run:
    """What one process measured.

    Raises:
        SystemExit: it failed, or a response was shorter than it had to be; the last lines of a failure are shown.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(settings.threads),
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [str(python), "-m", f"ppo_speed.{module}", settings.argument()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode != 0 or not lines:
        last = "\n".join(done.stderr.splitlines()[-15:])
        raise SystemExit(f"ppo_speed.{module} failed ({done.returncode}):\n{last}")
    found: Run = json.loads(lines[-1].removeprefix(MARK))
    if any(length != settings.response_length for length in found.get("response_length", [])):
        raise SystemExit(f"ppo_speed.{module}: responses of {found['response_length']} tokens")
    return found


def sides(shared: Settings, options: argparse.Namespace) -> dict[str, tuple[Path, str, Settings]]:
    """Name, Python, module and settings of each side; a peer is one side a variant, `peer VALUE ATTENTION`."""
    from transformers import AutoConfig

    layers = AutoConfig.from_pretrained(shared.model).num_hidden_layers
    upper = {**shared.lora, "layers_to_transform": list(range(layers // 2, layers))}
    kit, found = Path(sys.executable), {}
    for name in [name for name in KIT if name in options.sides]:
        halved = name == "upper_half"
        settings = replace(shared, value="shared" if halved else name, lora=upper if halved else shared.lora)
        found[name] = (kit, "kit", settings)
    for name, lora in (("peer", shared.lora), ("peer_upper_half", upper)):
        if name in options.sides:
            for value in ("full", "lora") if options.peer_value == "best" else (options.peer_value,):
                for attention in ("eager", "sdpa") if options.peer_attention == "best" else (options.peer_attention,):
                    settings = replace(shared, value=value, attention=attention, lora=lora)
                    found[f"{name} {value} {attention}"] = (options.peer, "peer", settings)
    return found


def measure(shared: Settings, options: argparse.Namespace) -> tuple[dict[str, list[Run]], Run]:
    """Every side in turns, and the machine's limits (the best of the rounds: other load only hides them)."""
    wanted = sides(shared, options)
    runs: dict[str, list[Run]] = {name: [] for name in wanted}
    limits: list[Run] = []
    for number in range(options.rounds):
        for name, (python, module, settings) in wanted.items():
            found = run(python, module, settings)
            runs[name].append(found)
            seconds = ", ".join(f"{value:.2f}" for value in found["seconds"])
            print(
                f"round {number + 1}, {name}: {seconds} s an update, {found['peak_mib']:.0f} MiB, "
                f"load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
        limits.append(run(Path(sys.executable), "limits", shared))
    return runs, max(limits, key=lambda found: float(found["gflops"]))


def summary(runs: list[Run]) -> Run:
    """Medians over the updates of all processes of a side, and its highest memory."""
    parts = [part for found in runs for part in found["parts"]]
    return {
        "seconds": round(median(value for found in runs for value in found["seconds"]), 3),
        "cpu_seconds": round(median(value for found in runs for value in found["cpu_seconds"]), 3),
        "slowest": round(max(value for found in runs for value in found["seconds"]), 3),
        "updates": len(parts),
        **{part: round(median(found[part] for found in parts), 3) for part in PARTS},
        "peak_mib": round(max(found["peak_mib"] for found in runs)),
        "loaded_mib": round(median(found["loaded_mib"] for found in runs)),
        "loaded_peak_mib": round(max(found["loaded_peak_mib"] for found in runs)),
        "imported_mib": round(median(found["imported_mib"] for found in runs)),
        "optimizer_steps": runs[0]["optimizer_steps"],
        "trained_parameters": runs[0]["trained_parameters"],
    }


def fastest(found: dict[str, Run], peer: str) -> str | None:
    """The variant of a peer that counts."""
    variants = [name for name in found if name.startswith(f"{peer} ")]
    return min(variants, key=lambda name: float(found[name]["seconds"]), default=None)


def result(runs: dict[str, list[Run]], limits: Run, shared: Settings) -> Run:
    """The figures; a peer is the faster of its variants."""
    found = {name: summary(several) for name, several in runs.items()}
    figures: Run = {"benchmark": "ppo"}
    for peer, end in (("peer", ""), ("peer_upper_half", "_both")):
        if (name := fastest(found, peer)) is None:
            continue
        found[peer] = found[name]
        figures[f"{peer}_variant"] = name.removeprefix(f"{peer} ")
        for side in [name for name in KIT if name in found and (not end or name == "upper_half")]:
            for what, key in (("time", "seconds"), ("cpu_time", "cpu_seconds"), ("memory", "peak_mib")):
                figures[f"{what}_ratio_{side}{end}"] = round(found[side][key] / found[peer][key], 4)
    if "memory_ratio_adapter" in figures:
        figures["memory_ratio"] = figures.pop("memory_ratio_adapter")
    least = limits.pop("least_seconds")
    breakdown = {}
    for side in [name for name in (*KIT, "peer", "peer_upper_half") if name in found]:
        value = side
        if side.startswith("peer"):
            value = "full" if figures[f"{side}_variant"].startswith("full") else "adapter"
        breakdown[side] = {part: found[side][part] for part in PARTS}
        if side != "peer_upper_half":
            breakdown[f"{side}_least"] = {part: round(least[value][part], 3) for part in PARTS}
    return {
        **figures,
        "bars": BARS,
        "limit_shares": shares(breakdown),
        "breakdown": breakdown,
        "sides": {name: found[name] for name in runs},
        "limits": {name: round(value, 1) for name, value in limits.items()},
        "dtype": shared.dtype,
        "threads": shared.threads,
        "cpu": cpu_name(),
        "load": [round(value, 1) for value in os.getloadavg()],
    }


def shares(breakdown: Run) -> Run:
    """What share of the machine's measured limits each kit side reaches: of its matrix products in training, of its
    memory bandwidth in decoding (the least seconds over the measured ones)."""
    return {
        side: {
            name: round(breakdown[f"{side}_least"][part] / breakdown[side][part], 3)
            for name, part in (("matmul_in_training", "train"), ("bandwidth_in_decoding", "generate"))
        }
        for side in KIT
        if side in breakdown
    }


def memory_by_size(shared: Settings, options: argparse.Namespace) -> list[Run]:
    """The peak of one small update for each size, kit with a value adapter; TRL beside it unless it is left out."""
    rows = []
    small = replace(shared, updates=0, batch=4, mini_batch=2, epochs=1)
    for name, changes in SIZES.items():
        config = {**changes, "vocab_size": shared.vocabulary, "eos_token_id": shared.eos_token_id}
        row: Run = {"size": name}
        for side, python, module, value in (
            ("kit", Path(sys.executable), "kit", "adapter"),
            ("peer", options.peer, "peer", "full"),
        ):
            if side == "peer" and "peer" not in options.sides:
                continue
            found = run(python, module, replace(small, config=config, value=value))
            width = 2 if shared.dtype == "bfloat16" else 4
            base = found["base_parameters"] * width / 2**20
            growth = found["peak_mib"] - found["imported_mib"]
            row |= {"base_mib": round(base), side: {"growth_mib": round(growth), "bases": round(growth / base, 2)}}
            if rows:  # what does not depend on the size falls out of the difference
                slope = (growth - rows[0][side]["growth_mib"]) / (base - rows[0]["base_mib"])
                row[side]["bases_more_per_base_more"] = round(slope, 2)
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def cpu_name() -> str:
    """As the kernel has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(figures: Run) -> None:
    """The breakdown for reading."""
    print(f"{'seconds of':16}" + "".join(f"{part:>10}" for part in PARTS) + f"{'all':>10}")
    for name, parts in figures["breakdown"].items():
        print(f"{name:16}" + "".join(f"{parts[part]:10.2f}" for part in PARTS) + f"{sum(parts.values()):10.2f}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=2, help="timed updates of each process")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of all sides; all cores if left out")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--kit-attention", default="eager", choices=["eager", "sdpa"])
    parser.add_argument("--peer-attention", default="eager", choices=["eager", "sdpa", "best"])
    parser.add_argument("--peer-value", default="best", choices=["full", "lora", "best"])
    parser.add_argument("--malloc", default="both", choices=["both", "none"], help="raise malloc's thresholds or not")
    parser.add_argument(
        "--sides",
        nargs="+",
        default=[*KIT, "peer"],
        choices=[*KIT, "peer", "peer_upper_half"],
        help="all but peer_upper_half if left out",
    )
    parser.add_argument("--sizes", action="store_true", help="also memory against the size of the model")
    parser.add_argument("--peer", type=Path, default=PEER, help="the Python of TRL's environment")
    return parser.parse_args()


def main() -> None:
    """Measures all sides."""
    options = parsed()
    if {"peer", "peer_upper_half"} & {*options.sides} and not options.peer.exists():
        raise SystemExit(f"{options.peer} is not there: `make bench-ppo` makes TRL's environment")
    shared = common_settings(options)
    print(f"{shared.dtype}, {shared.threads} threads, load {os.getloadavg()[0]:.1f}", flush=True)
    figures = result(*measure(shared, options), shared)
    table(figures)
    if options.sizes:
        figures["memory_by_size"] = memory_by_size(shared, options)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
