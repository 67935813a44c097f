"""What people are given to rank: prompts with the answers of all policies, in an order that tells nothing."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_kit import files
from rlhf_kit.errors import DataError, Problem
from rlhf_kit.evaluation.judges.base import Question
from rlhf_kit.outputs import Files, json_line, row_of
from rlhf_kit.parsing import parse
from rlhf_kit.reasons import NON_BLANK
from rlhf_kit.records import Prompt, Ranking
from rlhf_kit.sampling.drawing import Answer
from rlhf_kit.sampling.scoring import distinct
from rlhf_kit.sampling.writing import MOST_RANKED, prompt_row

__all__ = ["holds_sheet", "read_sheet", "sheet", "write_sheet"]


def sheet(prompts: Sequence[Prompt], questions: Sequence[Question], seed: int) -> list[Prompt]:
    """A row for each prompt with at least two answers to rank, as `rlhf-kit sample` writes its rows.

    `meta.responses` holds each text once, with how often it was given (`count`); who gave it is not told. Blank answers
    cannot be ranked and are left out. The order depends on the seed and the answers alone.

    Args:
        prompts: the rows of the questions' prompts.
    """
    rows = []
    for prompt, question in zip(prompts, questions, strict=True):
        said = (answer for answers in question.answers for answer in answers)
        found = distinct([Answer(a.text, a.ended, a.tokens) for a in said if re.search(NON_BLANK, a.text)])
        if len(found) >= 2:
            found.sort(key=lambda answer: answer.text)
            random.Random(f"{seed} {[answer.text for answer in found]}").shuffle(found)
            rows.append(prompt_row(prompt, found[:MOST_RANKED]))
    return rows


def write_sheet(out: Path, prompts: Sequence[Prompt], questions: Sequence[Question], seed: int) -> int:
    """Writes the sheet; returns its number of rows.

    Raises:
        DataError: it cannot be written.
    """
    rows = sheet(prompts, questions, seed)
    with Files([out]) as written:
        for row in rows:
            written.write(out, json_line(row_of(row)))
    return len(rows)


def holds_sheet(file: str) -> bool:
    """Whether the first row of a source is one of a sheet; False where it cannot be read."""
    row = next(iter(files.iter_rows(file)), None)
    value = None if row is None else row.value
    meta = value.get("meta") if isinstance(value, dict) else None
    return isinstance(value, dict) and isinstance(meta, dict) and "responses" in meta and "responses" not in value


def read_sheet(file: str) -> list[Ranking]:
    """The rankings in a sheet: of each row the answers beside which a `rank` stands, with their flags and axes.

    Rows in which nothing is ranked are passed over; those that are read keep their `labeler`.

    Raises:
        DataError: every bad row; no row in which at least two answers are ranked.
    """
    found, problems = list[Ranking](), list[Problem]()
    for entry in files.scan(file, "prompt"):
        problems += [problem for problem in entry.problems if not entry.usable]
        for record in entry.records:
            try:
                found += _ranking(record, entry.where)
            except DataError as error:
                problems += error.problems
    if not found and not problems:
        problems.append(
            Problem(file, "", 'nothing is ranked in it yet; write "rank": 1 beside the best answer, and so on')
        )
    if problems:
        raise DataError(problems)
    return found


def _ranking(record: Any, where: str) -> list[Ranking]:
    responses = record.meta.get("responses")
    if not isinstance(responses, list) or not all(isinstance(response, dict) for response in responses):
        raise DataError([Problem(where, "meta.responses", "must be a list of answers, as the sheet has it")])
    ranked = [response for response in responses if response.get("rank") is not None]
    if not ranked:
        return []
    drop = ("tokens", "count", "score")
    kept = {name: value for name in ("labeler", "category", "user_id", "id") if (value := getattr(record, name))}
    row = {
        **row_of(Prompt(prompt=record.prompt)),
        "responses": [{name: value for name, value in r.items() if name not in drop} for r in ranked],
        **kept,
    }
    ranking = parse(row, "ranking", where)
    assert isinstance(ranking, Ranking)
    return [ranking]
