"""What PPO-ptx keeps: the language model loss on held-out text after PPO with and without it, several seeds.

    python benchmarks/bench_ptx.py RUN --text FILE [--seeds 0 1 2] [--ptx-coef 0.2] [--updates 12]

RUN is the directory of a run whose SFT and reward stages are finished (`rlhf-kit sft RECIPE`, `rlhf-kit reward
RECIPE`); its recipe is taken, with the settings below put over it. FILE is plain text; its paragraphs are split into
two halves by turns: PPO-ptx learns from one half, the loss is measured on the other, in nats a token.

The rise of the loss from the SFT model to the policy is the alignment tax (arXiv 2203.02155, section 3.4). For each
seed both runs start from the same weights, sample the same prompts, and differ in `ptx_coef` alone; every few updates
the policy answers 64 held-out prompts and the loss is measured. `cut` is 1 - rise with / rise without at the largest KL
that both runs reach, its mean over seeds with the 95 % interval by Student's t. `--other-text` is a text of another
kind, which neither run learns from. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from scipy import stats

from rlhf_kit import Recipe, load
from rlhf_kit.checkpoint import checkpoints, read_manifest
from rlhf_kit.models import Backbone, load_backbone
from rlhf_kit.ppo.ptx import mean_loss, tokenised
from rlhf_kit.process import prepare_torch
from rlhf_kit.records import Text
from rlhf_kit.rewards import autocast
from rlhf_kit.stages import ppo


def paragraphs(file: Path, least: int = 200, most: int = 200) -> tuple[list[str], list[str]]:
    """Paragraphs of at least so many characters, joined up to that length: one for training, one for measuring, by
    turns, `most` each."""
    found, current = [], ""
    for part in file.read_text(encoding="utf-8").split("\n\n"):
        current = f"{current}\n\n{part}".strip()
        if len(current) >= least:
            found.append(current)
            current = ""
    return found[0 : 2 * most : 2], found[1 : 2 * most : 2]


def settings(recipe: Recipe, options: argparse.Namespace, seed: int, coef: float) -> Recipe:
    """The recipe with what this benchmark sets."""
    changed = {
        "total_episodes": options.updates * 16,
        "batch_size": 16,
        "mini_batch_size": 8,
        "num_ppo_epochs": 2,
        "learning_rate": options.learning_rate,
        "kl_coef": options.kl_coef,
        "response_length": 32,
        "ptx_coef": coef,
        "ptx_batch_size": options.ptx_batch_size,
        "ptx_max_length": 96,
        "eval_steps": options.every,
        "num_eval_prompts": 64,
        "save_steps": options.every,
        "save_total_limit": options.updates,
    }
    section = recipe.ppo.model_copy(update=changed)
    return recipe.model_copy(update={"ppo": section, "seed": seed})


Point = dict[str, float]
"""Of the policy after some updates: `kl` and `score` on held-out prompts, and the loss on each measured text."""


def one(recipe: Recipe, run: Path, texts: list[str], measured: dict[str, list[str]]) -> list[Point]:
    """Trains once; how the policy does at each checkpoint."""
    work = Path(tempfile.mkdtemp(prefix="bench-ptx-"))
    data = ppo.PpoData(
        load(str(recipe.data.prompts), "prompt"),
        heldout=load(str(recipe.data.prompts_heldout), "prompt"),
        text=[Text(text=text) for text in texts] if recipe.ppo.ptx_coef else (),
    )
    try:
        ppo.train(recipe, data, run / "sft", run / "reward", work)
        log = [json.loads(line) for line in (work / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        evaluated = {entry["step"]: entry for entry in log if "eval_score" in entry}
        losses = losses_of(recipe, checkpoints(work), measured)
    finally:
        shutil.rmtree(work)
    steps = sorted(evaluated)
    if len(losses) != len(steps):
        raise SystemExit(f"{len(losses)} checkpoints for {len(steps)} evaluations")
    return [
        {"step": step, "kl": evaluated[step]["eval_kl"], "score": evaluated[step]["eval_score"], **loss}
        for step, loss in zip(steps, losses, strict=True)
    ]


def losses_of(recipe: Recipe, adapters: list[Path], measured: dict[str, list[str]]) -> list[dict[str, float]]:
    """Nats a token of each text under each adapter."""
    backbone = load_backbone(recipe.model)
    found = []
    for number, adapter in enumerate(adapters):
        backbone.load_adapter(name := f"checkpoint{number}", adapter)
        with backbone.role(name), autocast(backbone):
            found.append(
                {name: mean_loss(backbone, _items(recipe, backbone, part), 0) for name, part in measured.items()}
            )
    return found


def _items(recipe: Recipe, backbone: Backbone, texts: list[str]) -> list[dict[str, list[int]]]:
    return tokenised([{"text": text} for text in texts], backbone.tokenizer, recipe.ppo.ptx_max_length)


def cut(runs: dict[str, list[Point]], start: Point, axis: str, text: str) -> dict[str, float]:
    """By how much less the loss has risen with pretraining text, where both runs have come equally far on an axis.

    The curves begin at the SFT model and are straight between checkpoints; the place is the farthest that both reach.
    """
    curves = {name: [start, *points] for name, points in runs.items()}
    place = min(max(point[axis] for point in curve) for curve in curves.values())
    rise = {name: _at(curve, axis, place, text) - start[text] for name, curve in curves.items()}
    return {"at": place, "rise_ppo": rise["ppo"], "rise_ptx": rise["ptx"], "cut": 1 - rise["ptx"] / rise["ppo"]}


def _at(curve: list[Point], axis: str, place: float, text: str) -> float:
    """The loss where a curve first comes to a place."""
    for before, after in itertools.pairwise(curve):
        if before[axis] <= place <= after[axis]:
            share = (place - before[axis]) / max(after[axis] - before[axis], 1e-9)
            return before[text] + share * (after[text] - before[text])
    return curve[-1][text]


def interval(values: list[float]) -> list[float]:
    """The 95 % interval of the mean by Student's t."""
    if len(values) < 2:
        return [math.nan, math.nan]
    mean, count = sum(values) / len(values), len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    spread = float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return [mean - spread, mean + spread]


