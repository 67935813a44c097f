"""Base, SFT, PPO and PPO-ptx on the quickstart, several seeds: who wins, how far from SFT, at what cost.

    python benchmarks/bench_policies.py [--seeds 0 1 2] [--out runs/policies] [--figure FILE.svg]

For each seed the quickstart's stages are run, then PPO again with pretraining text beside it from the same SFT and
reward model (`ppo.ptx_coef=0.2` on `recipes/quickstart/text.jsonl`). `rlhf-kit evaluate policy` has both, two
checkpoints of each, SFT and the base answer the held-out prompts, judged by the run's reward model and by the rubric;
the alignment tax is the change from the base on held-out text of the same kind and on
`recipes/quickstart/choices.jsonl`. What is finished is skipped, so an interrupted benchmark goes on.

A figure of several seeds is their mean with the 95 % interval by Student's t over the seeds, whose two or more runs
differ in everything random; the intervals of single seeds are over prompts. The last line is JSON, the figure is in the
manner of figure 1 of arXiv 2203.02155.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from scipy import stats

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "quickstart.yaml"
KEPT = ("ppo.keep_checkpoints=5", "ppo.eval_steps=3")
PTX = ("data.text=quickstart/text.jsonl", "ppo.ptx_coef=0.2", "ppo.ptx_max_length=128")
LABELS = {"base": "Base", "sft": "SFT", "PPO": "PPO", "PPO-ptx": "PPO-ptx"}


def command(*words: str) -> None:
    """One command of the kit's, with its output shown."""
    subprocess.run([sys.executable, "-m", "rlhf_kit", *words], cwd=ROOT, check=True, stdout=sys.stderr)


def one(seed: int, out: Path) -> dict[str, Any]:
    """Trains and evaluates with one seed; what stands in its evaluation.json, without the answers."""
    plain, ptx, judged = (out / f"{name}-{seed}" for name in ("ppo", "ptx", "evaluation"))
    for stage in ("sft", "reward", "ppo"):
        command(stage, str(RECIPE), f"seed={seed}", f"output_dir={plain}", *KEPT)
    for stage in ("sft", "reward"):
        if not (ptx / stage).exists():
            shutil.copytree(plain / stage, ptx / stage)
    command("ppo", str(RECIPE), f"seed={seed}", f"output_dir={ptx}", *KEPT, *PTX)
    data = RECIPE.with_suffix("")
    command(
        *("evaluate", "policy", f"PPO={plain}", f"PPO-ptx={ptx}", "--checkpoints", "6,12", "--out", str(judged)),
        *("--text", str(data / "text_heldout.jsonl"), "--choices", str(data / "choices.jsonl")),
    )
    found: dict[str, Any] = json.loads((judged / "evaluation.json").read_text(encoding="utf-8"))
    found.pop("prompts")
    return found


def over_seeds(values: list[float]) -> dict[str, float]:
    """The mean and its 95 % interval by Student's t; no interval of a single seed."""
    mean, count = sum(values) / len(values), len(values)
    if count < 2:
        return {"value": mean, "low": math.nan, "high": math.nan}
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    spread = float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return {"value": mean, "low": mean - spread, "high": mean + spread}


def figures(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every figure of every policy over the seeds: name, policy, estimate."""
    found: dict[str, dict[str, list[float]]] = {}

    def add(name: str, policy: str, estimate: dict[str, Any] | None) -> None:
        if estimate is not None:
            found.setdefault(name, {}).setdefault(policy, []).append(estimate["value"])

    for run in runs:
        for judge in run["judges"]:
            for policy in run["policies"]:
                rate = judge["win_rates"][policy].get("sft")
                add(f"{judge['name']}: wins against SFT", policy, rate)
                add(f"{judge['name']}: the same at equal length", policy, rate and rate["length_controlled"])
                add(f"{judge['name']}: Bradley-Terry", policy, judge["bradley_terry"].get(policy))
                add(f"{judge['name']}: Elo", policy, judge["elo"].get(policy))
        add("PPO's gain by the reward model, deviations of SFT's scores", "PPO", run["reward_gain"])
        for policy in run["policies"]:
            add("KL from SFT, nats a response", policy, run["kl"].get(policy))
            for measure, estimate in run["measures"][policy].items():
                add(measure, policy, estimate)
            for kind in ("text", "choices"):
                for entry in run["tax"][kind]:
                    add(f"{entry['name']}: change from the base", policy, entry["change"].get(policy))
    return {name: {policy: over_seeds(values) for policy, values in row.items()} for name, row in found.items()}


def draw(runs: list[dict[str, Any]], file: Path) -> None:
    """Win rates against SFT: a light point with its interval a seed, the mean of the seeds in front."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(1, len(runs[0]["judges"]), sharey=True, squeeze=False)[0]
    for place, judge in enumerate(runs[0]["judges"]):
        axis = axes[place]
        axis.axhline(0.5, color="0.6", linewidth=0.8, linestyle="--")
        for x, policy in enumerate(runs[0]["policies"]):
            seeds = [run["judges"][place]["win_rates"][policy].get("sft") for run in runs]
            rates = [rate or {"value": 0.5, "low": 0.5, "high": 0.5} for rate in seeds]  # SFT against itself
            for n, rate in enumerate(rates):
                at = x + 0.14 * (n - (len(rates) - 1) / 2)
                axis.plot([at, at], [rate["low"], rate["high"]], color="#4477aa", alpha=0.45, linewidth=1.5)
                axis.plot(at, rate["value"], "o", color="#4477aa", alpha=0.45, markersize=4)
            mean = sum(rate["value"] for rate in rates) / len(rates)
            axis.plot([x - 0.28, x + 0.28], [mean, mean], color="#223355", linewidth=2.2)
            axis.annotate(f"{mean:.0%}", (x + 0.3, mean), fontsize=8, va="center")
        axis.set_xticks(range(len(runs[0]["policies"])), [LABELS.get(name, name) for name in runs[0]["policies"]])
        axis.set_title({"reward": "by the reward model", "rubric": "by the rubric"}.get(judge["name"], judge["name"]))
        axis.set_xlim(-0.5, len(runs[0]["policies"]) - 0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(0, 1)
    axes[0].set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes[0].set_ylabel("wins against SFT")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


def table(runs: list[dict[str, Any]], found: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row a figure, a column a policy."""
    policies = runs[0]["policies"]
    lines = [
        "| figure | " + " | ".join(LABELS.get(name, name) for name in policies) + " |",
        "|---" * (len(policies) + 1) + "|",
    ]
    for name, row in found.items():
        cells = [
            "" if policy not in row else "{value:.3f} [{low:.3f}, {high:.3f}]".format(**row[policy])
            for policy in policies
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Two runs and an evaluation a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "policies")
    parser.add_argument("--figure", type=Path, help="default: policies.svg in --out")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    runs = [one(seed, out) for seed in options.seeds]
    found = figures(runs)
    draw(runs, options.figure or out / "policies.svg")
    print(table(runs, found))
    frontiers = [[one["words"] for one in run["frontier"]] for run in runs]
    print(json.dumps({"benchmark": "policies", "seeds": options.seeds, "figures": found, "frontiers": frontiers}))


if __name__ == "__main__":
    main()
