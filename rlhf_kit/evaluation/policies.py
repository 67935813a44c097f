"""Who answers: the base and the stages of one or several runs, their checkpoints, and any other adapter or model."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME

from rlhf_kit.checkpoint import MANIFEST, checkpoints, read_manifest, recipe_of
from rlhf_kit.errors import CheckpointError, RlhfKitError
from rlhf_kit.files import sha256_of
from rlhf_kit.models.adapters import content_of
from rlhf_kit.models.loading import resolve_dtype
from rlhf_kit.models.sources import is_repository_name
from rlhf_kit.recipe import ModelSection, Recipe
from rlhf_kit.stages.ppo import origin_of

__all__ = ["BASE", "PPO", "SFT", "Policy", "answering", "hash_of", "last_recipe", "named", "of_run"]

BASE, SFT, PPO = "base", "sft", "ppo"
REWARD = "reward"  # no policy; a run that has nothing else still has its base
LABELS = {BASE: "Base", SFT: "SFT", PPO: "PPO"}


@dataclass(frozen=True)
class Policy:
    """One that answers.

    Attributes:
        name: unique among those that are compared.
        label: for people.
        model: its base.
        adapter: the directory of its weights; None is the base itself.
        max_prompt_length: tokens of a prompt; a longer one loses its oldest turns.
        run: the run that it belongs to, if it does.
        stage: base, sft, ppo, or other.
        step: of a checkpoint, the updates that it has seen; None for what is no checkpoint.
        updates: of PPO's policies, the updates that they have seen.
        held_to: of PPO's policies, the adapter that the KL is measured from; None is the base.
    """

    name: str
    label: str
    model: ModelSection
    adapter: Path | None
    max_prompt_length: int
    run: Path | None = None
    stage: str = "other"
    step: int | None = None
    updates: int | None = None
    held_to: Path | None = None

    @cached_property
    def identity(self) -> str:
        """A hash of everything that decides what it answers to a prompt. A Hub id stands for itself.

        Taken once: it is asked for with every chunk of prompts, and the base may be gigabytes in a directory.
        """
        content = {"model": _content(self.model), "adapter": hash_of(self.adapter), "length": self.max_prompt_length}
        return _digest(content)

    @cached_property
    def reference(self) -> str | None:
        """A hash of what the KL is measured from; None for a policy that PPO has not trained."""
        return hash_of(self.held_to) or BASE if self.stage == PPO else None


def hash_of(adapter: Path | None) -> str | None:
    """Of an adapter's weights and shape; None is the base itself."""
    return None if adapter is None else content_of(adapter)


def _content(model: ModelSection) -> dict[str, Any]:
    found = model.model_dump(mode="json", exclude={"base_id"})
    if model.chat_template is not None:
        if not Path(model.chat_template).is_file():
            raise CheckpointError(
                f"{model.chat_template}: no such file; the run's recipe names it as its chat template, so start "
                "the command in the directory in which the run was started"
            )
        found["chat_template"] = sha256_of(model.chat_template)
    if Path(model.name_or_path).exists():
        found["name_or_path"] = sha256_of(model.name_or_path)
    return found | {"dtype": str(resolve_dtype(model.dtype))}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# -------------------------------------------------------------------- of a run


def of_run(
    recipe: Recipe, stages: dict[str, Path], run: Path | None = None, *, steps: Collection[int] | None = None
) -> list[Policy]:
    """The base and the finished stages, in their order, and after them PPO's checkpoints.

    Args:
        stages: the directories of `sft` and `ppo`, those that there are.
        steps: of the checkpoints; empty are all that are kept, None is none.

    Raises:
        CheckpointError: a checkpoint that is not kept.
    """
    length = recipe.data.max_prompt_length
    found = [Policy(BASE, LABELS[BASE], recipe.model, None, length, run, BASE)]
    if SFT in stages:
        found.append(Policy(SFT, LABELS[SFT], recipe.model, stages[SFT], length, run, SFT))
    if PPO in stages:
        held_to = origin_of(recipe, stages.get(SFT))
        updates = read_manifest(stages[PPO]).metrics.get("updates")
        last = Policy(PPO, LABELS[PPO], recipe.model, stages[PPO], length, run, PPO, None, updates, held_to)
        found.append(last)
        for step, folder in _kept(stages[PPO], steps).items():
            name, label = f"{PPO}@{step}", f"{LABELS[PPO]} after {step} updates"
            found.append(replace(last, name=name, label=label, adapter=folder, step=step, updates=step))
    return found


