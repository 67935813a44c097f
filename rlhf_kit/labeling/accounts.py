"""What a store's file says: how far everybody is, what was answered, what was skipped."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from rlhf_kit.checks.labelers import dense

from .replies import Reply, parse_reply
from .tasks import LETTERS, Task, task_of

__all__ = [
    "SAID",
    "Answered",
    "Counts",
    "Opinion",
    "Progress",
    "Skipped",
    "answered",
    "in_order",
    "opinions",
    "progress_of",
    "progress_of_all",
    "skipped",
    "task",
    "tasks",
    "version",
]


@dataclass(frozen=True)
class Progress:
    """How far everybody is, or one labeler."""

    tasks: int
    """Gold ones are not counted."""
    wanted: int
    """Answers in all; of one labeler, tasks that they have had or can have as things stand."""
    answered: int
    """Answers; of one labeler those to gold tasks too, since they must not know which those are."""
    skipped: int
    """Of all: tasks without an answer that everybody has skipped. Of one labeler: tasks that they skipped."""
    left: int
    """Answers that can still come; of one labeler, tasks that they have open or can have as things stand."""
    can_undo: bool = False
    """Of one labeler: whether something is answered or skipped that could be opened again."""


@dataclass(frozen=True)
class Answered:
    """What a labeler answered."""

    task: Task
    labeler: str
    reply: Reply
    order: tuple[int, ...]
    """The shown order: key A is `task.candidates[order[0]]`."""
    seconds: float
    at: float
    """Seconds since 1970."""
    late: bool = False
    """Its lease had run out and another labeler had the place: one answer more than was wanted."""


@dataclass(frozen=True)
class Skipped:
    """A task that a labeler did not answer, and why."""

    task: Task
    labeler: str
    reason: str
    note: str
    seconds: float
    at: float


@dataclass(frozen=True, slots=True)
class Opinion:
    """An answer as numbers."""

    task: str
    prompt: str
    """The same for tasks with the same prompt."""
    gold: bool
    labeler: str
    ranks: tuple[int, ...]
    """Dense ones of the task's answers, 1 = best; none of a task that ranks nothing."""
    mark: int | None
    """Of a task to rate, from 1 to 7."""
    seconds: float
    at: float


@dataclass(frozen=True)
class Counts:
    """How many tasks there are."""

    done: int
    """Without gold ones: those to which no further answer can come."""
    gold: int


# Of each task that lacks answers: how many it lacks, how many of the active labelers have not closed it, its answers.
_LACKING = """
SELECT t.places - t.answers, :active - (
    SELECT count(*) FROM assignments a JOIN labelers l ON l.number = a.labeler
    WHERE a.task = t.number AND l.active AND a.state IN ('answered', 'skipped')
), t.answers FROM tasks t WHERE t.gold = 0 AND t.places > t.answers
"""


def progress_of_all(connection: sqlite3.Connection) -> tuple[Progress, Counts]:
    """How far everybody is. Where nobody may label yet, everything is left."""
    (active,) = connection.execute("SELECT count(*) FROM labelers WHERE active").fetchone()
    totals = """SELECT sum(gold = 0), sum(gold), coalesce(sum(places), 0), coalesce(sum(answers), 0)
        FROM (SELECT gold, places, answers * (gold = 0) AS answers FROM tasks)"""
    tasks, gold, wanted, answers = connection.execute(totals).fetchone()
    lacking = connection.execute(_LACKING, {"active": active}).fetchall()
    left = sum(min(lacks, open_to) if active else lacks for lacks, open_to, _ in lacking)
    skipped = sum(active > 0 and open_to <= 0 and not given for _, open_to, given in lacking)
    not_done = sum(not active or open_to > 0 for _, open_to, _ in lacking)
    progress = Progress(tasks or 0, wanted, answers, skipped, left)
    return progress, Counts((tasks or 0) - not_done, gold or 0)


def version(connection: sqlite3.Connection) -> tuple[Any, ...]:
    """Differs whenever answers, skips or who may label have changed."""
    closed = "SELECT count(*), max(at) FROM assignments WHERE state IN ('answered', 'skipped')"
    undone = "SELECT count(*) FROM history"
    active = "SELECT group_concat(number) FROM labelers WHERE active"
    return tuple(value for query in (closed, undone, active) for value in connection.execute(query).fetchone())