def main() -> None:
    """Two runs a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--other-text", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--every", type=int, default=3, help="updates between two points of the curves")
    parser.add_argument("--ptx-coef", type=float, default=0.2)
    parser.add_argument("--ptx-batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--kl-coef", type=float, default=0.02)
    options = parser.parse_args()
    recipe = Recipe.model_validate(read_manifest(options.run / "reward").recipe)
    texts, heldout = paragraphs(options.text)
    measured = {"heldout": heldout}
    if options.other_text is not None:
        measured["other"] = paragraphs(options.other_text)[0]
    plain = settings(recipe, options, 0, 0.0)
    start: Point = {"kl": 0.0, "score": -math.inf, **losses_of(plain, [options.run / "sft"], measured)[0]}
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        curves = {
            name: one(settings(recipe, options, seed, coef), options.run, texts, measured)
            for name, coef in (("ppo", 0.0), ("ptx", options.ptx_coef))
        }
        found = {f"{text}_at_equal_kl": cut(curves, start, "kl", text) for text in measured}
        runs.append({"seed": seed, **found, **curves})
        print(json.dumps(runs[-1]), flush=True)
    result: dict[str, Any] = {"benchmark": "ptx", "loss_of_sft": {text: start[text] for text in measured}}
    for text in measured:
        cuts = [run[f"{text}_at_equal_kl"]["cut"] for run in runs]
        result[f"cut_{text}"] = {"mean": sum(cuts) / len(cuts), "interval": interval(cuts)}
    print(json.dumps({**result, "settings": {k: str(v) for k, v in vars(options).items()}, "runs": runs}))


if __name__ == "__main__":
    prepare_torch()
    main()
