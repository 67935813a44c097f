"""Who answers: one policy of a run; and what: the prompts of a file."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from rlhf_kit import files
from rlhf_kit.checkpoint import MANIFEST, read_manifest, recipe_of
from rlhf_kit.data import Encoder
from rlhf_kit.errors import CheckpointError, DataError, Problem, RlhfKitError
from rlhf_kit.models import Backbone, load_backbone, to_device
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Prompt, Record, Text, prompt_name

BASE = "base"
TRAINED = ("sft", "ppo")


@dataclass(frozen=True)
class Policy:
    """One policy of a run.

    Attributes:
        name: base, sft or ppo.
        run: the run's directory.
        directory: of the adapter; None for the base.
        recipe: that of the stage.
        hashes: of the adapter's weights.
    """

    name: str
    run: Path
    directory: Path | None
    recipe: Recipe
    hashes: dict[str, str]


def find_policy(run: Path, wanted: str | None = None) -> Policy:
    """A policy of a run, or of a single stage's directory; by default the last one that there is.

    Raises:
        CheckpointError: no run, no such policy in it, or a damaged stage.
    """
    if (run / MANIFEST).is_file():
        stages, home = {read_manifest(run).stage: run}, run.absolute().parent
    else:
        stages = {name: run / name for name in ("reward", *TRAINED) if (run / name / MANIFEST).is_file()}
        home = run
    there = [BASE, *(name for name in TRAINED if name in stages)]
    name = wanted or there[-1]
    if not stages.keys() & {"reward", *TRAINED}:
        raise CheckpointError(f"{run}: no finished stage in it; name the output_dir of a run, or one of its stages")
    if name not in there:
        raise CheckpointError(f"{run}: has no finished {name} stage; there are {', '.join(there)}")
    source = stages[name] if name != BASE else list(stages.values())[-1]
    manifest = read_manifest(source)  # checks the weights too
    recipe = recipe_of(manifest, source)
    return Policy(name, home, *((None, recipe, {}) if name == BASE else (source, recipe, manifest.files)))


def only_process() -> PartialState:
    """Accelerate's state of this process.

    Raises:
        RlhfKitError: several processes were launched; each would draw the same answers and write the same files.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.num_processes > 1:
        raise RlhfKitError(
            f"launched on {state.num_processes} processes, which would all draw the same answers; "
            "start it without torchrun, or with --num_processes 1"
        )
    return state


def load_policy(policy: Policy) -> tuple[Backbone, Encoder]:
    """The model with the policy's adapter under its name, where it can run, and the encoder of its prompts.

    Raises:
        RlhfKitError: several processes were launched.
        ModelError, CheckpointError: it cannot be loaded.
    """
    state = only_process()
    model = policy.recipe.model
    backbone = load_backbone(model)
    if policy.directory is not None:
        backbone.load_adapter(policy.name, policy.directory)
    to_device(backbone, model, state.device)
    return backbone, Encoder(backbone.tokenizer, max_prompt_length=policy.recipe.data.max_prompt_length)


def read_prompts(source: str) -> tuple[list[Prompt], int]:
    """The prompts of a file of prompts, demonstrations, rankings or ratings, each once; and how many stood there again.

    Of records that are more than prompts, what was said of the answers (labeler, meta) is left behind.

    Raises:
        DataError: every row that cannot be used, or rows without prompts.
    """
    kind = files.guess_kind(source)
    if kind == "text":
        raise DataError([Problem(source, "", "holds text rows, which ask nothing; give prompts")])
    first: dict[Hashable, Prompt] = {}
    records = files.load(source, kind)
    for record in records:
        prompt = _prompt_alone(record)
        first.setdefault(prompt_name(prompt.prompt), prompt)
    return list(first.values()), len(records) - len(first)


def _prompt_alone(record: Record) -> Prompt:
    if isinstance(record, Prompt):
        return record
    if isinstance(record, Text):
        raise TypeError("a text has no prompt")
    kept = {"prompt", "category", "kind", "origin", "user_id", "id"} & set(type(record).model_fields)
    return Prompt(**{name: getattr(record, name) for name in kept})
