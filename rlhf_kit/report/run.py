"""A run as its directory has it: what stages and evaluation wrote, read once for the page and for report.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_kit.checkpoint import MANIFEST, METRICS, Manifest, read_json, read_manifest, read_metrics
from rlhf_kit.errors import CheckpointError
from rlhf_kit.report.stages import is_path, short
from rlhf_kit.report.words import number

__all__ = ["STAGES", "Run", "read_run", "read_runs"]

STAGES = ("sft", "reward", "ppo")
SAMPLES = "samples.jsonl"
_EVALUATIONS = ("policies/evaluation.json", "evaluation/evaluation.json")
_QUALITIES = ("reward_quality.json", "reward/reward_quality.json", "reward_quality/reward_quality.json")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: the directory's, unlike that of any other run on the page.
        manifests: by stage, those that are finished.
        metrics: the run's figures by stage.
        logs: the entries of metrics.jsonl by stage.
        evaluation: what `evaluate policy` found, else what the run's own step found; empty where there is neither.
        samples: answers to held-out prompts while PPO went on.
        quality: what `evaluate reward` found of the reward model; empty where it was not run into this directory.
    """

    name: str
    path: Path
    manifests: dict[str, Manifest]
    metrics: dict[str, Any]
    logs: dict[str, list[dict[str, Any]]]
    evaluation: dict[str, Any]
    samples: list[dict[str, Any]]
    quality: dict[str, Any]

    @cached_property
    def latest(self) -> Manifest:
        """Of the stage that finished last."""
        return max(self.manifests.values(), key=lambda manifest: manifest.finished)

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe's sections, each as its own stage was run with."""
        own = {stage: one.recipe[stage] for stage, one in self.manifests.items() if one.recipe.get(stage)}
        return {**self.latest.recipe, **own}

    @property
    def model(self) -> str:
        """The base by its Hub id, else by its file's name."""
        model = self.latest.recipe.get("model") or {}
        return str(model.get("base_id") or short(str(model.get("name_or_path") or "a language model")))

    @property
    def base(self) -> dict[str, Any]:
        """What is known of the base's weights, without directories."""
        told = self.latest.base.items()
        return {key: short(value) if isinstance(value, str) and is_path(value) else value for key, value in told}

    @property
    def date(self) -> str:
        """The day it was finished; empty where that cannot be read."""
        try:
            day = datetime.fromisoformat(self.latest.finished)
        except ValueError:
            return ""
        return f"{day.day} {day:%B %Y}"

    @property
    def confidence(self) -> float:
        """Of the intervals in the run's figures."""
        found = number(self.evaluation.get("confidence"))
        return found or number((self.latest.recipe.get("evaluate") or {}).get("confidence")) or 0.95

    @property
    def health(self) -> list[str]:
        """What PPO itself says of its run, a sentence each."""
        said = self.manifests["ppo"].metrics.get("verdict") if "ppo" in self.manifests else None
        return [str(sentence) for sentence in said] if isinstance(said, list) else []


def read_run(directory: Path) -> Run:
    """Reads a run.

    Raises:
        CheckpointError: no stage is finished there, or a file is damaged.
    """
    manifests = {
        stage: read_manifest(directory / stage) for stage in STAGES if (directory / stage / MANIFEST).is_file()
    }
    if not manifests:
        raise CheckpointError(f"{directory}: no finished stage to report on; rlhf-kit run RECIPE makes one")
    logs = {stage: read_metrics(directory / stage) for stage in manifests if (directory / stage / METRICS).is_file()}
    return Run(
        name=directory.resolve().name,
        path=directory,
        manifests=manifests,
        metrics=_first(directory, "metrics.json") or {stage: one.metrics for stage, one in manifests.items()},
        logs={stage: logs.get(stage, []) for stage in manifests},
        evaluation=_first(directory, *_EVALUATIONS),
        samples=_lines(directory / "ppo" / SAMPLES),
        quality=_first(directory, *_QUALITIES),
    )


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """Reads several, and gives each a name of its own: with its parent's where two are called the same.

    Raises:
        CheckpointError: one cannot be reported on, or is named twice; all that is wrong is said.
    """
    problems, runs = [], []
    places = [directory.resolve() for directory in directories]
    for number_, directory in enumerate(directories):
        if places[number_] in places[:number_]:
            problems.append(f"{directory}: named twice; name each run once")
            continue
        try:
            runs.append(read_run(directory))
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.path.resolve().parent.name}/{run.name}") if names.count(run.name) > 1 else run
        for run in runs
    ]


def _first(directory: Path, *names: str) -> dict[str, Any]:
    """The first of these files that is there; empty where none is."""
    found = next((directory / name for name in names if (directory / name).is_file()), None)
    value = read_json(found) if found is not None else {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{found}: damaged (not a JSON object)")
    return value


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
