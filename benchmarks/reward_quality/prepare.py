"""From real labels to token ids, once a seed, so that both trainers read the same ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rlhf_kit import load_recipe
from rlhf_kit.data import Encoder, split_by_prompt
from rlhf_kit.formats.catalogue import format_named
from rlhf_kit.models.loading import load_tokenizer, resolve_dtype
from rlhf_kit.models.sources import resolve
from rlhf_kit.recipe import ModelSection
from rlhf_kit.records import Ranking
from rlhf_kit.scanning import scan

from .settings import read_json, write_json

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
SOURCE = "hh_rlhf/*.jsonl.gz"


def model_section(directory: str | None) -> ModelSection:
    """The quickstart's model, or a directory."""
    return load_recipe(RECIPE).model if directory is None else ModelSection(name_or_path=directory)


def base_of(section: ModelSection) -> dict[str, str]:
    """What every process needs to load the base: a directory, a dtype, a pad token."""
    return {
        "model": str(Path(resolve(section.name_or_path, section.sha256)).resolve()),
        "dtype": str(resolve_dtype(section.dtype)).removeprefix("torch."),
        "pad_token": str(load_tokenizer(section).pad_token),
    }


def read_rankings(folder: Path) -> tuple[list[Ranking], int]:
    """The usable pairs of HH-RLHF files under a folder, through the kit's own converter, and the number of rows."""
    files = sorted(folder.glob(SOURCE))
    if not files:
        raise SystemExit(f"--data {folder}: no {SOURCE} in it")
    entries = [entry for file in files for entry in scan(str(file), "ranking", format_named("hh-rlhf"))]
    return [record for entry in entries for record in entry.records if isinstance(record, Ranking)], len(entries)


def prepare(
    folder: Path,
    section: ModelSection,
    target: Path,
    *,
    seed: int,
    heldout: float,
    max_prompt_length: int,
    max_length: int,
    limit: int | None,
) -> dict[str, Any]:
    """Writes `data.json`: training and held-out pairs as token ids, split by prompt; returns what is known of them.

    Raises:
        SystemExit: the file is there already and holds something else.
    """
    rankings, rows = read_rankings(folder)
    rankings = rankings[:limit]
    encoder = Encoder(load_tokenizer(section), max_prompt_length=max_prompt_length, max_length=max_length)
    training, held = split_by_prompt(rankings, heldout, seed)
    sides = {"training": _rows(training, encoder), "heldout": _rows(held, encoder)}
    texts = [2 * len(r["prompt"]) + len(r["better"]) + len(r["worse"]) for side in sides.values() for r in side]
    about = {
        "rows": rows,
        "pairs": len(rankings),
        "training_pairs": len(training),
        "heldout_pairs": len(held),
        "heldout_prompts": len({row["key"] for row in sides["heldout"]}),
        "max_prompt_length": max_prompt_length,
        "max_length": max_length,
        "shortened_prompts": encoder.shortened_prompts,
        "cut_responses": encoder.cut_responses,
        "mean_text_tokens": sum(texts) / len(texts) / 2,
        "fingerprint": hashlib.sha256(json.dumps(sides).encode()).hexdigest()[:16],
    }
    if target.is_file() and (there := read_json(target)["about"]) != about:
        raise SystemExit(f"{target}: made of other data or settings ({there}); choose another --out")
    write_json(target, {"about": about, **sides})
    return about


def _rows(rankings: list[Ranking], encoder: Encoder) -> list[dict[str, Any]]:
    rows = []
    for record in rankings:
        ids = encoder.ranking(record)
        better, worse = (ids.responses[ids.ranks.index(rank)] for rank in (1, 2))
        key = hashlib.sha256(repr(record.prompt).encode()).hexdigest()[:16]
        rows.append({"key": key, "prompt": ids.prompt, "better": better, "worse": worse})
    return rows
