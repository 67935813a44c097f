"""`--judge page`: people compare two answers on the page, and it comes to what their rankings in a file come to."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judged import ask, question
from labelers import Rule, prefer, visitors, work

from rlhf_kit.cli import _parser, main
from rlhf_kit.cli_policies import KEPT
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.evaluation.evaluating import VERDICTS
from rlhf_kit.evaluation.judges.base import Question
from rlhf_kit.evaluation.judges.choose import judge_named, judges_named
from rlhf_kit.evaluation.judges.endpoint import EndpointSettings
from rlhf_kit.evaluation.judges.page import STORE, PageJudge
from rlhf_kit.evaluation.judges.verdicts import RankingsJudge
from rlhf_kit.labeling import serving
from rlhf_kit.labeling.exporting import write_records
from rlhf_kit.labeling.store import Store
from rlhf_kit.records import Message

pytest_plugins = ["whole_run"]  # the fixtures place and run

CHAT = (
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Hello!"),
    Message(role="user", content="Why?"),
)
QUESTIONS = [
    question("p", ["aaa", "x"], ["a", "y"], ["aa", "x"]),
    question(CHAT, ["one", "same"], ["same", "same"], ["longer", "  "]),
]
LONGER = prefer(lambda first, second: len(first) - len(second))


@pytest.fixture(autouse=True)
def linger(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """How long it waits for somebody to take the last one back; not at all unless a test says so."""

    def seconds(value: float) -> None:
        monkeypatch.setattr(serving, "_LINGER", value)

    seconds(0.0)
    return seconds


def by(rule: Rule, most: int | None = None, seen: list[Any] | None = None) -> Callable[..., None]:
    """A page on which all labelers follow a rule, until each has done `most`."""

    def serve(store: Store, serving: Any, *, done: Callable[[], bool], told: Callable[[str], None]) -> None:
        assert not done()
        for name in store.labelers():
            count = work(store, name, rule, most)
            if seen is not None:
                seen.append((name, count))

    return serve


def verdicts(judge: Any, questions: list[Question], kept: Path) -> dict[tuple[int, ...], float]:
    said = ask(judge, questions, kept).verdicts
    assert said.orders is None
    columns = (said.prompt, said.ours, said.theirs, said.our_answer, said.their_answer)
    return {tuple(map(int, key)): float(outcome) for *key, outcome in zip(*columns, said.outcome, strict=True)}


def test_the_longer_one_wins_and_what_is_plain_is_not_asked(tmp_path: Path) -> None:
    seen: list[Any] = []
    judge = PageJudge(serve=by(LONGER, seen=seen), comparisons=2)
    assert verdicts(judge, QUESTIONS, tmp_path) == {
        (0, 0, 1, 0, 0): 1.0, (0, 0, 2, 0, 0): 1.0, (0, 1, 2, 0, 0): 0.0,
        (0, 0, 1, 1, 1): 0.5, (0, 0, 2, 1, 1): 0.5, (0, 1, 2, 1, 1): 0.5,
        (1, 0, 1, 0, 0): 0.0, (1, 0, 2, 0, 0): 0.0, (1, 1, 2, 0, 0): 0.0,
        (1, 0, 1, 1, 1): 0.5, (1, 0, 2, 1, 1): 1.0, (1, 1, 2, 1, 1): 1.0,
    }  # fmt: skip
    # x and y once for three pairs; the same text and a blank one never.
    assert seen == [("labeler", 7)] and judge.total(QUESTIONS) == 7
    assert (judge.name, judge.kind, judge.what) == ("page", "verdicts", "people on the page")


def test_it_is_what_the_rankings_in_a_file_come_to(tmp_path: Path) -> None:
    """One answer a policy, none blank: then the judge of files counts the same pairs."""
    rng = np.random.default_rng(0)
    texts = [[["".join(rng.choice(list("ab"), 3))] for _ in range(3)] for _ in range(12)]
    questions = [question(f"p {n}", *policies) for n, policies in enumerate(texts)]
    rule = prefer(lambda one, other: one.count("a") - other.count("a"))
    found = verdicts(PageJudge(serve=by(rule)), questions, tmp_path)
    file = tmp_path / "people.jsonl"
    with closing(Store(tmp_path / STORE)) as store:
        write_records(store, file)
    from_file = verdicts(RankingsJudge.read(str(file)), questions, tmp_path)
    assert from_file.items() <= found.items()
    rest = found.keys() - from_file.keys()
    assert all(
        texts[p][ours] == texts[p][theirs] and found[p, ours, theirs, 0, 0] == 0.5 for p, ours, theirs, _, _ in rest
    )
    assert {1.0, 0.0, 0.5} == set(found.values())


def test_nothing_is_asked_twice_and_other_policies_ask_for_what_is_new(tmp_path: Path) -> None:
    seen: list[Any] = []
    judge = PageJudge(serve=by(LONGER, seen=seen))
    first = verdicts(judge, [question("p", ["aa"], ["b"])], tmp_path)
    again = verdicts(replace(judge, serve=by(LONGER, seen=["never"])), [question("p", ["aa"], ["b"])], tmp_path)
    assert first == again == {(0, 0, 1, 0, 0): 1.0}
    turned = verdicts(judge, [question("p", ["b"], ["aa"], ["cccc"])], tmp_path)
    assert turned == {(0, 0, 1, 0, 0): 0.0, (0, 0, 2, 0, 0): 0.0, (0, 1, 2, 0, 0): 0.0}
    assert seen == [("labeler", 1), ("labeler", 2)]


def test_a_page_that_is_ended_keeps_what_was_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    questions = [question(f"p {n}", ["aa"], ["b"]) for n in range(5)]
    with pytest.raises(RlhfKitError) as ended:
        ask(PageJudge(serve=by(LONGER, most=2)), questions, tmp_path)
    words = (
        f"judge page: 2 of 5 comparisons are made and kept in {tmp_path / STORE}. The same command asks for the rest"
    )
    assert str(ended.value).startswith(words)
    part = ask(PageJudge(serve=by(LONGER, most=1), partial=True), questions, tmp_path)
    assert part.missing == 2 and part.verdicts.outcome.tolist() == [1.0] * 3
    assert "3 of 5 comparisons are made" in caplog.text and "Goes on with those that there are" in caplog.text
    seen: list[Any] = []
    assert len(verdicts(PageJudge(serve=by(LONGER, seen=seen)), questions, tmp_path)) == 5
    assert seen == [("labeler", 2)]


def test_what_nobody_has_judged_is_missing_even_with_partial_only_some(tmp_path: Path) -> None:
    with pytest.raises(RlhfKitError, match="0 of 1 comparisons are made"):
        ask(PageJudge(serve=by(LONGER, most=0), partial=True), [question("p", ["aa"], ["b"])], tmp_path)


def test_a_comparison_that_everybody_skips_is_missing(tmp_path: Path) -> None:
    def hesitant(task: Any, order: tuple[int, ...]) -> Any:
        return None if task.prompt == "p 1" else LONGER(task, order)

    questions = [question(f"p {n}", ["aa"], ["b"]) for n in range(3)]
    seen: list[Any] = []
    found = ask(PageJudge(labelers=("anna", "ben"), serve=by(hesitant, seen=seen)), questions, tmp_path)
    assert found.missing == 1 and found.verdicts.prompt.tolist() == [0, 2]
    assert seen == [("anna", 3), ("ben", 1)], "the other one was asked for what the first skipped"


def test_several_opinions_of_one_comparison_are_averaged(tmp_path: Path) -> None:
    """Somebody may serve the file with more labelers; this judge asks one."""
    asked = [question("p", ["aa"], ["b"])]
    ask(PageJudge(serve=by(LONGER)), asked, tmp_path)
    with closing(Store(tmp_path / STORE)) as store:
        (task,) = store.tasks()
        store.set_labelers(["labeler", "ben"])
        store.more(task.id)
        assert work(store, "ben", prefer(lambda *_: -1 if _[0] == "aa" else 1)) == 1
    assert verdicts(PageJudge(), asked, tmp_path) == {(0, 0, 1, 0, 0): 0.5}


def test_those_of_an_evaluation_that_was_left_come_last(tmp_path: Path) -> None:
    order: list[str] = []

    def noting(task: Any, shown: tuple[int, ...]) -> Any:
        order.append(task.prompt)
        return LONGER(task, shown)

    with pytest.raises(RlhfKitError):
        ask(PageJudge(serve=by(LONGER, most=0)), [question("old", ["aa"], ["b"])], tmp_path)

    def serve(store: Store, serving: Any, *, done: Callable[[], bool], told: Any) -> None:
        while not done():
            work(store, "labeler", noting, 1)

    verdicts(PageJudge(serve=serve), [question("new", ["aa"], ["b"])], tmp_path)
    assert order == ["new"]


def test_the_bar_counts_a_comparison_that_is_taken_back_once(tmp_path: Path) -> None:
    """`ask` holds what the bar was told against the number of comparisons."""

    def serve(store: Store, serving: Any, *, done: Callable[[], bool], told: Any) -> None:
        assert work(store, "labeler", LONGER) == 2 and done()
        assert store.undo("labeler") is not None and not done()
        assert work(store, "labeler", LONGER) == 1 and done()

    questions = [question(f"p {n}", ["aa"], ["b"]) for n in range(2)]
    assert ask(PageJudge(serve=serve), questions, tmp_path).missing == 0


def test_the_last_comparison_can_be_taken_back_for_a_while(
    tmp_path: Path, linger: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The page is not over at the last answer, and not at all while one is open again."""
    linger(0.3)
    shorter = prefer(lambda first, second: len(second) - len(first))

    def serve(store: Store, serving: Any, *, done: Callable[[], bool], told: Any) -> None:
        assert work(store, "labeler", LONGER) == 1 and not done()
        assert store.undo("labeler") is not None
        time.sleep(0.4)
        assert not done()
        began = time.monotonic()
        assert work(store, "labeler", shorter) == 1 and not done()
        while not done():
            assert time.monotonic() < began + 30
            time.sleep(0.01)
        assert time.monotonic() >= began + 0.3

    with caplog.at_level(logging.INFO, "rlhf_kit"):
        found = verdicts(PageJudge(serve=serve), [question("p", ["aa"], ["b"])], tmp_path)
    assert found == {(0, 0, 1, 0, 0): 0.0}
    assert caplog.text.count("the last can be undone for 0 seconds") == 2


