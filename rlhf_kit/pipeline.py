"""Runs the steps that a recipe names: each once, in order, skipping what is finished with the same inputs.

    sft -> reward -> ppo -> export -> evaluation -> report.html

A step knows only directories. What decides whether a step must run again is its `inputs`: its settings, the hashes of
its data and of the weights it starts from, the model and the seed.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_kit import files
from rlhf_kit.checkpoint import (
    MANIFEST,
    Manifest,
    differences,
    finish,
    open_work,
    read_json,
    read_manifest,
    write_json,
)
from rlhf_kit.errors import CheckpointError, Problem, RecipeError
from rlhf_kit.recipe import Recipe
from rlhf_kit.recipe_live import LIVE

log = logging.getLogger(__name__)

REWARD = "reward"
STAGES = ("sft", REWARD, "ppo")
STEPS = (*STAGES, "export", "evaluation")


@dataclass(frozen=True)
class Step:
    """One step of a recipe.

    Attributes:
        data: the `data` fields of all files that the step reads.
        needs: the step that must be there, unless the recipe does not have it.
        settings: sections that decide the result.
    """

    data: tuple[str, ...]
    needs: tuple[str, ...]
    settings: tuple[str, ...]


_STEPS = {
    "sft": Step(("demonstrations",), (), ("sft",)),
    "reward": Step(("rankings", "rankings_heldout", "ratings", "demonstrations"), ("sft",), ("reward",)),
    "ppo": Step(("prompts",), ("sft", "reward"), ("ppo",)),
    "export": Step((), ("ppo",), ("export",)),
    "evaluation": Step(("prompts_heldout", "rankings"), ("sft", "reward", "ppo"), ("evaluate",)),
}


def _data(recipe: Recipe, name: str) -> tuple[str, ...]:
    """The `data` fields that a step reads; what PPO reads beside its prompts depends on its settings."""
    fields = _STEPS[name].data
    if name == "ppo":
        fields += ("prompts_heldout",) if recipe.ppo.eval_steps else ()
        fields += (recipe.ppo.ptx_data,) if recipe.ppo.ptx_coef else ()
    return fields


def planned(recipe: Recipe) -> list[str]:
    """The steps that the recipe has data for."""
    data = recipe.data
    wanted = {
        "sft": data.demonstrations is not None,
        "reward": data.rankings is not None,
        "ppo": data.prompts is not None,
        "export": data.prompts is not None,
        "evaluation": data.prompts_heldout is not None,
    }
    return [name for name in STEPS if wanted[name]]


def check(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What is wrong with the stages' `trainer` mappings; imports the trainers only if there is such a mapping."""
    if not any(getattr(recipe, stage).trainer for stage in STAGES):
        return
    from transformers import TrainingArguments
    from trl import SFTConfig

    from rlhf_kit.stages.arguments import mistakes

    for stage in STAGES:
        cls = SFTConfig if stage == "sft" else TrainingArguments
        yield from mistakes(cls, stage, getattr(recipe, stage))


def run(recipe: Recipe) -> Path:
    """Everything the recipe names, then `metrics.json` and `report.html`; returns the output directory.

    Of several processes all train; what follows the training is done by the main one, when the others have returned.

    Raises:
        RlhfKitError: with all problems of all data files at once, before any step starts.
    """
    steps = planned(recipe)
    if not steps:
        raise RecipeError(
            [Problem("recipe", "data", "names no data, so there is nothing to do; give at least data.demonstrations")]
        )
    records = load_data(recipe, steps)
    for name in (name for name in steps if name in STAGES):
        run_records(recipe, name, records)
    out = Path(recipe.output_dir)
    if not _goes_on_alone():
        return out
    for name in (name for name in steps if name not in STAGES):
        run_records(recipe, name, records)
    _collect_metrics(recipe, steps)
    from rlhf_kit.report import write_report

    log.info("the page: %s", write_report(out))
    return out


