"""Accuracies, their paired differences and the curve, from the scores of both trainers; one code for both."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_kit.measures import Estimate, bootstrap_mean

from .settings import TRAINERS, Settings, is_finished, read_json, read_pairs

ByPrompt = dict[str, float]
"""One number a prompt: several pairs of a prompt depend on each other and are averaged first."""


class Point:
    """What one checkpoint says of the held-out pairs."""

    def __init__(self, keys: Sequence[str], row: Mapping[str, Any]) -> None:
        self.cpu_seconds: float = row["cpu_seconds"]
        self.marks: list[float] = row["marks"]
        self.epochs_done: int | None = row["epochs_done"]
        gap = np.array(row["scores"][::2]) - np.array(row["scores"][1::2])
        self.right = by_prompt(keys, (gap > 0) + 0.5 * (gap == 0))
        self.log_loss = by_prompt(keys, np.logaddexp(0.0, -gap))


def by_prompt(keys: Sequence[str], values: Any) -> ByPrompt:
    """The mean of the values of each prompt."""
    found: dict[str, list[float]] = {}
    for key, value in zip(keys, values, strict=True):
        found.setdefault(key, []).append(float(value))
    return {key: sum(group) / len(group) for key, group in found.items()}


def points_of(run: Path) -> list[Point]:
    """The scored checkpoints of a run, in the order of training."""
    keys = [pair.key for pair in read_pairs(run, "heldout")]
    return [Point(keys, read_json(path)) for path in sorted((run / "scores").glob("step-*.json"))]


def over_seeds(seeds: Sequence[ByPrompt]) -> ByPrompt:
    """A prompt's mean over the seeds that held it out."""
    return by_prompt([key for one in seeds for key in one], [value for one in seeds for value in one.values()])


def difference(kit: ByPrompt, peer: ByPrompt) -> ByPrompt:
    """Kit - TRL on each prompt. Both have the same prompts."""
    if kit.keys() != peer.keys():
        raise SystemExit("the two trainers were scored on different prompts")
    return {key: kit[key] - peer[key] for key in kit}


def interval(values: ByPrompt) -> Estimate:
    """The mean over prompts with its 95 % bootstrap interval over prompts."""
    return bootstrap_mean([values[key] for key in sorted(values)], resamples=10_000)


Runs = dict[int, dict[str, list[Point]]]


def read_runs(out: Path) -> Runs:
    """Seeds whose two runs are finished and scored."""
    runs: Runs = {}
    for folder in sorted(out.glob("seed*"), key=lambda path: int(path.name.removeprefix("seed"))):
        if all(is_finished(folder / name) for name in TRAINERS):
            points = {name: points_of(folder / name) for name in TRAINERS}
            if all(points.values()):
                runs[int(folder.name.removeprefix("seed"))] = points
    return runs


def compare(out: Path) -> list[dict[str, Any]]:
    """Rows of results: at each mark that both reached and at each number of epochs, each seed and all together.

    Raises:
        SystemExit: no seed has both runs finished and scored, or the runs had different settings.
    """
    runs = read_runs(out)
    if not runs:
        raise SystemExit(f"{out}: no seed with both trainers finished and evaluated")
    rows = []
    for at, value, pick in _comparisons(runs):
        found = {
            seed: {name: pick(sides[name]) for name in TRAINERS}
            for seed, sides in runs.items()
            if all(pick(sides[name]) is not None for name in TRAINERS)
        }
        for seed, pair in found.items():
            rows.append({"at": at, "value": value, "seed": seed, **_row([pair])})
        if len(found) > 1:
            rows.append({"at": at, "value": value, "seed": "all", **_row(list(found.values()))})
    return rows


Pick = Callable[[list[Point]], Point | None]


def _comparisons(runs: Runs) -> Iterator[tuple[str, float, Pick]]:
    every = [point for sides in runs.values() for points in sides.values() for point in points]
    for mark in sorted({mark for point in every for mark in point.marks}):
        yield "cpu_seconds", mark, lambda points, mark=mark: next((p for p in points if mark in p.marks), None)
    for epochs in sorted({point.epochs_done for point in every if point.epochs_done}):
        yield "epochs", epochs, lambda points, n=epochs: next((p for p in points if p.epochs_done == n), None)