def _kept(stage: Path, steps: Collection[int] | None) -> dict[int, Path]:
    """The checkpoints that are wanted, by their steps."""
    kept = {int(folder.name.rsplit("-", 1)[1]): folder for folder in checkpoints(stage)}
    if not steps:
        return {} if steps is None else kept
    if missing := sorted(set(steps) - set(kept)):
        there = ", ".join(map(str, kept)) or "none: set ppo.keep_checkpoints in the recipe"
        raise CheckpointError(f"{stage}: has kept no checkpoint {', '.join(map(str, missing))}; there are {there}")
    return {step: folder for step, folder in kept.items() if step in steps}


def named(words: Sequence[str], *, steps: Collection[int] | None = None) -> list[Policy]:
    """What a person has named, the first run's policies first; the same weights under several names come once.

    Args:
        words: `[LABEL=]PLACE` each: the directory of a run (its base, sft and ppo), of a stage, of an adapter in PEFT's
            layout, or a model: its directory or Hub id. A label of a run is that of its last policy.
        steps: of PPO's checkpoints, as in `of_run`.

    Raises:
        RlhfKitError: all that cannot be found, or the same label twice.
    """
    return _together(_groups(words, steps))


def _groups(words: Sequence[str], steps: Collection[int] | None) -> list[list[Policy]]:
    """The policies of each place."""
    groups: list[list[Policy]] = []
    problems = []
    for word in words:
        try:
            label, place = _parts(word)
            groups.append(_at(place, label, [policy.model for group in groups for policy in group], steps))
        except RlhfKitError as failure:
            problems.append(str(failure))
    if problems:
        raise RlhfKitError("\n".join(problems))
    return groups


def _together(groups: Sequence[Sequence[Policy]]) -> list[Policy]:
    """All of them in their order under names of their own, the same weights once."""
    found: dict[tuple[str, bool], Policy] = {}
    for policy in _with_names_of_their_own(groups):
        # A checkpoint with the last weights stays: the curve over the checkpoints needs it.
        found.setdefault((policy.identity, policy.step is not None), policy)
    policies = sorted(found.values(), key=lambda policy: (_order(policy), policy.step is not None))
    twice = [name for name, times in Counter(policy.name for policy in policies).items() if times > 1]
    if twice:
        raise RlhfKitError(f"{', '.join(twice)}: names several policies; give them labels: LABEL=PLACE")
    return policies


def answering(words: Sequence[str], stages: Collection[str] = ()) -> tuple[Policy, ...]:
    """Of each place that a person has named the last policy, or those of the stages that are wanted.

    Args:
        words: as in `named`.
        stages: some of base, sft and ppo; adapters and models are none of a stage and always answer.

    Raises:
        RlhfKitError: all that cannot be found, the same label twice, or nobody of these stages.
    """
    groups = _groups(words, None)
    if stages:
        groups = [[policy for policy in group if policy.stage in (*stages, "other")] for group in groups]
        there = {policy.stage for group in groups for policy in group}
        if missing := [stage for stage in stages if stage not in there]:
            raise CheckpointError(f"{', '.join(words)}: no policy of the stage {', '.join(missing)}")
    else:
        groups = [group[-1:] for group in groups]
    return tuple(_together(groups))


def _order(policy: Policy) -> int:
    return {BASE: 0, SFT: 1}.get(policy.stage, 2)


def _parts(word: str) -> tuple[str | None, str]:
    label, sign, place = word.partition("=")
    if not sign or Path(word).exists():
        return None, word
    if not label.strip() or not place:
        raise RlhfKitError(f"{word}: name a policy as LABEL=PLACE, such as PPO-ptx=runs/ptx")
    return label.strip(), place