def run_step(recipe: Recipe, name: str) -> Path:
    """One step; the steps before it are taken as they are on disk."""
    if name in STAGES or _goes_on_alone():
        run_records(recipe, name, load_data(recipe, [name]))
    if name in STAGES:
        _goes_on_alone()  # processes that end while they are connected may do so with an abort
    return Path(recipe.output_dir) / name


def _goes_on_alone() -> bool:
    """Whether this process does what follows the training: the main one of several, which is then alone."""
    if "WORLD_SIZE" not in os.environ:
        return True
    from rlhf_kit import launch

    launch.connect()
    return launch.finish_alone()


def load_data(recipe: Recipe, steps: list[str]) -> dict[str, list[Any]]:
    """The records of every data file that the steps read.

    Raises:
        DataError: every bad line of every file, and held-out prompts that are trained on.
    """
    wanted = dict.fromkeys(field for name in steps for field in _data(recipe, name))
    sources = {field: source for field in wanted if (source := getattr(recipe.data, field)) is not None}
    if "reward" in steps:
        sources |= recipe.phases
    return files.load_fields(sources)


def run_records(recipe: Recipe, name: str, records: dict[str, list[Any]], out: Path | None = None) -> None:
    """One step with the records that `load_data` gave, or others, into `out`; the step's own directory where it is
    left out."""
    run_directory = out or Path(recipe.output_dir) / name
    parents = _parents(recipe, name)
    inputs = _inputs(recipe, name, parents)
    if is_finished(run_directory, inputs):
        log.info("%s: finished with the same inputs, skipped", name)
        return
    from rlhf_kit import launch

    state = launch.connect()
    with state.main_process_first():
        work = open_work(run_directory, inputs)
    log.info("%s: %s", name, "goes on from its last checkpoint" if any(work.glob("checkpoints/*")) else "starts")
    started = time.monotonic()
    metrics = _ACTIONS[name](recipe, records, parents, work)
    seconds = time.monotonic() - started
    state.wait_for_everyone()
    if state.is_main_process:
        keep = {"sft": recipe.sft.keep_checkpoints, "ppo": recipe.ppo.keep_checkpoints}.get(name, 0)
        finish(work, run_directory, _manifest(recipe, name, inputs, parents, metrics, seconds), keep)
    state.wait_for_everyone()
    log.info("%s: done in %.0f s", name, seconds)


def is_finished(run_directory: Path, inputs: dict[str, Any]) -> bool:
    """Whether a step is done with these inputs; says what differs if it is done with others.

    Raises:
        CheckpointError: it was done, but its files have changed since.
    """
    if not (run_directory / MANIFEST).is_file():
        if run_directory.exists():
            raise CheckpointError(f"{run_directory}: exists, but is not a finished step of this kit; move it away")
        return False
    manifest = read_manifest(run_directory)
    changed = differences(manifest.inputs, inputs)
    for line in changed:
        log.info("%s: must run again: %s", run_directory.name, line)
    return not changed


def changes(recipe: Recipe, name: str) -> list[str]:
    """What a step would be made from now and was not when it was done, a dotted line each; none where it is not done.

    Raises:
        CheckpointError: it was done, but its files have changed since.
    """
    directory = Path(recipe.output_dir) / name
    if not (directory / MANIFEST).is_file():
        return []
    return differences(read_manifest(directory).inputs, _inputs(recipe, name, _parents(recipe, name)))


def _parents(recipe: Recipe, name: str) -> dict[str, Path]:
    """The finished steps that a step starts from."""
    found = {}
    out = Path(recipe.output_dir)
    for parent in _needs(recipe, name):
        if parent in planned(recipe) or (out / parent / MANIFEST).is_file():
            if not (out / parent / MANIFEST).is_file():
                raise CheckpointError(
                    f"{out / parent}: not there; {name} starts from it, so run `rlhf-kit {parent}` first"
                )
            found[parent] = out / parent
        elif parent == "reward" and name == "ppo":
            words = "missing; PPO needs a reward model, and that needs ranked answers (or name other ppo.reward_funcs)"
            raise RecipeError([Problem("recipe", "data.rankings", words)])
    return found


