"""People who label, simulated for tests: threads that take tasks from a store or the page, and answer by a rule."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from label_site import Person

from rlhf_kit.labeling.replies import CompareReply, RateReply, Reply
from rlhf_kit.labeling.store import Store
from rlhf_kit.labeling.tasks import Task

Rule = Callable[[Task, tuple[int, ...]], Reply | None]
"""What is said of a task whose answers are shown in an order; None skips it."""


def mark(text: str) -> int:
    """1 to 7 for a text, spread over the whole scale."""
    return 1 + sum(text.encode()) % 7


def rate(task: Task, order: tuple[int, ...]) -> RateReply:
    return RateReply(overall=mark(task.candidates[0].text))


def prefer(better: Callable[[str, str], float]) -> Rule:
    """The first of two texts where `better` is above 0, the other one where it is below."""

    def compare(task: Task, order: tuple[int, ...]) -> CompareReply:
        first, second = (task.candidates[place].text for place in order)
        said = better(first, second)
        return CompareReply(better="A" if said > 0 else "B" if said < 0 else "tie")

    return compare


def work(store: Store, name: str, rule: Rule, most: int | None = None) -> int:
    """Does what there is to do, `most` tasks at most; returns how many."""
    done = 0
    while done != most and (given := store.next(name)) is not None:
        reply = rule(given.task, given.order)
        if reply is None:
            store.skip(name, given.id, "unclear", "", 1.0)
        else:
            store.answer(name, given.id, reply, 1.0)
        done += 1
    return done


@contextmanager
def labelers(path: Path, rules: Mapping[str, Rule], most: int | None = None) -> Iterator[list[str]]:
    """Threads that label while the body runs, one a name; what each has done is listed by its name.

    Args:
        most: how much each does; then it only watches.
    """
    over, done, failures = threading.Event(), list[str](), list[BaseException]()

    def run(name: str, rule: Rule) -> None:
        left = most
        try:
            with closing(Store(path)) as store:
                while not over.wait(0.02):
                    count = work(store, name, rule, left)
                    done.extend([name] * count)
                    left = None if left is None else left - count
        except BaseException as failure:
            failures.append(failure)

    with closing(Store(path)) as store:
        store.set_labelers(list(rules))
    threads = [threading.Thread(target=run, args=pair) for pair in rules.items()]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


@contextmanager
def visitors(
    told: Callable[[], str], names: Sequence[str], reply: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """Threads that open their links and answer over HTTP while the body runs, until the page is closed; what each of
    them was shown.

    Args:
        told: the lines in which the links are, as soon as there are some.
        reply: to a task as the page gets it.
    """
    over, failures = threading.Event(), list[BaseException]()
    shown: dict[str, list[dict[str, Any]]] = {name: [] for name in names}

    def run(name: str) -> None:
        while not (links := re.findall(rf"\b{name} +(http://\S+)", told())):
            if over.wait(0.02):
                return
        person = Person(urlsplit(links[-1]).port or 0)
        try:
            assert person.sign_in(links[-1]).status == 200
            state = person.get("/api/task").json
            while not over.wait(0.05):
                if (task := state["task"]) is None:
                    state = person.get("/api/task").json
                    continue
                shown[name].append(task)
                said = {"assignment": task["assignment"], "reply": reply(task), "seconds": 1.0}
                state = person.post("/api/answer", said).json
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    try:
        yield shown
    finally:
        over.set()
        for thread in threads:
            thread.join()
    for failure in failures:
        if not isinstance(failure, OSError):  # else the page was closed
            raise failure


class Clock:
    """Seconds that pass when a test says so, and a little with every look."""

    def __init__(self, step: float = 0.001) -> None:
        self.now, self._step = 1_000_000.0, step

    def __call__(self) -> float:
        self.now += self._step
        return self.now
