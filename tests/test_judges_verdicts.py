"""People as judges: rankings matched to answers, and the sheet that they are given."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judged import ask, question

from rlhf_kit import files
from rlhf_kit.errors import DataError, RlhfKitError
from rlhf_kit.evaluation.judges.base import Answer, Question
from rlhf_kit.evaluation.judges.sheet import sheet, write_sheet
from rlhf_kit.evaluation.judges.verdicts import RankingsJudge
from rlhf_kit.records import Message, Prompt
from rlhf_kit.tournament import win_matrix

QUESTIONS = [question("p", ["good"], ["bad"], ["ugly"]), question("q", ["a", "b"], ["c", "a"])]


def row(prompt: Any, /, *responses: tuple[str, int] | dict[str, Any], **others: Any) -> dict[str, Any]:
    answers = [r if isinstance(r, dict) else {"text": r[0], "rank": r[1]} for r in responses]
    return {"prompt": prompt, "responses": answers, **others}


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def verdicts(judge: RankingsJudge, questions: list[Question], kept: Path) -> dict[tuple[int, ...], float]:
    said = ask(judge, questions, kept).verdicts
    assert said.orders is None
    columns = (said.prompt, said.ours, said.theirs, said.our_answer, said.their_answer)
    return {tuple(map(int, key)): float(outcome) for *key, outcome in zip(*columns, said.outcome, strict=True)}


def test_rankings_are_matched_by_prompt_and_text(tmp_path: Path) -> None:
    file = write(
        tmp_path / "people.jsonl",
        row([{"role": "user", "content": "p"}], ("bad", 2), ("good", 1), ("ugly", 2), ("unknown", 1)),
        row("q", ("c", 1), ("a", 2)),
    )
    judge = RankingsJudge.read(file)
    assert (judge.name, judge.kind, judge.what) == ("people", "verdicts", f"the rankings in {Path(file).name}")
    # q: our a (rank 2) against their c (1) and their a (the same text, a tie); nobody ranked b.
    assert verdicts(judge, QUESTIONS, tmp_path) == {
        (0, 0, 1, 0, 0): 1.0,
        (0, 0, 2, 0, 0): 1.0,
        (0, 1, 2, 0, 0): 0.5,
        (1, 0, 1, 0, 0): 0.0,
        (1, 0, 1, 0, 1): 0.5,
    }
    said = ask(judge, QUESTIONS, tmp_path)
    assert said.missing == 0 and said.flags is None and said.scores is None
    assert win_matrix(said.verdicts, 2, 3)[1, 0, 1] == 0.25


def test_every_labeler_counts_by_weight(tmp_path: Path) -> None:
    rows = [
        row("p", ("good", 1), ("bad", 2), labeler="anna"),
        row("p", ("bad", 2), ("good", 1), labeler="ben", weight=2.0),
        row("p", ("good", 2), ("bad", 1), labeler="cleo", weight=0.5),
        row("p", ("good", 1), ("ugly", 1), labeler="anna"),
    ]
    judge = RankingsJudge.read(write(tmp_path / "people.jsonl", *rows))
    assert judge.what.endswith("by 3 people")
    assert verdicts(judge, QUESTIONS[:1], tmp_path) == {(0, 0, 1, 0, 0): 3 / 3.5, (0, 0, 2, 0, 0): 0.5}
    assert ask(judge, QUESTIONS[:1], tmp_path).missing == 1


def test_flags_are_shares_of_the_marked_answers(tmp_path: Path) -> None:
    def marked(text: str, rank: int, **flags: bool) -> dict[str, Any]:
        return {"text": text, "rank": rank, "flags": flags}

    rows = [
        row("q", marked("a", 1, hallucination=True), marked("c", 2, hallucination=False), labeler="anna"),
        row("q", marked("a", 1, hallucination=False), marked("b", 2, hallucination=True), ("c", 3), labeler="ben"),
        row("p", marked("good", 1, harmful_advice=False), ("bad", 2)),
    ]
    said = ask(RankingsJudge.read(write(tmp_path / "people.jsonl", *rows)), QUESTIONS, tmp_path)
    assert said.flags is not None and list(said.flags) == ["hallucination", "harmful_advice"]
    # To q: the first policy said a (one of two marks) and b (1); the second c (0) and a (one of two).
    np.testing.assert_array_equal(said.flags["hallucination"], [[np.nan] * 3, [0.75, 0.25, np.nan]])
    np.testing.assert_array_equal(said.flags["harmful_advice"], [[0, np.nan, np.nan], [np.nan] * 3])


def test_ranks_on_an_axis(tmp_path: Path) -> None:
    def on(text: str, rank: int, axes: dict[str, int]) -> dict[str, Any]:
        return {"text": text, "rank": rank, "axes": axes}

    file = write(
        tmp_path / "people.jsonl",
        row("p", on("good", 1, {"truthful": 2}), on("bad", 2, {"truthful": 1}), ("ugly", 3)),
    )
    judge = RankingsJudge.read(file, axis="truthful")
    assert judge.name == "people-truthful"
    assert verdicts(judge, QUESTIONS, tmp_path) == {(0, 0, 1, 0, 0): 0.0}
    with pytest.raises(RlhfKitError, match="on the axis helpful"):
        ask(RankingsJudge.read(file, axis="helpful"), QUESTIONS, tmp_path)


def test_what_matches_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = [row("r", ("good", 1), ("bad", 2)), row("p", ("x", 1), ("bad", 2)), row("p", ("y", 1), ("z", 2))]
    with caplog.at_level(logging.WARNING):
        file = write(tmp_path / "some.jsonl", row("p", ("good", 1), ("bad", 2)), *others)
        assert len(verdicts(RankingsJudge.read(file), QUESTIONS, tmp_path)) == 1
    assert "1 of 4 rankings are to prompts that were not asked" in caplog.text
    assert "2 of 4 rankings order no answers of two of the policies" in caplog.text
    judge = RankingsJudge.read(write(tmp_path / "none.jsonl", *others))
    with pytest.raises(
        RlhfKitError, match=r"none of 3 rankings .* 1 are to other prompts, 2 of other answers .* sheet"
    ):
        ask(judge, QUESTIONS, tmp_path)
    with pytest.raises(DataError, match="missing"):
        RankingsJudge.read(str(tmp_path / "missing.jsonl"))
    with pytest.raises(DataError):
        RankingsJudge.read(write(tmp_path / "bad.jsonl", row("p", ("good", 0), ("bad", 2))))


# -------------------------------------------------------------------- the sheet


TURNS = (
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Yes?"),
    Message(role="user", content="Go"),
)
PROMPTS = [
    Prompt(prompt="p", id="row-1", meta={"batch": 3, "policy": "sft"}),
    Prompt(prompt=TURNS),
    Prompt(prompt="all the same"),
    Prompt(prompt="one blank"),
]
ASKED = [
    question("p", ["one", "two"], ["two", "three"], ["four", "two"]),
    Question(
        TURNS, ((Answer("cut", False, 3), Answer("whole", True, 6)), (Answer("cut", True, 3), Answer("x", True, 2)))
    ),
    question("all the same", ["yes", "yes"], ["yes", "yes"], ["yes", "yes"]),
    question("one blank", ["yes", " \n"], ["yes", ""], ["yes", "yes"]),
]


def test_a_sheet_tells_no_sources(tmp_path: Path) -> None:
    out = tmp_path / "sheet.jsonl"
    assert write_sheet(out, PROMPTS, ASKED, 0) == 2
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [set(r) for r in rows] == [{"prompt", "id", "meta"}, {"prompt", "meta"}]
    assert rows[0]["meta"].keys() == {"batch", "responses"} and rows[1]["meta"].keys() == {"responses"}
    found = {r["text"]: r for r in rows[0]["meta"]["responses"]}
    assert found["two"] == {"text": "two", "ended": True, "tokens": 4, "count": 3}
    assert {text: r["count"] for text, r in found.items()} == {"one": 1, "two": 3, "three": 1, "four": 1}
    assert {r["text"]: r["ended"] for r in rows[1]["meta"]["responses"]} == {"cut": True, "whole": True, "x": True}
    assert len(files.load(str(out), "prompt")) == 2


def test_the_order_of_a_sheet_tells_nothing() -> None:
    asked = [question(f"p{n}", [f"a{n}"], [f"b{n}"], [f"c{n}"]) for n in range(600)]
    prompts = [Prompt(prompt=f"p{n}") for n in range(600)]
    rows = sheet(prompts, asked, 1)
    firsts = [row.meta["responses"][0]["text"][0] for row in rows]
    assert all(160 <= firsts.count(policy) <= 240 for policy in "abc")  # 200 each; four deviations are 46
    assert rows == sheet(prompts, asked, 1) and rows != sheet(prompts, asked, 2)
    turned = [Question(q.prompt, q.answers[::-1]) for q in asked]
    assert sheet(prompts, turned, 1) == rows  # who is who changes nothing
    assert sheet(prompts[5:], asked[5:], 1) == rows[5:]


def test_an_edited_sheet_comes_back_as_rankings(tmp_path: Path) -> None:
    out = tmp_path / "sheet.jsonl"
    write_sheet(out, PROMPTS, ASKED, 0)
    with pytest.raises(DataError, match='nothing is ranked in it yet; write "rank": 1'):
        RankingsJudge.read(str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    ranks = {"one": 2, "two": 1, "three": 3}
    for answer in rows[0]["meta"]["responses"]:
        if answer["text"] in ranks:
            answer |= {"rank": ranks[answer["text"]], "flags": {"hallucination": answer["text"] == "three"}}
    rows[0]["labeler"] = "anna"
    judge = RankingsJudge.read(write(out, *rows))
    (ranking,) = judge.rankings
    assert ranking.labeler == "anna" and ranking.id == "row-1"
    assert {r.text: r.rank for r in ranking.responses} == ranks
    found = verdicts(judge, ASKED, tmp_path)
    # Of the first policy (one, two) against the second (two, three) and the third (four, two).
    assert found == {
        (0, 0, 1, 0, 0): 0.0,
        (0, 0, 1, 0, 1): 1.0,
        (0, 0, 1, 1, 0): 0.5,
        (0, 0, 1, 1, 1): 1.0,
        (0, 0, 2, 0, 1): 0.0,
        (0, 0, 2, 1, 1): 0.5,
        (0, 1, 2, 0, 1): 0.5,
        (0, 1, 2, 1, 1): 0.0,
    }
    said = ask(judge, ASKED, tmp_path)
    assert said.flags is not None and said.flags["hallucination"][0].tolist() == [0, 0.5, 0]


def test_mistakes_in_an_edited_sheet_are_all_told(tmp_path: Path) -> None:
    def meta(*responses: Any) -> dict[str, Any]:
        return {"responses": list(responses)}

    a, b = {"text": "a", "rank": 1, "ended": True, "tokens": 2, "count": 1}, {"text": "b", "rank": 2}
    rows = [
        {"prompt": "p", "meta": meta(a, b)},
        {"prompt": "q", "meta": meta({**a, "rank": 0}, b)},
        {"prompt": "r", "meta": meta(a)},
        {"prompt": "s", "meta": {"responses": "a"}},
        {"prompt": "t", "meta": meta({**a, "rnak": 1}, b)},
        {"prompt": "", "meta": meta(a, b)},
    ]
    with pytest.raises(DataError) as failure:
        RankingsJudge.read(write(tmp_path / "sheet.jsonl", *rows))
    assert {problem.where.rpartition(":")[2] for problem in failure.value.problems} == {"2", "3", "4", "5", "6"}


def test_a_ranking_of_as_many_as_there_may_be() -> None:
    texts = [f"answer {n}" for n in range(100)]
    random.Random(0).shuffle(texts)
    (row,) = sheet([Prompt(prompt="p")], [question("p", texts[:50], texts[50:])], 0)
    assert len(row.meta["responses"]) == 64