def _needs(recipe: Recipe, name: str) -> tuple[str, ...]:
    """The steps that a step starts from; what starts from elsewhere does not need SFT, and PPO with other rewards than
    the reward stage does not need that."""
    if name == "ppo":
        unneeded = {"sft"} if recipe.ppo.init != "sft" else set()
        unneeded |= set() if REWARD in recipe.ppo.reward_funcs else {REWARD}
        return tuple(parent for parent in _STEPS[name].needs if parent not in unneeded)
    if name == "reward" and (recipe.reward.init != "sft" or recipe.reward.model is not None):
        return ()
    return _STEPS[name].needs


def _inputs(recipe: Recipe, name: str, parents: dict[str, Path]) -> dict[str, Any]:
    """Everything that a step's result depends on, as JSON."""
    step = _STEPS[name]
    used = recipe.reward_model if name == "reward" else recipe.model
    model = used.model_dump()
    if used.chat_template is not None:
        model["chat_template"] = files.sha256_of(used.chat_template)
    sources = {field: getattr(recipe.data, field) for field in _data(recipe, name)}
    settings = {section: getattr(recipe, section).model_dump() for section in step.settings}
    if name == "evaluation":
        file, _, function = (recipe.data.rubric or "").rpartition(":")
        sources["rubric"] = file or None
        settings |= {"rubric": function, "response_length": recipe.ppo.response_length}
    if name == "ppo":
        others = [source for source in recipe.ppo.reward_funcs if source not in (REWARD, LIVE)]
        sources |= {f"reward_funcs.{n}": _file_of(source) for n, source in enumerate(others)}
        engine = recipe.ppo.rollout  # where the server is, and how long it is waited for, changes no result
        settings["ppo"]["rollout"] = {"engine": engine.engine, "importance_cap": engine.importance_cap}
        live = settings["ppo"].pop("live")  # nor where people's scores are
        if LIVE in recipe.ppo.reward_funcs:
            settings["ppo"]["live"] = {name: live[name] for name in ("on_timeout", "overlap")}
    if name == "reward":
        sources |= recipe.phases
    if name in ("reward", "ppo"):
        init = getattr(recipe, name).init
        settings["init"] = _hash(init) if init not in ("sft", "base") else None
    return {
        "model": model,
        "lora": recipe.lora.model_dump(),
        "settings": settings,
        "max_prompt_length": recipe.data.max_prompt_length,
        "seed": recipe.seed,
        "data": {field: _hash(source) for field, source in sources.items() if source is not None},
        "parents": {parent: read_json(path / MANIFEST)["files"] for parent, path in parents.items()},
    }


def _hash(source: str) -> str:
    """Of a file's or directory's bytes; a Hub id or module stands for itself."""
    return files.sha256_of(source) if Path(source).exists() else source


def _file_of(source: str) -> str:
    """The file of `path.py:function`; a module, a directory or a Hub id as it is."""
    return source.rpartition(":")[0] if Path(source.rpartition(":")[0]).is_file() else source


def _manifest(
    recipe: Recipe, name: str, inputs: dict[str, Any], parents: dict[str, Path], metrics: dict[str, Any], seconds: float
) -> Manifest:
    from rlhf_kit.models.loading import base_id, resolve_dtype

    model = recipe.reward_model if name == "reward" else recipe.model
    base = {
        "id": base_id(model),
        "name_or_path": model.name_or_path,
        "revision": model.revision,
        "sha256": model.sha256,
        "dtype": str(resolve_dtype(model.dtype)).removeprefix("torch."),
        "quantization": model.quantization,
    }
    relative = {parent: f"../{path.name}" for parent, path in parents.items()}
    return Manifest(name, inputs, metrics, round(seconds, 1), base, relative, recipe.model_dump(mode="json"))


