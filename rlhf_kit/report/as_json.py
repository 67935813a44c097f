"""report.json: every number of the page, with the settings, for programs. docs/report.md lists the keys.

Numbers are as they were measured, not as the page rounds them; what is not finite is null. Texts of answers stay in
evaluation.json and samples.jsonl; directories of this machine are in neither page nor JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rlhf_kit.report.answers import answers_of, columns_of
from rlhf_kit.report.curves import CURVES, Curve, points_of, sources
from rlhf_kit.report.evaluation import Span, judge_what, judges
from rlhf_kit.report.frontier import Frontier, frontiers
from rlhf_kit.report.lead import key_figures, questions
from rlhf_kit.report.page import run_warnings
from rlhf_kit.report.run import Run
from rlhf_kit.report.runs import differences
from rlhf_kit.report.stages import stage_row, written
from rlhf_kit.report.words import number

__all__ = ["as_json"]

_ELSEWHERE = ("prompts", "frontier")
_OF_AN_ANSWER = ("tokens", "ended", "score", "rubric", "kl", "scores")


def as_json(runs: Sequence[Run]) -> dict[str, Any]:
    """The whole of it, ready for `json.dump`."""
    differing = differences(runs) if len(runs) > 1 else {}
    found = {"version": 1, "runs": [_run(run) for run in runs], "differing_settings": differing}
    cleaned: dict[str, Any] = _clean(found)
    return cleaned


def _run(run: Run) -> dict[str, Any]:
    found = frontiers(run)
    return {
        "name": run.name,
        "model": run.model,
        "base": run.base,
        "finished": run.latest.finished,
        "versions": run.latest.versions,
        "confidence": run.confidence,
        "settings": _settings(run.recipe),
        "stages": {stage: _stage(stage, run) for stage in run.manifests},
        "metrics": run.metrics,
        "figures": {one.key: {"name": one.name, **_span(one.span)} for one in key_figures(run)},
        "questions": [
            {"question": one.name, "answer": one.answer, "sentences": list(one.sentences)}
            for one in questions(run.evaluation, found)
        ],
        "warnings": run_warnings(run),
        "health": run.health,
        "frontier": [_frontier(one) for one in found],
        "evaluation": _evaluation(run.evaluation),
        "mean_changes": _changes(run.evaluation),
        "answers": _answers(run.evaluation),
        "samples": [
            {key: entry.get(key) for key in ("step", "prompt", "score", "reference_score")} for entry in run.samples
        ],
        "curves": {stage: _curves(stage, log) for stage, log in run.logs.items()},
        "reward_quality": _settings({key: value for key, value in run.quality.items() if key != "settings"}),
    }


def _evaluation(evaluation: dict[str, Any]) -> Any:
    """All but what stands elsewhere, without directories."""
    found = {key: value for key, value in evaluation.items() if key not in _ELSEWHERE}
    if "judges" in found:
        found["judges"] = [{**judge, "what": judge_what(judge)} for judge in judges(evaluation)]
    return _settings(found)


def _settings(section: Any) -> Any:
    """The recipe with files by their names only."""
    if isinstance(section, dict):
        return {name: _settings(value) for name, value in section.items() if name != "output_dir"}
    if isinstance(section, (list, tuple)):
        return [_settings(value) for value in section]
    return written(section) if isinstance(section, str) else section


def _stage(stage: str, run: Run) -> dict[str, Any]:
    row = stage_row(stage, run.manifests[stage], run.metrics)
    return {"data": row["data"], "parents": row["parents"], "seconds": row["seconds"]}


def _span(found: Span) -> dict[str, Any]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _frontier(found: Frontier) -> dict[str, Any]:
    return {
        "run": found.run,
        "source": found.source,
        "points": [
            {
                "step": point.step,
                "kl": _span(point.kl),
                "scores": {name: _span(value) for name, value in point.scores.items()},
            }
            for point in found.points
        ],
        "over_optimised": found.over,
        "words": list(found.words),
    }


def _changes(evaluation: dict[str, Any]) -> dict[str, float]:
    """Of each mean in `summary`, PPO's less SFT's."""
    before, after = ((evaluation.get("summary") or {}).get(policy) or {} for policy in ("sft", "ppo"))
    pairs = {key: (number(before.get(key)), number(after.get(key))) for key in after}
    return {key: new - old for key, (old, new) in pairs.items() if old is not None and new is not None}


def _answers(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a prompt: each policy's figures, a sample each, their means, and whether PPO did better than SFT."""
    columns = columns_of(evaluation)
    rows = []
    for row in answers_of([evaluation], columns):
        rows.append(
            {
                "prompt": row["item"]["prompt"],
                "change": row["change"] or None,
                "means": {
                    column.role: {key: cell[key] for key in ("score", "rubric")}
                    for column, cell in zip(columns, row["cells"], strict=True)
                },
                "answers": {
                    policy: [{key: answer[key] for key in _OF_AN_ANSWER if key in answer} for answer in answers or []]
                    for policy, answers in (row["item"].get("answers") or {}).items()
                },
            }
        )
    return rows


def _curves(stage: str, log: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The points that are drawn, by the log's names; `beside` and `spread` where the plot has them."""
    drawn = {}
    for curve in (*CURVES[stage], *sources(log)):
        points = points_of(log, curve)
        if len(points) > 1:
            drawn[curve.key] = {"steps": [p[0] for p in points], "values": [p[1] for p in points]}
            if curve.spread:
                drawn[curve.key]["spread"] = [p[2] for p in points]
            beside = points_of(log, Curve(curve.beside, "", "")) if curve.beside else []
            if beside:
                drawn[curve.beside] = {"steps": [p[0] for p in beside], "values": [p[1] for p in beside]}
    return drawn


def _clean(value: Any) -> Any:
    """What JSON and UTF-8 have no form for: NaN and infinities as null, half a surrogate pair as a question mark."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_clean(str(key)): _clean(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(one) for one in value]
    return value
