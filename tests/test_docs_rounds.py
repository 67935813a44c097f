"""docs/rounds.md: its commands, values and columns are those of the code."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from docs_page import blocks, commands, parsed, text_of
from test_rounds import home_of, two  # noqa: F401

from rlhf_kit.evaluation.judges.choose import judges_named
from rlhf_kit.evaluation.judges.function import FunctionJudge
from rlhf_kit.recipe_round import RoundSection
from rlhf_kit.rounds import history
from rlhf_kit.rounds.labels import is_file
from rlhf_kit.rounds.tables import tables

TEXT = text_of("rounds.md")


@pytest.mark.parametrize("command", commands(TEXT))
def test_every_command_is_one(command: str) -> None:
    assert parsed(command).command in ("round", "rounds", "sample")


def test_its_recipe_is_one() -> None:
    (text,) = blocks(TEXT, "yaml")
    section = RoundSection.model_validate(yaml.safe_load(text)["round"])
    assert section.judges == ("page",) and section.overlap == 2 and section.labelers == ["anna", "ben"]


def test_every_value_of_labels_is_one(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_judge.py").write_text("def grade(completions):\n    return [1.0] * len(completions)\n")
    (tmp_path / "runs").mkdir()
    for name in ("strong", "a", "b"):
        (tmp_path / "runs" / name).mkdir()
    own = {"rubric": FunctionJudge("rubric", "", len)}
    cells = re.findall(r"^\| (`.+`) \| .+ \|$", TEXT.split("`round.labels`:")[1].split("\n## ")[0], re.MULTILINE)
    kinds = []
    for text in (word for cell in cells for word in re.findall(r"`([^`]+)`", cell) if word != "round.labels"):
        judges = RoundSection(labels=yaml.safe_load(text) if text.startswith("[") else text).judges
        if judges == ("page",) or is_file(judges[0]):
            kinds.append("page" if judges == ("page",) else "file")
        else:
            kinds.append("+".join(judge.kind for judge in judges_named(judges, own)))
    assert kinds == ["page", "file", "function", "function", "reward", "reward", "reward+reward"]


def test_its_columns_are_those_that_are_printed(two) -> None:  # noqa: F811
    cells = re.findall(r"^\| (`.+?) \| ", TEXT.split("## What the history says")[1], re.MULTILINE)
    told = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    printed = [
        column for table in tables(history(home_of(two)), lambda figure, form: "") for column in table.columns[1:]
    ]
    assert told[: len(printed)] == printed


def test_a_round_directory_holds_what_it_says(two) -> None:  # noqa: F811
    directory = home_of(two) / "round-1"
    block = "".join(re.findall(r"^ {4,}.*\n", TEXT.split("## A round")[1].split("\n## ")[0], re.MULTILINE))
    named = set(re.findall(r"\b(\w+(?:\.jsonl|\.json|/))(?=[,;\s])", block))
    assert named == {
        *("answers.jsonl", "labels.jsonl", "rankings.jsonl", "reward/", "ppo/", "evaluation/", "round.json"),
    }
    assert all((directory / name.rstrip("/")).exists() for name in named)
    assert (home_of(two) / "kept").is_dir() and json.loads((directory / "round.json").read_text())["round"] == 1
