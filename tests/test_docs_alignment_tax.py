"""docs/alignment_tax.md: its commands are commands, its examples are read, and they do what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from backbones import tiny_backbone
from docs_page import blocks, commands, parsed, text_of

from rlhf_kit.evaluation.choices import Question, choices_tax, load_questions, log_likelihoods
from rlhf_kit.evaluation.tasks import tasks_tax
from rlhf_kit.evaluation.tax import WINDOW, section, text_tax
from rlhf_kit.files import load

ROOT = Path(__file__).parents[1]
TEXT = text_of("alignment_tax.md")
COMMANDS = commands(TEXT)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    arguments = parsed(command)
    assert arguments.command == "evaluate"
    assert all((ROOT / file).is_file() for file in [*arguments.text, *arguments.choices])
    assert arguments.text or arguments.choices or arguments.tasks


def test_every_option_is_told() -> None:
    told = re.findall(r"^\| `--([a-z]+) [^|]*\|", TEXT, re.MULTILINE)
    used = {word.lstrip("-") for command in COMMANDS for word in command.split() if word.startswith("--")}
    assert set(told) == used - {"task-limit"} == {"text", "choices", "tasks"}


def test_the_rows_that_it_shows_are_read(tmp_path: Path) -> None:
    text, questions = blocks(TEXT, "jsonl")
    (tmp_path / "text.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "choices.jsonl").write_text(questions, encoding="utf-8")
    assert len(load(str(tmp_path / "text.jsonl"), "text")) == 1
    found = load_questions(str(tmp_path / "choices.jsonl"))
    assert [one.choices[one.answer] for one in found] == ["Jupiter", "A frog"]
    assert set(Question.model_fields) == {"question", "choices", "answer", "id", "category"}
    assert f"{WINDOW:,} tokens" in TEXT and len(load_questions(str(ROOT / "recipes/quickstart/choices.jsonl"))) == 60


def test_a_question_is_put_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, said = tiny_backbone(), list[str]()
    real = type(backbone.tokenizer).__call__
    monkeypatch.setattr(type(backbone.tokenizer), "__call__", lambda self, text: said.append(text) or real(self, text))
    asked = Question(question="Which planet is the largest?", choices=("Mars", "Jupiter"), answer=1)
    log_likelihoods(backbone, [asked])
    (shown,) = blocks(TEXT, "text")
    assert said == [shown.rstrip("\n"), f"{shown.rstrip()} Mars", f"{shown.rstrip()} Jupiter"]


def test_the_task_that_it_shows_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks the quickstart's way, so it must say of the same file what `--choices` says of it."""
    monkeypatch.chdir(tmp_path)
    folder = Path("my_tasks")
    folder.mkdir()
    (folder / "capitals.yaml").write_text(*blocks(TEXT, "yaml"), encoding="utf-8")
    rows = [json.loads(line) for line in blocks(TEXT, "jsonl")[1].splitlines()]
    data = folder / "capitals.jsonl"
    keys = ("question", "choices", "answer")
    data.write_text("".join(json.dumps({key: row[key] for key in keys}) + "\n" for row in rows), encoding="utf-8")
    backbone, roles, ids = tiny_backbone("sft"), {"base": None, "sft": "sft"}, {"base": "b", "sft": "s"}
    tasks = tasks_tax(backbone, roles, ["my_tasks/capitals.yaml"], Path("kept"), ids)
    choices = choices_tax(backbone, roles, [str(data)], Path("kept"), ids)
    for policy in roles:
        assert [one.values for one in tasks[policy]] == [one.values for one in choices[policy]]
    text = text_tax(backbone, roles, [str(ROOT / "recipes/quickstart/text_heldout.jsonl")], Path("kept"), ids)
    found = section(text, choices, tasks, against="base", resamples=50)
    assert found is not None and list(found) == ["text", "choices", "tasks", "against"]
    assert found["text"][0]["rows"] == 20
