"""Whoever waits for people is told what they have said, and when there is nothing left to wait for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from labelers import rate, work

from rlhf_kit.labeling.assignment import Settings
from rlhf_kit.labeling.replies import RateReply
from rlhf_kit.labeling.store import Store
from rlhf_kit.labeling.tasks import Candidate, Task
from rlhf_kit.labeling.watching import Watch

TASKS = [Task("rate", "p", (Candidate(text),)) for text in ("a", "b", "c")]
NAMES = {task.id: task.candidates[0].text for task in TASKS}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "tasks.sqlite")) as made:
        made.configure(Settings(overlap=2))
        made.add(TASKS, batch="all")
        made.set_labelers(["anna", "ben"])
        yield made


def watched(store: Store, *texts: str, **named: Any) -> Watch:
    return Watch(store, {name for name, text in NAMES.items() if text in texts}, **named)


def said(watch: Watch) -> dict[str, list[str]]:
    """By text, who has answered."""
    return {NAMES[task]: [one.labeler for one in answers] for task, answers in watch.answers.items()}


def do(store: Store, labeler: str, *, skip: bool = False, most: int | None = 1) -> int:
    return work(store, labeler, (lambda *_: None) if skip else rate, most)


# ---------------------------------------------------------------- what is waited for


def test_a_task_waits_for_as_many_answers_as_are_wanted(store: Store) -> None:
    one, two = watched(store, "a", "b"), watched(store, "a", "b", opinions=2)
    assert (one.count, one.left, two.left) == (2, 2, 2)
    do(store, "anna", most=2)
    assert one.look() and two.look() and (one.left, two.left) == (0, 2)
    do(store, "ben")
    assert one.look() and two.look() and (one.left, two.left) == (0, 1)
    assert said(one) == said(two) == {"a": ["anna", "ben"], "b": ["anna"]}


def test_nor_for_anybody_once_all_who_may_have_answered_or_skipped_it(store: Store) -> None:
    three = watched(store, "a", "b", opinions=3)
    do(store, "anna", most=2)
    do(store, "ben", skip=True)
    assert three.look() and three.left == 1, "a: one has answered it, the other skipped"
    do(store, "ben")
    assert three.look() and three.left == 0 and said(three) == {"a": ["anna"], "b": ["anna", "ben"]}


def test_who_may_answer_counts_as_it_is_now(store: Store) -> None:
    watch = watched(store, "a")
    do(store, "anna", skip=True)
    watch.look()
    assert watch.left == 1, "ben might"
    store.set_labelers(["anna"])
    watch.look()
    assert watch.left == 0
    store.set_labelers(["anna", "cy"])
    watch.look()
    assert watch.left == 1


def test_where_nobody_may_answer_yet_everything_waits(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "fresh.sqlite")) as fresh:
        fresh.add(TASKS)
        assert watched(fresh, "a", "b", "c").left == 3
        fresh.take("somebody", TASKS[0].id, RateReply(overall=3))
        assert watched(fresh, "a", opinions=2).left == 1
        assert watched(fresh).left == watched(fresh).count == 0


def test_what_is_taken_back_is_waited_for_again(store: Store) -> None:
    watch = watched(store, "a")
    do(store, "anna")
    assert watch.look() and watch.left == 0
    store.undo("anna")
    assert watch.look() and watch.left == 1 and said(watch) == {}
    store.answer("anna", store.next("anna").id, RateReply(overall=1), 1.0)  # type: ignore[union-attr]
    assert watch.look() and [one.reply for one in watch.answers[TASKS[0].id]] == [RateReply(overall=1)]


def test_answers_from_elsewhere_count(store: Store) -> None:
    watch = watched(store, "b")
    assert store.take("somebody", TASKS[1].id, RateReply(overall=3))
    assert watch.look() and watch.left == 0 and said(watch) == {"b": ["somebody"]}


# ---------------------------------------------------------------- when there is news


def test_what_is_said_of_other_tasks_is_no_news(store: Store) -> None:
    watch = watched(store, "c")
    do(store, "anna", most=2)
    assert not watch.look() and said(watch) == {}
    do(store, "anna", skip=True)
    assert watch.look() and not watch.look()


def test_a_batch_is_all_that_is_read(store: Store) -> None:
    store.add(TASKS[1:2], batch="update 1")
    watch = watched(store, "a", "b", "c", batch="update 1")
    do(store, "anna", most=3)
    assert watch.look() and said(watch) == {"b": ["anna"]}


def test_the_file_is_read_only_where_something_has_changed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, read, answered = watched(store, "a", "b", "c"), list[Any](), Store.answered

    def noted(self: Store, **named: Any) -> Iterator[Any]:
        read.append(named)
        return answered(self, **named)

    monkeypatch.setattr(Store, "answered", noted)
    for _ in range(5):
        assert not watch.look()
    given = store.next("anna")
    store.keep_draft("anna", given.id, {"overall": 3})  # type: ignore[union-attr]
    assert not watch.look() and not read, "what somebody has begun says nothing yet"
    for change in (
        lambda: do(store, "anna"),
        lambda: do(store, "anna", skip=True),
        lambda: store.undo("anna"),
        lambda: store.set_labelers(["ben"]),
        lambda: store.set_labelers(["anna"]),
    ):
        before = len(read)
        change()
        watch.look()
        watch.look()
        assert len(read) == before + 1, change