def _row(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in TRAINERS:
        row[f"{name}_accuracy"] = _rounded(interval(over_seeds([pair[name].right for pair in pairs])))
        row[f"{name}_log_loss"] = _rounded(interval(over_seeds([pair[name].log_loss for pair in pairs])))
        row[f"{name}_cpu_seconds"] = round(sum(pair[name].cpu_seconds for pair in pairs) / len(pairs), 1)
    for what in ("right", "log_loss"):
        gaps = [difference(getattr(pair["kit"], what), getattr(pair["trl"], what)) for pair in pairs]
        name = "accuracy" if what == "right" else what
        row[f"difference_{name}"] = _rounded(interval(over_seeds(gaps)))
    row["prompts"] = len(over_seeds([pair["kit"].right for pair in pairs]))
    # Not below by more than the paired interval: the interval of kit - TRL reaches zero.
    row["kit_not_below"] = row["difference_accuracy"]["high"] >= 0
    return row


def _rounded(estimate: Estimate) -> dict[str, float]:
    return {name: round(value, 4) for name, value in estimate.as_dict().items()}


def baselines(out: Path, seeds: Sequence[int]) -> dict[str, float]:
    """Held-out accuracy of two rules that read nothing: the shorter answer wins, the longer one does."""
    shorter: list[ByPrompt] = []
    for seed in seeds:
        pairs = read_pairs(out / f"seed{seed}" / "kit", "heldout")
        gap = np.array([len(pair.worse) - len(pair.better) for pair in pairs])
        shorter.append(by_prompt([pair.key for pair in pairs], (gap > 0) + 0.5 * (gap == 0)))
    value = interval(over_seeds(shorter)).value
    return {"shorter": round(value, 4), "longer": round(1 - value, 4)}


def summary(out: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last line: the verdict at equal budget and at equal epochs, over all seeds, and how fast both were."""
    seeds = sorted({row["seed"] for row in rows if row["seed"] != "all"})
    settings = Settings.read(out / f"seed{seeds[0]}" / "kit")
    which: Any = "all" if len(seeds) > 1 else seeds[0]
    pooled = [row for row in rows if row["seed"] == which]
    budget = [row for row in pooled if (row["at"], row["value"]) == ("cpu_seconds", settings.budget)]
    epochs = [row for row in pooled if row["at"] == "epochs"]
    done = {name: [read_json(out / f"seed{seed}" / name / "done.json") for seed in seeds] for name in TRAINERS}
    about = read_json(out / f"seed{seeds[0]}" / "data.json")["about"]
    return {
        "benchmark": "reward_quality",
        "seeds": seeds,
        "budget": settings.budget,
        "learning_rate": settings.learning_rate,
        "equal_budget": budget[0] if budget else None,
        "equal_epochs": epochs,
        "kit_not_below": bool(budget and epochs) and all(row["kit_not_below"] for row in [*budget, *epochs]),
        "baselines": baselines(out, seeds),
        "speed": {name: _speed(found) for name, found in done.items()},
        "settings": {"kit": _own(out, seeds[0], "kit"), "trl": _own(out, seeds[0], "trl")},
        "versions": {name: found[0]["versions"] for name, found in done.items()},
        "heads": {name: found[0]["head"] for name, found in done.items()},
        "data": {key: value for key, value in about.items() if key != "fingerprint"},
        "machine": platform.processor() or platform.machine(),
    }


def _own(out: Path, seed: int, name: str) -> dict[str, Any]:
    settings = Settings.read(out / f"seed{seed}" / name)
    return {
        "micro_batch": settings.micro_batch,
        "gradient_checkpointing": settings.checkpointing,
        "attention": settings.attention,
        "dtype": settings.dtype,
    }


def _speed(done: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = ("epochs", "cpu_seconds_an_epoch", "text_tokens_a_cpu_second", "peak_mib", "cpu_seconds", "wall_seconds")
    return {name: round(sum(one[name] for one in done) / len(done), 2) for name in names}


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a markdown table."""
    lines = [
        "| at | seed | kit accuracy | TRL accuracy | kit - TRL | kit log loss | TRL log loss | kit - TRL |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        at = f"{row['value']:g} CPU s" if row["at"] == "cpu_seconds" else f"epoch {row['value']:g}"
        names = ("kit_accuracy", "trl_accuracy", "difference_accuracy")
        names += ("kit_log_loss", "trl_log_loss", "difference_log_loss")
        cells = [_cell(row[name], name.startswith("difference")) for name in names]
        lines.append(f"| {at} | {row['seed']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: Mapping[str, float], signed: bool) -> str:
    form = "+.3f" if signed else ".3f"
    return f"{value['value']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def write_all(out: Path) -> dict[str, Any]:
    """Writes `results.jsonl`, `results.md`, `accuracy.svg` and `accuracy.png` into `out`; returns the summary."""
    from .plot import draw

    rows = compare(out)
    last = summary(out, rows)
    lines = [json.dumps(row) for row in [*rows, last]]
    (out / "results.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "results.md").write_text(as_table(rows), encoding="utf-8")
    draw(read_runs(out), last["budget"], last["baselines"], [out / "accuracy.svg", out / "accuracy.png"])
    return last
