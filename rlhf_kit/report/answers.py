"""Answers side by side: of all policies of a run, of several runs, and of PPO's updates."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_kit.report.evaluation import judges, label, policies
from rlhf_kit.report.words import fixed, number, plain
from rlhf_kit.stats.words import shown

__all__ = ["Column", "answers_of", "columns_of", "joined", "keyed", "training_samples"]

_MOST_STEPS, _MOST_SAMPLES = 3, 8
_LONGEST = 24


@dataclass(frozen=True)
class Column:
    """One policy's answers: by the prompt (a key of `keyed`), their samples."""

    name: str
    answers: Mapping[str, list[dict[str, Any]]]
    role: str = ""
    """`sft` or `ppo` where it is compared by the filter above the table."""


def columns_of(evaluation: dict[str, Any], run: str = "") -> list[Column]:
    """A column a policy; its name with the run's where there are several."""
    items = keyed(evaluation)
    found = []
    for policy in policies(evaluation):
        answers = {key: (item.get("answers") or {}).get(policy) or [] for key, item in items.items()}
        found.append(Column(f"{run} {label(evaluation, policy)}".strip(), answers, policy))
    return found


def joined(groups: Sequence[tuple[str, Sequence[Column]]]) -> list[Column]:
    """The columns of several runs. Policies that answered word for word the same become one: the base, a shared SFT."""
    merged: list[tuple[list[str], Column]] = []
    for run, columns in groups:
        for column in columns:
            for runs, other in merged:
                if other.name == column.name and _texts(other) == _texts(column):
                    runs.append(run)
                    break
            else:
                merged.append(([run], column))
    return [Column(f"{' '.join(runs)} · {one.name}", one.answers, one.role) for runs, one in merged]


def answers_of(evaluations: Sequence[dict[str, Any]], columns: Sequence[Column]) -> list[dict[str, Any]]:
    """One row a held-out prompt, with the means of its samples and whether PPO did better than SFT by them."""
    names = {str(judge.get("name")) for evaluation in evaluations for judge in judges(evaluation)}
    items = {key: item for evaluation in evaluations for key, item in keyed(evaluation).items()}
    compared = [[column for column in columns if column.role == role] for role in ("sft", "ppo")]
    rows = []
    for key, item in items.items():
        cells = [_cell(column.answers.get(key) or [], names) for column in columns]
        change = ""
        if [len(one) for one in compared] == [1, 1]:
            before, after = (cells[columns.index(one[0])] for one in compared)
            change = _change(before, after)
        rows.append({"item": item, "turns": turns(item["prompt"]), "cells": cells, "change": change})
    return rows


def keyed(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The prompts by what they are, and by how often they stood before where one stands twice."""
    found, times = {}, Counter[str]()
    for item in evaluation.get("prompts") or []:
        key = _key(item["prompt"])
        found[f"{key} {times[key]}"] = item
        times[key] += 1
    return found


def _cell(answers: list[dict[str, Any]], names: set[str]) -> dict[str, Any]:
    return {
        "answers": [{**answer, "scores": _scores(answer, names)} for answer in answers],
        "score": _mean(answers, "score"),
        "rubric": _mean(answers, "rubric"),
    }


def _scores(answer: dict[str, Any], judges_: set[str]) -> str:
    """What each judge gave the answer, in one line."""
    found = []
    score, rubric, tokens = (answer.get(key) for key in ("score", "rubric", "tokens"))
    if number(score) is not None:
        found.append(f"score {fixed(score)}")
    if number(rubric) is not None:
        found.append(f"rubric {plain(rubric)}")
    told = {"reward": score, "rubric": rubric}
    for name, value in (answer.get("scores") or {}).items():
        if name in judges_ and number(value) is not None and number(told.get(name)) is None:
            found.append(f"{shown(name, _LONGEST)} {plain(value)}")
    if tokens:
        found.append(f"{tokens} tokens")
    return " · ".join(found)


def _change(before: dict[str, Any], after: dict[str, Any]) -> str:
    key = "rubric" if after["rubric"] is not None else "score"
    if before[key] is None or after[key] is None:
        return ""
    return "better" if after[key] > before[key] else "worse" if after[key] < before[key] else "same"


def training_samples(entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Answers to held-out prompts while PPO went on: of the first evaluation, of one in the middle and of the last."""
    steps = sorted({entry["step"] for entry in entries})
    if not steps:
        return None
    steps = sorted({steps[place * (len(steps) - 1) // (_MOST_STEPS - 1)] for place in range(_MOST_STEPS)})
    by_prompt: dict[str, dict[int, dict[str, Any]]] = {}
    for entry in entries:
        by_prompt.setdefault(_key(entry["prompt"]), {})[entry["step"]] = entry
    rows = []
    for prompt, told in by_prompt.items():
        last = told[max(told)]
        answers = [_sample(told[step]["policy"], told[step]["score"]) if step in told else None for step in steps]
        reference = _sample(last["reference"], last["reference_score"])
        rows.append({"turns": turns(json.loads(prompt)), "answers": [reference, *answers]})
    names = ["Reference", *(f"Update {step}" for step in steps)]
    return {"names": names, "rows": rows[:_MOST_SAMPLES], "count": len(rows)}


def _sample(text: str, score: Any) -> dict[str, Any]:
    return {"text": text, "scores": f"score {fixed(score)}" if number(score) is not None else ""}


def turns(prompt: str | list[dict[str, str]]) -> list[tuple[str, str]]:
    """Role and content of each turn; a text without roles is one turn."""
    return [("", prompt)] if isinstance(prompt, str) else [(turn["role"], turn["content"]) for turn in prompt]


def _key(prompt: Any) -> str:
    return json.dumps(prompt)


def _texts(column: Column) -> list[tuple[str, list[Any]]]:
    return sorted((key, [answer.get("text") for answer in answers]) for key, answers in column.answers.items())


def _mean(answers: list[dict[str, Any]], key: str) -> float | None:
    known = [value for answer in answers if (value := number(answer.get(key))) is not None]
    return sum(known) / len(known) if known else None
