"""What a reward model is measured on: rankings that it was not trained on, and apart from them those that it was."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from rlhf_kit import seen
from rlhf_kit.checkpoint import read_manifest
from rlhf_kit.checks.ledger import prompt_of
from rlhf_kit.errors import DataError, Problem
from rlhf_kit.models.heads import HEAD_FILE
from rlhf_kit.ranked_files import RankedFiles, SourceFile
from rlhf_kit.records import Ranking, Response
from rlhf_kit.rewards import stage_of

__all__ = ["MOST_TRAINING", "NOTHING", "Known", "Material", "known_of", "material_of", "name_of"]

MOST_TRAINING = 500
"""Prompts that were trained on of which at most the rankings are scored: enough for an interval of four points."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a run says of its reward model. Nothing is known of a model that is no run of this kit."""

    prompts: frozenset[str] | None = None
    """Keys of the prompts that it was trained on; None where nobody can say."""
    labelers: frozenset[str] = frozenset()
    """Whose rankings it was trained on."""
    heldout_labelers: frozenset[str] = frozenset()
    """Whose rankings were kept from it."""
    log_odds: float = 1.0
    """By what a difference of scores is to be multiplied to be the log-odds that was trained: normalisation undone."""
    settings: dict[str, Any] = field(default_factory=dict)
    """`base`, `lora`, `reward`, `data`, `seed` and `trained` as the manifest has them."""


NOTHING = Known()
"""What is known of a model that is no run of this kit."""


@dataclass(frozen=True, slots=True)
class Material:
    """Rankings to measure on."""

    heldout: tuple[Ranking, ...]
    training: tuple[Ranking, ...]
    """Of prompts that the model was trained on, or of some of them."""
    sources: tuple[SourceFile, ...]
    notes: tuple[str, ...]

    @property
    def responses(self) -> int:
        """Different ones, which are scored."""
        return len({name_of(record, one) for record in (*self.heldout, *self.training) for one in record.responses})


def known_of(run: str | Path) -> Known:
    """What the run says of its reward model; nothing where it is no run.

    Raises:
        CheckpointError: its files have changed, or cannot be read.
    """
    stage = stage_of(run)
    if stage is None:
        return NOTHING
    manifest, found = read_manifest(stage), seen.read(stage)
    names = ("lora", "reward", "data", "seed")
    settings = {"base": manifest.base, **{name: manifest.recipe.get(name) for name in names}}
    settings["trained"] = {"finished": manifest.finished, "seconds": manifest.seconds}
    log_odds = _log_odds(stage)
    if found is None:  # an older run
        return Known(log_odds=log_odds, settings=settings)
    return Known(found.prompts, found.labelers, found.heldout_labelers, log_odds, settings)


def _log_odds(stage: Path) -> float:
    """Of one axis, its spread over its weight; a sum of several axes was never trained as one log-odds."""
    with safe_open(stage / HEAD_FILE, "np") as file:
        weights, spread, std = (file.get_tensor(name) for name in ("weights", "spread", "std"))
    return float(std * spread[0] / weights[0]) if len(weights) == 1 else 1.0


def material_of(files: RankedFiles, known: Known = NOTHING, *, seed: int = 0) -> Material:
    """The rankings of files, those of prompts that the model was trained on apart.

    Args:
        files: as `read_rankings` gives them.
        known: what is known of the model.
        seed: of the choice among many training prompts.

    Raises:
        DataError: all the prompts were trained on, or no ranking of the others has a pair.
    """
    names = ", ".join(source.name for source in files.sources)
    trained_on = known.prompts or frozenset()
    keys = [seen.prompt_key(record.prompt) for record in files.records]
    heldout = [record for record, key in zip(files.records, keys, strict=True) if key not in trained_on]
    training = [(key, record) for record, key in zip(files.records, keys, strict=True) if key in trained_on]
    if not heldout:
        reason = (
            "every prompt in it was trained on, so that nothing can be measured; name rankings that were held out, or "
            "train with reward.heldout_fraction above 0 and name the same file"
        )
        raise DataError([Problem(names, "", reason)])
    tied = sum(not record.pairs for record in heldout)
    if tied == len(heldout):
        what = "of every ranking that was not trained on" if training else "of every ranking"
        reason = f"no pair to measure on: all responses {what} are tied; name rankings with an order"
        raise DataError([Problem(names, "", reason)])
    notes = list(files.notes)
    if known.prompts is None:
        notes.append(
            "Nothing is known of what this model was trained on; make sure that it has not seen these prompts."
        )
    kept, words = _some(training, seed)
    if training:
        prompts = len(set(keys))
        notes.append(
            f"{len({key for key, _ in training})} of {prompts} prompts were trained on: their {len(training)} rankings "
            f"are counted apart, and tell only whether the model memorised.{words}"
        )
    if tied:
        notes.append(f"{tied} of {len(heldout)} held-out rankings are all ties: there is no pair in them.")
    return Material(tuple(heldout), tuple(kept), files.sources, tuple(notes))


def _some(training: Sequence[tuple[str, Ranking]], seed: int) -> tuple[list[Ranking], str]:
    """The rankings of at most `MOST_TRAINING` prompts, and what is to be said of that."""
    prompts = list(dict.fromkeys(key for key, _ in training))
    if len(prompts) <= MOST_TRAINING:
        return [record for _, record in training], ""
    chosen = {prompts[i] for i in np.random.default_rng(seed).permutation(len(prompts))[:MOST_TRAINING]}
    return [record for key, record in training if key in chosen], f" Those of {MOST_TRAINING} prompts are scored."


def name_of(record: Ranking, response: Response) -> Hashable:
    """The same for what the model reads the same."""
    return prompt_of(record), response.text, response.ended