# -------------------------------------------------------------------- what each step does

Action = Callable[[Recipe, dict[str, list[Any]], dict[str, Path], Path], dict[str, Any]]


def _sft(recipe: Recipe, records: dict[str, list[Any]], parents: dict[str, Path], work: Path) -> dict[str, Any]:
    from rlhf_kit.stages import sft

    return sft.train(recipe, records["demonstrations"], work)


def _reward(recipe: Recipe, records: dict[str, list[Any]], parents: dict[str, Path], work: Path) -> dict[str, Any]:
    from rlhf_kit.stages import reward

    return reward.train(
        recipe,
        records["rankings"],
        records.get("rankings_heldout", []),
        records.get("demonstrations", []),
        parents.get("sft"),
        work,
        ratings=records.get("ratings", []),
        phases=[records[field] for field in recipe.phases],
    )


def _ppo(recipe: Recipe, records: dict[str, list[Any]], parents: dict[str, Path], work: Path) -> dict[str, Any]:
    from rlhf_kit.stages import ppo

    data = ppo.PpoData(
        records["prompts"],
        heldout=records["prompts_heldout"] if recipe.ppo.eval_steps else (),
        text=records[recipe.ppo.ptx_data] if recipe.ppo.ptx_coef else (),
    )
    return ppo.train(recipe, data, ppo.origin_of(recipe, parents.get("sft")), parents.get("reward"), work)


def _export(recipe: Recipe, records: dict[str, list[Any]], parents: dict[str, Path], work: Path) -> dict[str, Any]:
    from rlhf_kit.export.exporting import Wish, write
    from rlhf_kit.export.source import find

    return write(find(parents["ppo"]), Wish(positions=recipe.export.positions), work)


def _evaluation(recipe: Recipe, records: dict[str, list[Any]], parents: dict[str, Path], work: Path) -> dict[str, Any]:
    from rlhf_kit.evaluation.stage import evaluate_run

    return evaluate_run(recipe, records["prompts_heldout"], parents, records.get("rankings", []), work)


_ACTIONS: dict[str, Action] = {
    "sft": _sft,
    "reward": _reward,
    "ppo": _ppo,
    "export": _export,
    "evaluation": _evaluation,
}


def _collect_metrics(recipe: Recipe, steps: list[str]) -> None:
    """`metrics.json`: the figures of every step in one nested file."""
    out = Path(recipe.output_dir)
    manifests = {name: read_manifest(out / name) for name in steps}
    metrics: dict[str, Any] = {name: dict(manifests[name].metrics) for name in steps if name != "evaluation"}
    if "evaluation" in manifests:
        for stage, figures in manifests["evaluation"].metrics.items():
            if stage in metrics:
                metrics[stage] |= figures
    if "ppo" in metrics:
        metrics["ppo"]["explained_variance"] = metrics["ppo"]["train_explained_variance"]
    metrics["seconds"] = {name: manifest.seconds for name, manifest in manifests.items()}
    write_json(out / "metrics.json", metrics)


def export_run(run_directory: Path, out: Path | None = None) -> Path:
    """Exports the policy of a whole run as an adapter, by what its own manifest says; returns the directory.

    Args:
        out: a new directory; the run's own export step where it is left out.

    Raises:
        CheckpointError: the run has no finished PPO stage.
        ExportError: what was written does not do what the trained model does; nothing is left of it.
    """
    from rlhf_kit.export.exporting import Wish, export

    recipe = Recipe.model_validate(read_manifest(run_directory / "ppo").recipe)
    if out is None:
        return run_step(recipe.model_copy(update={"output_dir": str(run_directory)}), "export")
    return export(run_directory, Wish(positions=recipe.export.positions), out=out)
