"""A whole recipe for tests: a tiny model, data that it can learn in seconds, and a reward that can be counted.

The demonstrations say three words of a list of four; the labelers count the cats among them, and so does the rubric.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import make_tiny_model

OTHERS = ("dog", "egg", "sun")
SUBJECTS = ("red", "blue", "green", "small", "good", "bad", "city", "river", "book", "letter", "water", "friend")


def make_capable_model(directory: Path) -> Path:
    """The tiny model with a larger last norm: without, its logits are too flat for any token to become likely."""
    make_tiny_model(directory)
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 4.0)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


def write_recipe(directory: Path, **changes: dict[str, Any]) -> Path:
    """Model, data, rubric and `recipe.yaml` in `directory`; returns the recipe, whose runs go to `directory/run`.

    Args:
        changes: put over the settings of a section.
    """
    directory.mkdir(parents=True, exist_ok=True)
    make_capable_model(directory / "model")
    write_data(directory)
    recipe: dict[str, Any] = {
        "model": {"name_or_path": "model", "base_id": "tiny/tiny", "dtype": "float32"},
        "lora": {"r": 8, "lora_alpha": 16},
        "data": {
            "demonstrations": "demonstrations.jsonl",
            "rankings": "rankings.jsonl",
            "prompts": "prompts.jsonl",
            "prompts_heldout": "heldout.jsonl",
            "rubric": "rubric.py:count_cats",
        },
        "sft": {"learning_rate": 1e-2, "num_train_epochs": 6, "save_steps": 16},
        "reward": {"learning_rate": 5e-3, "num_train_epochs": 2},
        "ppo": {
            "total_episodes": 640,
            "batch_size": 32,
            "mini_batch_size": 16,
            "per_device_train_batch_size": 16,
            "learning_rate": 3e-3,
            "num_ppo_epochs": 2,
            "response_length": 8,
            "warmup_steps": 1,
            "save_steps": 2,
        },
        "output_dir": str(directory / "run"),
    }
    for section, settings in changes.items():
        recipe[section] = recipe.get(section, {}) | settings
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def write_data(directory: Path) -> None:
    """The data files of the recipe, the same ones every time."""
    rng = random.Random(0)

    def prompt() -> str:
        return " ".join(rng.choices(SUBJECTS, k=3))

    def said(cats: int | None = None) -> str:
        cats = rng.choice((0, 0, 1, 2)) if cats is None else cats
        words = ["cat"] * cats + rng.choices(OTHERS, k=3 - cats)
        rng.shuffle(words)
        return " ".join(words)

    def ranking() -> dict[str, Any]:
        # Of one length, so that only the cats make the difference. The last two stop too soon and use other words:
        # what the reward model has never seen, PPO would find.
        texts = [said(3), said(1), said(0), rng.choice(("cat", *OTHERS)), prompt()]
        answers = [{"text": text, "rank": rank} for rank, text in enumerate(texts, 1)]
        return {"prompt": prompt(), "responses": rng.sample(answers, k=5)}

    files: dict[str, list[dict[str, Any]]] = {
        "demonstrations.jsonl": [{"prompt": prompt(), "completion": said()} for _ in range(64)],
        "rankings.jsonl": [ranking() for _ in range(48)],
        "prompts.jsonl": [{"prompt": prompt()} for _ in range(48)],
        "heldout.jsonl": [{"prompt": "weather story " + prompt()} for _ in range(16)],
    }
    for name, rows in files.items():
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "rubric.py").write_text(
        "def count_cats(prompts, completions, **columns):\n    return [text.count('cat') for text in completions]\n"
    )