def test_in_a_browser_by_people_who_see_no_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The page itself, over HTTP: two people with a link each share the work, and it ends when all is judged."""
    questions = [question(f"p {n}", [f"{'a' * (n + 1)}"], ["bb"]) for n in range(4)]
    judge = PageJudge(labelers=("anna", "ben"))
    with (
        caplog.at_level(logging.INFO, "rlhf_kit"),
        visitors(lambda: caplog.text, judge.labelers, longer) as shown,
    ):
        found = verdicts(judge, questions, tmp_path)
    assert found == {(n, 0, 1, 0, 0): (0.0, 0.5, 1.0, 1.0)[n] for n in range(4)}
    tasks = [task for tasks in shown.values() for task in tasks]
    assert len(tasks) == 4 and {task["kind"] for task in tasks} == {"compare"} and all(shown.values())
    assert "source" not in json.dumps(tasks)


def longer(task: dict[str, Any]) -> dict[str, Any]:
    first, second = (len(answer["text"]) for answer in task["answers"])
    return {"better": "A" if first > second else "B" if second > first else "tie", "note": ""}


# ---------------------------------------------------------------- as it is named


def test_it_is_found_by_its_name() -> None:
    settings = EndpointSettings(comparisons=3, partial=True)
    assert judge_named("page", {}, settings) == PageJudge(comparisons=3, partial=True)
    named = judge_named("crowd=page#anna, ben", {})
    assert named == PageJudge("crowd", ("anna", "ben")) and named.what == "2 people on the page"
    assert [judge.name for judge in judges_named(["page", "page#anna"], {})] == ["page", "page-2"]


def test_the_command_takes_it() -> None:
    line = ["evaluate", "policy", "runs/mine", "--judge", "page#anna,ben", "--comparisons", "2"]
    assert _parser().parse_args(line).judges == ["page#anna,ben"]


def test_the_command_ends_with_what_a_function_that_prefers_the_same_says(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Count to {number}."} for number in ("one", "two", "three")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "judge.py").write_text("def length(prompts, completions):\n    return list(map(len, completions))\n")
    line = ["evaluate", "policy", str(run), "--judge", "page", "--judge", "judge.py:length", "--k", "1"]
    line += ["--prompts", "prompts.jsonl", "--max-new-tokens", "4", "--resamples", "50", "--out", "out"]
    with caplog.at_level(logging.INFO, "rlhf_kit"), visitors(lambda: caplog.text, ["labeler"], longer) as shown:
        assert main(line) == 0
    assert shown["labeler"] and (tmp_path / "out" / KEPT / VERDICTS / STORE).is_file()
    page, length = json.loads((tmp_path / "out" / "evaluation.json").read_text())["judges"]
    assert (page["kind"], page["what"], page["missing"]) == ("verdicts", "people on the page", 0)
    assert page["win_rates"] == length["win_rates"] and page["bradley_terry"] == length["bradley_terry"]
