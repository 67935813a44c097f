"""What PPO-ptx keeps: the language model loss on held-out text after PPO with and without it, several seeds.

    python benchmarks/bench_ptx.py RUN --text FILE [--seeds 0 1 2] [--ptx-coef 1.0] [--updates 16]

RUN is the directory of a run whose SFT and reward stages are finished (`rlhf-kit sft RECIPE`, `rlhf-kit reward
RECIPE`); its recipe is taken, with the settings below put over it. FILE is plain text; its paragraphs are split into
two halves by turns: PPO-ptx learns from one half, the loss is measured on the other, in nats a token.

The rise of the loss from the SFT model to the policy is the alignment tax (arXiv 2203.02155, section 3.4). For each
seed both runs start from the same weights, sample the same prompts, and differ in `ptx_coef` alone. `cut` is the mean
over seeds of 1 - rise with / rise without, with its 95 % interval by Student's t. Reward and KL are of 64 held-out
prompts. `--other-text` is a text of another kind, which neither run learns from: `other_rise` is the rise of its loss.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from scipy import stats

from rlhf_kit import Recipe, load
from rlhf_kit.checkpoint import read_manifest
from rlhf_kit.models import load_backbone
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
        "eval_steps": options.updates,
        "num_eval_prompts": 64,
        "save_steps": options.updates,
    }
    section = recipe.ppo.model_copy(update=changed)
    return recipe.model_copy(update={"ppo": section, "seed": seed})


def one(recipe: Recipe, run: Path, texts: list[str], measured: dict[str, list[str]]) -> dict[str, Any]:
    """Trains once; the losses on measured texts after it, and how the policy does on held-out prompts."""
    work = Path(tempfile.mkdtemp(prefix="bench-ptx-"))
    data = ppo.PpoData(
        load(str(recipe.data.prompts), "prompt"),
        heldout=load(str(recipe.data.prompts_heldout), "prompt"),
        text=[Text(text=text) for text in texts] if recipe.ppo.ptx_coef else (),
    )
    try:
        ppo.train(recipe, data, run / "sft", run / "reward", work)
        log = [json.loads(line) for line in (work / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        evaluated = next(entry for entry in reversed(log) if "eval_score" in entry)
        losses = {name: loss_of(recipe, work, part) for name, part in measured.items()}
    finally:
        shutil.rmtree(work)
    names = {"score": "eval_score", "sft_score": "eval_reference_score", "kl": "eval_kl"}
    return {"loss": losses, **{name: evaluated[figure] for name, figure in names.items()}}


def loss_of(recipe: Recipe, adapter: Path, texts: list[str]) -> float:
    """Nats a token of texts under an adapter."""
    backbone = load_backbone(recipe.model)
    backbone.load_adapter("it", adapter)
    items = tokenised([{"text": text} for text in texts], backbone.tokenizer, recipe.ppo.ptx_max_length)
    with backbone.role("it"), autocast(backbone):
        return mean_loss(backbone, items, backbone.tokenizer.pad_token_id)


def main() -> None:
    """Two runs a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--other-text", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=16)
    parser.add_argument("--ptx-coef", type=float, default=1.0)
    parser.add_argument("--ptx-batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--kl-coef", type=float, default=0.05)
    options = parser.parse_args()
    recipe = Recipe.model_validate(read_manifest(options.run / "reward").recipe)
    texts, heldout = paragraphs(options.text)
    measured = {"heldout": heldout}
    if options.other_text is not None:
        measured["other"] = paragraphs(options.other_text)[0]
    plain = settings(recipe, options, 0, 0.0)
    start = {name: loss_of(plain, options.run / "sft", part) for name, part in measured.items()}
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        found = {
            name: one(settings(recipe, options, seed, coef), options.run, texts, measured)
            for name, coef in (("ppo", 0.0), ("ptx", options.ptx_coef))
        }
        rises = {
            part: {name: figures["loss"][part] - start[part] for name, figures in found.items()} for part in measured
        }
        rise = rises["heldout"]
        runs.append({"seed": seed, **found, "rise": rise, "cut": 1 - rise["ptx"] / rise["ppo"]})
        if "other" in rises:
            runs[-1]["other_rise"] = rises["other"]
        print(json.dumps(runs[-1]), flush=True)
    cuts = [run["cut"] for run in runs]
    mean = sum(cuts) / len(cuts)
    spread = math.nan
    if len(cuts) > 1:
        deviation = math.sqrt(sum((cut - mean) ** 2 for cut in cuts) / (len(cuts) - 1))
        spread = float(stats.t.ppf(0.975, len(cuts) - 1)) * deviation / math.sqrt(len(cuts))
    result = {"benchmark": "ptx", "loss_of_sft": start, "cut": mean, "interval": [mean - spread, mean + spread]}
    print(json.dumps({**result, "settings": {k: str(v) for k, v in vars(options).items()}, "runs": runs}))


if __name__ == "__main__":
    prepare_torch()
    main()
