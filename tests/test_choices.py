"""Questions with answers to choose from: lm-eval itself says what is right, item by item."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from backbones import tiny_backbone

from rlhf_kit.errors import DataError
from rlhf_kit.evaluation.choices import Question, choices_tax, load_questions, log_likelihoods, right
from rlhf_kit.evaluation.tax import section
from rlhf_kit.models import Backbone

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart"
ROWS: list[dict[str, Any]] = [
    {"question": "Is a whale a fish?", "choices": ["No, a mammal.", "Yes.", "It is a cat, and a dog."], "answer": 0},
    {"question": "What colour is the sky?", "choices": ["red", "blue"], "answer": 1, "id": "sky", "category": "air"},
    {"question": "Which of these is a fruit?", "choices": ["a dog", "an apple", "the rain", "a door"], "answer": 1},
    {"question": "Which of these is a fruit?", "choices": ["a plum", "a cat"], "answer": 0},
    {"question": "天空是什么颜色？", "choices": ["蓝色的", "红", "绿色"], "answer": 0},
    {"question": "Count to five.", "choices": ["one two three four five", "five", "ten nine"], "answer": 0},
]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def by_lm_eval(backbone: Backbone, source: str, folder: Path) -> list[dict[str, Any]]:
    """lm-eval's own account of each question, in the order of the file."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    task = {
        "task": "own_choices",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": source}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": name, "aggregation": "mean"} for name in ("acc", "acc_norm")],
    }
    (folder / "own_choices.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    model = HFLM(pretrained=backbone.base, tokenizer=backbone.tokenizer, batch_size=3)
    results = lm_eval.simple_evaluate(model, tasks=["own_choices"], task_manager=manager, bootstrap_iters=0)
    return sorted(results["samples"]["own_choices"], key=lambda sample: sample["doc_id"])


@pytest.mark.parametrize("role", [None, "sft"])
def test_item_by_item_as_lm_eval(tmp_path: Path, role: str | None) -> None:
    backbone, source = tiny_backbone("sft"), written(tmp_path / "own.jsonl", ROWS)
    questions = load_questions(source)
    with backbone.role(role):
        expected = by_lm_eval(backbone, source, tmp_path)
        found = log_likelihoods(backbone, questions, batch_size=4)
    for question, ours, theirs in zip(questions, found, expected, strict=True):
        assert ours == pytest.approx([value for ((value, _),) in theirs["resps"]], abs=1e-3)
        assert right(question, ours) == theirs["acc_norm"]
    measured = choices_tax(backbone, {"it": role}, [source], tmp_path / "kept", {"it": "x"})
    (items,) = measured["it"]
    assert items.values == tuple(row["acc_norm"] for row in expected) and set(items.values) == {0.0, 1.0}
    assert (items.name, items.metric, items.counts) == ("own.jsonl", "acc_norm", (1.0,) * len(ROWS))


def test_the_length_counts_and_ties_are_shared() -> None:
    asked = Question(question="q", choices=("four", "eightfold", "five"), answer=1)
    assert right(asked, [-4.0, -8.0, -6.0]) == 1.0  # -1, -0.89, -1.5 a character
    assert right(asked, [-2.0, -8.0, -6.0]) == 0.0
    assert right(asked, [-4.0, -9.0, -6.0]) == 0.5 and right(asked, [-4.0, -9.0, -4.0]) == pytest.approx(1 / 3)


def test_a_model_that_knows_nothing_gets_what_guessing_gets() -> None:
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.base.get_output_embeddings().weight.zero_()  # every token is as likely as any other
    asked = [Question(question="Say it.", choices=("one", "two", "ten", "six"), answer=place) for place in range(4)]
    assert [right(one, row) for one, row in zip(asked, log_likelihoods(backbone, asked), strict=True)] == [0.25] * 4


def test_a_question_longer_than_the_context_keeps_its_end() -> None:
    backbone = tiny_backbone()
    long = Question(question="why " * 2000 + "What is it?", choices=("red", "blue"), answer=0)
    assert len(backbone.tokenizer(long.question)["input_ids"]) > backbone.context_length
    (found,) = log_likelihoods(backbone, [long])
    assert all(value < 0 for value in found) and found[0] != found[1]


def test_what_was_measured_is_kept_by_content(tmp_path: Path) -> None:
    backbone, source, kept = tiny_backbone("sft"), written(tmp_path / "own.jsonl", ROWS), tmp_path / "kept"
    roles, done = {"base": None, "sft": "sft"}, list[int]()
    first = choices_tax(backbone, roles, [source], kept, {"base": "b", "sft": "s"}, progress=done.append)
    assert done == [len(ROWS)] * 2
    backbone.forward = None  # type: ignore[method-assign, assignment]
    assert choices_tax(backbone, roles, [source], kept, {"base": "b", "sft": "s"}) == first
    found = section({}, first, {}, against="base", resamples=50)
    assert found is not None
    assert found["choices"][0]["accuracy"]["base"]["value"] == sum(first["base"][0].values) / len(ROWS)
    written(Path(source), ROWS[:2])
    with pytest.raises(TypeError):  # other questions are asked anew
        choices_tax(backbone, roles, [source], kept, {"base": "b", "sft": "s"})


# -------------------------------------------------------------------- the file


def test_every_mistake_is_found_at_once(tmp_path: Path) -> None:
    good = ROWS[1]
    rows = [
        good,
        {**good, "id": "two"},  # the same question and choices
        {"question": "q", "choices": ["a", "b"], "answer": 2},
        {"question": "q", "choices": ["a", "b", "a"], "answer": 0},
        {"question": " ", "choices": ["a"], "answer": "1"},
        {"question": "q", "choices": ["a", ""], "answer": True},
        {"qestion": "q", "choices": ["a", "b"], "answer": -1},
        {"question": "another", "choices": ["a", "b"], "answer": 0, "id": "sky"},
    ]
    source = written(tmp_path / "bad.jsonl", rows)
    with Path(source).open("a", encoding="utf-8") as stream:
        stream.write('{"question": "q", "question": "r", "choices": ["a", "b"], "answer": 0}\n{"question": \n')
    with pytest.raises(DataError) as failure:
        load_questions(source)
    found = [str(problem).removeprefix(f"{source}:") for problem in failure.value.problems]
    assert found[:-2] == [
        f"2: question: stands in {source}:1 already",
        "3: answer: must be at most 1, not 2: the place of the right choice, counted from 0",
        "4: choices.2: the same as choice 0; one of the two cannot be right",
        "5: question: empty; a text is needed",
        "5: choices: 1 given, at least 2 needed; a question needs 2 choices or more",
        '5: answer: must be a whole number, not "1"; write it without quotes',
        "6: choices.1: empty; a text is needed",
        "6: answer: must be a whole number, not true",
        "7: question: missing; every row needs its question",
        "7: answer: must be at least 0, not -1",
        "7: qestion: unknown key; did you mean 'question'?",
        f"8: id: stands in {source}:1 already",
    ]
    assert found[-2].startswith("9: the key 'question' stands twice") and found[-1].startswith("10: ")


def test_a_file_without_rows_or_none_at_all(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError) as failure:
        choices_tax(tiny_backbone(), {}, [str(empty), str(tmp_path / "none.jsonl")], tmp_path, {})
    assert "empty.jsonl: holds no rows" in str(failure.value) and "none.jsonl" in str(failure.value)


def test_the_quickstarts_questions() -> None:
    questions = load_questions(str(QUICKSTART / "choices.jsonl"))
    assert len(questions) == 60 and all(len(question.choices) == 4 for question in questions)
    assert Counter(question.answer for question in questions) == {0: 15, 1: 15, 2: 15, 3: 15}
    # A policy that goes by the length alone gets no more than one that guesses.
    for extreme in (min, max):
        sizes = [[len(choice) for choice in question.choices] for question in questions]
        alone = [
            row[question.answer] == extreme(row) and row.count(extreme(row)) == 1
            for question, row in zip(questions, sizes, strict=True)
        ]
        assert sum(alone) <= len(questions) / 4
        assert all(max(row) <= 2 * min(row) or max(row) - min(row) <= 5 for row in sizes)
    asked = {
        text.strip().lower()
        for name in ("prompts", "heldout", "demonstrations", "rankings", "validation")
        for line in (QUICKSTART / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        for text in [json.loads(line)["prompt"]]
        if isinstance(text, str)
    }
    assert asked and asked.isdisjoint(question.question.lower() for question in questions)