def _at(place: str, label: str | None, known: Iterable[ModelSection], steps: Collection[int] | None) -> list[Policy]:
    path = Path(place)
    stages = {stage: path / stage for stage in (SFT, PPO) if (path / stage / MANIFEST).is_file()}
    if stages:
        trained = {stage: read_manifest(directory) for stage, directory in stages.items()}
        recipe = recipe_of(list(trained.values())[-1], list(stages.values())[-1])
        found = of_run(recipe, stages, path, steps=steps)
        last = next(policy for policy in reversed(found) if policy.step is None)
        return [_labelled(policy, label, last) for policy in found] if label else found
    if (path / REWARD / MANIFEST).is_file():
        return [_labelled(policy, label, policy) if label else policy for policy in of_run(last_recipe(path), {}, path)]
    if (path / MANIFEST).is_file() and (manifest := read_manifest(path)).stage in (SFT, PPO):
        # Beside its siblings, so that the KL is measured from what it was held to.
        siblings = {manifest.stage: path}
        if manifest.stage == PPO and (path.parent / SFT / MANIFEST).is_file():
            siblings = {SFT: path.parent / SFT, PPO: path}
        policy = of_run(recipe_of(manifest, path), siblings, path.parent)[-1]
        return [_labelled(policy, label, policy) if label else policy]
    if (path / CONFIG_NAME).is_file():
        name = label or path.name
        return [Policy(name, name, _base_of(path, known), path, _LONGEST, None)]
    if path.is_file() and path.suffix != ".gguf":
        raise CheckpointError(f"{place}: is a file; name the directory of a run, of an adapter or of a model")
    if path.is_dir() and not (path / "config.json").is_file():
        raise CheckpointError(f"{place}: neither a run, nor a stage, nor an adapter, nor a model is in it")
    if not path.exists() and not is_repository_name(place):
        raise CheckpointError(f"{place}: no such directory, and no Hub id (owner/name) either")
    name = label or Path(place).name
    return [Policy(name, name, ModelSection(name_or_path=place), None, _LONGEST)]


_LONGEST = 1 << 20
"""Of those without a recipe: the model's own context is the limit."""


def _labelled(policy: Policy, label: str, last: Policy) -> Policy:
    if policy.name == last.name:
        return replace(policy, name=label, label=label)
    if policy.step is not None:
        return replace(policy, name=f"{label}@{policy.step}", label=f"{label} after {policy.step} updates")
    return policy


def _with_names_of_their_own(groups: Sequence[Sequence[Policy]]) -> list[Policy]:
    """Of several runs, names that another one has too begin with the run's; the first run keeps its own."""
    taken: dict[str, str] = {}
    found = []
    for group in groups:
        for policy in group:
            other = taken.setdefault(policy.name, policy.identity)
            if other != policy.identity and policy.run is not None:
                name = policy.run.resolve().name
                policy = replace(policy, name=f"{name}/{policy.name}", label=f"{name}: {policy.label}")
                taken.setdefault(policy.name, policy.identity)
            found.append(policy)
    return found


def last_recipe(run: Path) -> Recipe:
    """That of the last stage of a run that is finished; of the reward stage where nothing else is.

    Raises:
        CheckpointError: there is none, or it is of another version.
    """
    stage = next((run / name for name in (PPO, SFT, REWARD) if (run / name / MANIFEST).is_file()), None)
    if stage is None:
        raise CheckpointError(f"{run}: no finished stage in it; name the output_dir of a run")
    return recipe_of(read_manifest(stage), stage)


def _base_of(adapter: Path, known: Iterable[ModelSection]) -> ModelSection:
    """The base that an adapter names: one that a run has loaded under that name, else the model of that name."""
    try:
        base = json.loads((adapter / CONFIG_NAME).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as failure:
        raise CheckpointError(f"{adapter / CONFIG_NAME}: cannot be read: {failure}") from failure
    if not base:
        raise CheckpointError(f"{adapter / CONFIG_NAME}: names no base; name one in base_model_name_or_path")
    for model in known:
        if base in (model.base_id, model.name_or_path):
            return model
    template = adapter / "chat_template.jinja"
    return ModelSection(name_or_path=base, chat_template=str(template) if template.is_file() else None)