_STATES = "SELECT state, count(*) FROM assignments WHERE labeler = ? GROUP BY state"
_TASKS = """SELECT (SELECT count(*) FROM tasks) - (SELECT count(*) FROM tasks INDEXED BY tasks_gold WHERE gold = 1),
(SELECT CAST(value AS INTEGER) FROM facts WHERE name = 'free')"""
_NOT_FOR_THEM = """
SELECT count(*) FROM assignments a JOIN tasks t ON t.number = a.task
WHERE a.labeler = ? AND a.state <> 'lapsed' AND t.gold = 0 AND t.places > t.answers + t.leases
"""


def progress_of(connection: sqlite3.Connection, labeler: int) -> Progress:
    """How far a labeler is."""
    tasks, free = connection.execute(_TASKS).fetchone()
    states = dict(connection.execute(_STATES, (labeler,)).fetchall())
    (not_for_them,) = connection.execute(_NOT_FOR_THEM, (labeler,)).fetchone()
    closed = states.get("answered", 0), states.get("skipped", 0)
    left = free - not_for_them + states.get("open", 0)
    return Progress(tasks, sum(closed) + left, *closed, left, any(closed))


_BATCH = "JOIN batches b ON b.task = t.number AND b.batch = ?"
_CLOSED = """
SELECT c.body, l.name, a.reply, a.shown, a.reason, a.note, a.seconds, a.at, a.late
FROM tasks t {batch} JOIN assignments a ON a.task = t.number AND a.state = ?
JOIN labelers l ON l.number = a.labeler JOIN contents c ON c.task = t.number ORDER BY t.number, a.at, a.number
"""


def tasks(connection: sqlite3.Connection, batch: str | None) -> Iterator[Task]:
    """All tasks, or those of a batch, in the order in which they were added."""
    join, named = ("", ()) if batch is None else (_BATCH, (batch,))
    query = f"SELECT c.body FROM tasks t {join} JOIN contents c ON c.task = t.number ORDER BY t.number"
    return (task_of(json.loads(body)) for (body,) in connection.execute(query, named))


def task(connection: sqlite3.Connection, name: str) -> Task | None:
    """The task with this id."""
    query = "SELECT c.body FROM tasks t JOIN contents c ON c.task = t.number WHERE t.id = ?"
    row = connection.execute(query, (name,)).fetchone()
    return None if row is None else task_of(json.loads(row[0]))


def answered(connection: sqlite3.Connection, batch: str | None) -> Iterator[Answered]:
    """All answers, or those to the tasks of a batch, task by task in the order in which they were added."""
    join, named = ("", ()) if batch is None else (_BATCH, (batch,))
    for row in connection.execute(_CLOSED.format(batch=join), (*named, "answered")):
        body, name, reply, shown, _, _, seconds, at, late = row
        asked = task_of(json.loads(body))
        said = parse_reply(asked.kind, json.loads(reply))
        yield Answered(asked, name, said, tuple(json.loads(shown)), seconds, at, bool(late))


def skipped(connection: sqlite3.Connection) -> Iterator[Skipped]:
    """All that was skipped, in the same order."""
    for row in connection.execute(_CLOSED.format(batch=""), ("skipped",)):
        body, name, _, _, reason, note, seconds, at, _ = row
        yield Skipped(task_of(json.loads(body)), name, reason, note, seconds, at)


_OPINIONS = """
SELECT t.id, t.prompt, t.kind, t.gold, l.name, a.reply, a.shown, a.seconds, a.at
FROM assignments a JOIN tasks t ON t.number = a.task JOIN labelers l ON l.number = a.labeler
WHERE a.state = 'answered' ORDER BY t.number, a.at, a.number
"""


def opinions(connection: sqlite3.Connection) -> Iterator[Opinion]:
    """All answers as numbers, in the same order. They were checked when they came and are not parsed again."""
    orders = cache(json.loads)  # there are few, and many answers
    for asked, prompt, kind, gold, name, reply, shown, seconds, at in connection.execute(_OPINIONS):
        said, order = json.loads(reply), orders(shown)
        ranks: tuple[int, ...] = ()
        if kind == "rank":
            ranks = in_order(dense([said["answers"][key]["rank"] for key in LETTERS[: len(order)]]), order)
        elif kind == "compare":
            ranks = in_order(SAID[said["better"]], order)
        mark = said["overall"] if kind == "rate" else None
        yield Opinion(asked, prompt, bool(gold), name, ranks, mark, seconds, at)


SAID = {"A": (1, 2), "B": (2, 1), "tie": (1, 1)}
"""The ranks of two answers, in the shown order, by which is better."""


def in_order(shown: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """What is said of answers in the shown order, in the order of the task's candidates."""
    found = dict(zip(order, shown, strict=True))
    return tuple(found[index] for index in range(len(found)))
