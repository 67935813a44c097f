"""Reward models and functions as judges, and what a user types for one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judged import ask, question

from rlhf_kit.checkpoint import Manifest
from rlhf_kit.errors import CheckpointError, DataError, RlhfKitError
from rlhf_kit.evaluation.judges.base import Answer, Judge, Question
from rlhf_kit.evaluation.judges.choose import judge_named, judges_named
from rlhf_kit.evaluation.judges.endpoint import EndpointJudge, EndpointSettings
from rlhf_kit.evaluation.judges.function import FunctionJudge
from rlhf_kit.evaluation.judges.reward import RewardJudge
from rlhf_kit.records import Message
from rlhf_kit.reward_model import RewardModel

QUESTIONS = [question("p", ["aa", "a"], ["bbb", ""]), question("q", ["c", "c"], ["c", "dd"])]
TURNS = (
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Yes?"),
    Message(role="user", content="Go"),
)


# -------------------------------------------------------------------- reward models


@dataclass
class Lengths:
    """Scores an answer by its length, half a point more if it has ended, and remembers what it was asked."""

    asked: list[tuple[object, str, bool]] = field(default_factory=list)

    def __call__(self, prompts: Any, texts: Sequence[str], ended: Sequence[bool], progress: Any) -> list[float]:
        self.asked += zip(prompts, texts, ended, strict=True)
        progress(len(texts))
        return [len(text) + 0.5 * end for text, end in zip(texts, ended, strict=True)]


def test_scores_become_verdicts(tmp_path: Path) -> None:
    score = Lengths()
    said = ask(RewardJudge("reward", "lengths", "v1", score), QUESTIONS, tmp_path)
    assert said.scores is not None
    assert said.scores.tolist() == [[[2.5, 1.5], [3.5, 0.5]], [[1.5, 1.5], [1.5, 2.5]]]
    assert said.verdicts.orders is None and said.missing == 0 and said.flags is None
    # Each of ours against each of theirs: aa<bbb, aa>"", a<bbb, a>""; twice c=c, c<dd.
    assert said.verdicts.outcome.tolist() == [0, 1, 0, 1, 0.5, 0, 0.5, 0]
    assert len(score.asked) == 6  # of eight answers, "c" to "q" came three times


def test_a_second_run_asks_for_what_is_new(tmp_path: Path) -> None:
    score = Lengths()
    judge = RewardJudge("reward", "lengths", "v1", score)
    before = ask(judge, QUESTIONS, tmp_path)
    score.asked.clear()
    again = ask(judge, QUESTIONS, tmp_path)
    assert score.asked == [] and (again.scores == before.scores).all()  # type: ignore[attr-defined]
    cut = Question("p", ((Answer("aa", False, 2), Answer("new", True, 2)), QUESTIONS[0].answers[1]))
    said = ask(judge, [cut, QUESTIONS[1]], tmp_path)
    assert score.asked == [("p", "aa", False), ("p", "new", True)]
    assert said.scores is not None and said.scores[0, 0].tolist() == [2.0, 3.5]
    ask(replace(judge, identity="v2"), QUESTIONS, tmp_path)
    assert len(score.asked) == 2 + 6
    one = question((Message(role="user", content="p"),), ["aa"], ["bbb"])  # a text is a conversation of one turn
    ask(judge, [one], tmp_path)
    assert len(score.asked) == 8


@pytest.mark.parametrize(
    ("given", "says"), [([1.0], "1 scores for 6"), ([float("nan")] * 6, "the score nan to an answer to 'p'")]
)
def test_scores_that_are_none(tmp_path: Path, given: list[float], says: str) -> None:
    with pytest.raises(RlhfKitError, match=f"lengths: .*{says}"):
        ask(RewardJudge("reward", "lengths", "v1", lambda *_: given), QUESTIONS, tmp_path)


def test_a_reward_model_is_loaded_when_there_is_something_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Model:
        def score(self, prompts: Any, texts: list[str], *, ended: list[bool], progress: Any) -> torch.Tensor:
            progress(len(texts))
            return torch.tensor([len(text) + 0.5 * end for text, end in zip(texts, ended, strict=True)])

    monkeypatch.setattr(RewardModel, "open", classmethod(lambda cls, place: opened.append(place) or Model()))
    judge = judge_named("owner/name", {})
    assert (judge.name, judge.kind, judge.what) == ("name", "reward", "the reward model owner/name") and opened == []
    said = ask(judge, QUESTIONS, tmp_path)
    assert said.scores is not None and said.scores[0, 1].tolist() == [3.5, 0.5]
    ask(judge, QUESTIONS, tmp_path)
    assert opened == ["owner/name"]


def stage(run: Path, weights: str) -> Path:
    """A directory that looks like a finished reward stage."""
    files = {"head.safetensors": hashlib.sha256(weights.encode()).hexdigest()}
    manifest = Manifest("reward", {}, {}, 0.0, {}, {}, {}, files=files)
    place = run / "reward"
    place.mkdir(parents=True)
    (place / "head.safetensors").write_text(weights)
    (place / "manifest.json").write_text(json.dumps(asdict(manifest)))
    return place


def test_a_runs_reward_model_is_known_by_its_weights(tmp_path: Path) -> None:
    one, copy, other = (stage(tmp_path / name, weights) for name, weights in (("a", "1"), ("b", "1"), ("c", "2")))
    judges = [RewardJudge.of_run(place) for place in (one, copy.parent, other)]
    assert judges[0].identity == judges[1].identity != judges[2].identity
    assert (judges[0].name, judges[0].what) == ("reward", "the reward model of a")
    assert judge_named(str(copy.parent), {}).name == "b"
    with pytest.raises(CheckpointError, match="no finished reward stage"):
        RewardJudge.of_run(tmp_path)


# -------------------------------------------------------------------- functions


def lengths(prompts: list[Any], completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


def test_a_function_scores(tmp_path: Path) -> None:
    said = ask(FunctionJudge("lengths", "here", lengths), QUESTIONS, tmp_path)
    assert said.scores is not None and said.scores.tolist() == [[[2, 1], [3, 0]], [[1, 1], [1, 2]]]
    assert said.verdicts.outcome.tolist() == [0, 1, 0, 1, 0.5, 0, 0.5, 0]


def test_a_function_is_called_as_trl_calls_it(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def everything(**given: Any) -> list[float]:
        seen.append(given)
        return [0.0] * len(given["completions"])

    def little(completions: list[Any], level: list[Any]) -> list[float]:
        seen.append({"completions": completions, "level": level})
        return [0.0] * len(completions)

    questions = [replace(question(TURNS, ["a"], ["b"]), columns={"level": 3}), question("q", ["c"], ["d"])]
    for function in (everything, little):
        ask(FunctionJudge("f", "here", function), questions, tmp_path)
    turns = [turn.model_dump() for turn in TURNS]
    shown = [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}], "c", "d"]
    assert seen[0] == {"prompts": [turns, turns, "q", "q"], "completions": shown, "level": [3, 3, None, None]}
    assert seen[1] == {"completions": shown, "level": [3, 3, None, None]}
    ask(FunctionJudge("f", "here", everything, texts=True), questions, tmp_path)
    assert seen[2]["prompts"] == ["user: Hi\nassistant: Yes?\nuser: Go"] * 2 + ["q"] * 2
    assert seen[2]["completions"] == ["a", "b", "c", "d"]


def test_none_is_an_answer_that_is_not_judged(tmp_path: Path) -> None:
    def only_p(prompts: list[str], completions: list[str]) -> list[float | None]:
        return [float(len(c)) if p == "p" else None for p, c in zip(prompts, completions, strict=True)]

    said = ask(FunctionJudge("f", "here", only_p), QUESTIONS, tmp_path)
    assert said.scores is not None and np.isnan(said.scores[1]).all() and said.verdicts.prompt.tolist() == [0] * 4
    with pytest.raises(RlhfKitError, match="None for every answer"):
        ask(FunctionJudge("f", "here", only_p), QUESTIONS[1:], tmp_path)


def raises(completions: list[str]) -> list[float]:
    raise ValueError("nobody\nknows")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (raises, "raised ValueError: nobody knows"),
        (lambda completions: [1.0], "returned 1 numbers for 8 answers"),
        (lambda completions: 1.0, "raised TypeError"),
        (lambda completions: [float("nan")] * 8, "returned nan for an answer to 'p'"),
        (lambda completions: [1.0] * 4 + ["x"] * 4, "returned 'x' for an answer to 'q'"),
        (lambda completions: [float("-inf")] * 8, "returned -inf"),
        (lambda nothing: [0.0] * 8, "raised TypeError: .*missing"),
        (lambda completions, others: [float("nan")] * 4, "returned nan"),
        (lambda completions, others: [1], "returned 1 numbers for 4 answers"),
    ],
)
def test_a_function_that_fails_is_named_in_one_line(tmp_path: Path, function: Any, says: str) -> None:
    with pytest.raises(RlhfKitError, match=rf"the judge 'grade' \(the function r.py:grade\) {says}") as failure:
        ask(FunctionJudge("grade", "the function r.py:grade", function), QUESTIONS, tmp_path)
    assert "\n" not in str(failure.value)


def test_a_function_that_compares_is_asked_in_both_orders(tmp_path: Path) -> None:
    calls: list[tuple[list[str], list[str]]] = []

    def compare(prompts: list[str], completions: list[str], others: list[str]) -> list[float]:
        calls.append((completions, others))
        return [len(a) - len(b) for a, b in zip(completions, others, strict=True)]

    judge = FunctionJudge("compare", "here", compare)
    said = ask(judge, QUESTIONS, tmp_path)
    ours, theirs = ["aa", "a", "c", "c"], ["bbb", "", "c", "dd"]
    assert calls == [(ours, theirs), (theirs, ours)] and judge.total(QUESTIONS) == 8
    assert said.verdicts.outcome.tolist() == [0, 1, 0.5, 0] and said.scores is None
    assert said.verdicts.our_answer.tolist() == said.verdicts.their_answer.tolist() == [0, 1, 0, 1]
    biased = ask(FunctionJudge("f", "here", lambda completions, others: [1] * 4), QUESTIONS, tmp_path)
    assert set(biased.verdicts.outcome) == {0.5}
    assert biased.verdicts.orders is not None
    assert biased.verdicts.orders[[0, 1, 3]].tolist() == [[1, 0]] * 3 and np.isnan(biased.verdicts.orders[2]).all()
    some = ask(FunctionJudge("f", "here", lambda completions, others: [None, 1, 1, 1]), QUESTIONS, tmp_path)
    assert some.missing == 1 and some.verdicts.prompt.tolist() == [0, 1, 1]


def test_policies_with_fewer_answers(tmp_path: Path) -> None:
    said = ask(FunctionJudge("f", "here", lengths), [question("p", ["aa", "b"], ["c"])], tmp_path)
    assert said.scores is not None and said.scores[0, 0].tolist() == [2, 1]
    assert said.scores[0, 1, 0] == 1 and np.isnan(said.scores[0, 1, 1])
    assert said.verdicts.outcome.tolist() == [1, 0.5]


# -------------------------------------------------------------------- what a user types


OWN: dict[str, Judge] = {
    "reward": RewardJudge("reward", "the reward model of mine", "v1", Lengths()),
    "rubric": FunctionJudge("rubric", "the function r.py:grade", lengths, texts=True),
}


def test_judges_by_what_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typed_grades.py").write_text("def grade(completions):\n    return [len(c) for c in completions]\n")
    row = {"prompt": "p", "responses": [{"text": "aa", "rank": 1}, {"text": "bbb", "rank": 2}]}
    for name in ("people.v2.jsonl", "round#2.jsonl"):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    stage(tmp_path / "runs" / "old", "1")
    (tmp_path / "model").mkdir()
    settings = EndpointSettings(comparisons=3)
    typed = {
        "reward": ("reward", "reward"),
        "rubric": ("rubric", "function"),
        "mine=rubric": ("mine", "function"),
        "typed_grades.py:grade": ("grade", "function"),
        "typed_grades:grade": ("grade", "function"),
        "best=typed_grades.py:grade": ("best", "function"),
        "people.v2.jsonl": ("people", "verdicts"),
        "people.v2.jsonl#truthful": ("people-truthful", "verdicts"),
        "round#2.jsonl": ("round#2", "verdicts"),
        "http://127.0.0.1:8000/v1#org/judge-7b": ("judge-7b", "endpoint"),
        "gpt=https://judge.example/v1#m=1": ("gpt", "endpoint"),
        "runs/old": ("old", "reward"),
        "runs/old/reward": ("old", "reward"),
        "model": ("model", "reward"),
        "owner/some.name": ("some.name", "reward"),
    }
    for text, expected in typed.items():
        judge = judge_named(text, OWN, settings)
        assert (judge.name, judge.kind) == expected, text
    judge = judge_named("http://127.0.0.1:8000/v1#org/judge-7b", OWN, settings)
    assert isinstance(judge, EndpointJudge) and judge.settings.comparisons == 3
    assert judge.what == "org/judge-7b at http://127.0.0.1:8000/v1"
    assert judge_named("reward", OWN) is OWN["reward"]


@pytest.mark.parametrize("text", ["rewrad", "nothing/at/all", "no.txt", "=x", "a b", "missing.py"])
def test_what_is_no_judge(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RlhfKitError, match="A judge is reward or rubric") as failure:
        judge_named(text, OWN)
    assert "\n" not in str(failure.value) and text in str(failure.value)


def test_what_is_nearly_a_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RlhfKitError, match=r"judge rubric: .* it has reward"):
        judge_named("rubric", {"reward": OWN["reward"]})
    with pytest.raises(DataError, match=r"nothing\.py:grade: cannot be loaded"):
        judge_named("nothing.py:grade", OWN)
    with pytest.raises(DataError, match=r"none\.jsonl"):
        judge_named("none.jsonl", OWN)


def test_names_are_unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for module in ("one", "two", "three"):
        (tmp_path / f"{module}.py").write_text("def grade(completions): ...\ndef reward(completions): ...\n")
    typed = ["reward", "one.py:grade", "two.py:grade", "grade-2=three.py:grade", "one.py:grade", "one.py:reward"]
    judges = judges_named(typed, OWN)
    assert [judge.name for judge in judges] == ["reward", "grade", "grade-3", "grade-2", "reward-2"]
    assert judges[2].what == "the function two.py:grade"
    with pytest.raises(RlhfKitError, match="two judges are called x"):
        judges_named(["x=one.py:grade", "x=two.py:grade"], OWN)
    with pytest.raises(RlhfKitError, match="two judges are called reward"):
        judges_named(["reward=one.py:grade", "reward"], OWN)
