"""What changes a store: each function is one step inside a transaction, `now` being seconds since 1970.

Leases that have run out are ended before anything is decided by them.
"""

from __future__ import annotations

import json
import math
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlhf_kit.errors import RlhfKitError

from .accounts import Progress, progress_of, progress_of_all
from .assignment import Assignment, Refused, assign, assignment_of, lapse, remembered
from .people import add_stranger, labeler_number
from .replies import Reply, check_reply
from .tasks import Kind, Task, to_json

__all__ = [
    "Turn",
    "add",
    "answer",
    "is_paused",
    "keep_draft",
    "leave",
    "more",
    "next_of",
    "pause",
    "skip",
    "take",
    "turn_of",
    "undo",
]

_DAY = 86_400.0
_AWAY = 60.0
"""Seconds in which somebody who has left the page may come back to the same task: time enough to load it again."""
_CLOSED = ("answered", "skipped")


@dataclass(frozen=True)
class _Held:
    """An assignment, as far as it matters for what may be done with it."""

    number: int
    state: str
    shown: str
    reply: str | None
    reason: str | None
    note: str | None
    has_place: bool
    """Whether another labeler could be given the task."""
    kind: Kind
    candidates: int
    """Answers of the task."""

    @property
    def is_late(self) -> bool:
        """Whether an answer now would be one more than was wanted."""
        return self.state == "lapsed" and not self.has_place


_HELD = """
SELECT a.number, a.state, a.shown, a.reply, a.reason, a.note, t.gold OR t.places > t.answers + t.leases, t.kind, c.body
FROM assignments a JOIN labelers l ON l.number = a.labeler JOIN tasks t ON t.number = a.task
JOIN contents c ON c.task = a.task WHERE a.id = ? AND l.name = ?
"""


def _held(connection: sqlite3.Connection, labeler: str, assignment: str) -> _Held:
    row = connection.execute(_HELD, (assignment, labeler)).fetchone()
    if row is None:
        raise Refused("there is no such task for this labeler")
    number, state, shown, reply, reason, note, has_place, kind, body = row
    return _Held(number, state, shown, reply, reason, note, bool(has_place), kind, len(json.loads(body)["candidates"]))


def add(connection: sqlite3.Connection, tasks: Iterable[Task], batch: str) -> int:
    """Adds tasks; how many were new. One that is there already gets the higher of both priorities."""
    added, overlap = 0, remembered(connection).overlap
    for task in tasks:
        if not math.isfinite(task.priority):
            raise RlhfKitError(f"task {task.id}: its priority must be a finite number, not {task.priority}")
        row = connection.execute("SELECT number FROM tasks WHERE id = ?", (task.id,)).fetchone()
        if row is None:
            places = 0 if task.gold else overlap
            values = (task.id, task.kind, task.prompt_id, task.gold, -task.priority, places)
            insert = "INSERT INTO tasks (id, kind, prompt, gold, urgency, places) VALUES (?, ?, ?, ?, ?, ?)"
            row = (connection.execute(insert, values).lastrowid,)
            connection.execute("INSERT INTO contents VALUES (?, ?)", (row[0], json.dumps(to_json(task), default=str)))
            added += 1
        else:  # it may be waited for now
            faster = "UPDATE tasks SET urgency = ? WHERE number = ? AND urgency > ?"
            connection.execute(faster, (-task.priority, row[0], -task.priority))
        connection.execute("INSERT OR IGNORE INTO batches VALUES (?, ?)", (batch, row[0]))
    return added


def more(connection: sqlite3.Connection, task: str) -> None:
    """One more place for a task."""
    query = "UPDATE tasks SET extra = extra + 1, places = places + 1 WHERE id = ? AND gold = 0"
    if not connection.execute(query, (task,)).rowcount:
        raise Refused("there is no such task")


def pause(connection: sqlite3.Connection, paused: bool) -> None:
    """Whether new tasks are given out."""
    connection.execute("INSERT OR REPLACE INTO facts VALUES ('paused', ?)", (str(int(paused)),))


def is_paused(connection: sqlite3.Connection) -> bool:
    """Whether they are not."""
    row = connection.execute("SELECT value FROM facts WHERE name = 'paused'").fetchone()
    return row is not None and row[0] == "1"


def next_of(connection: sqlite3.Connection, now: float, labeler: str) -> Assignment | None:
    """What the labeler has to do."""
    lapse(connection, now)
    person = labeler_number(connection, labeler)
    number = assign(connection, person, labeler, remembered(connection), now, is_paused(connection))
    return None if number is None else assignment_of(connection, number)


@dataclass(frozen=True)
class Turn:
    """What a labeler finds.

    Attributes:
        assignment: what is to be done now; None where there is nothing at this moment.
        progress: the labeler's own.
        is_over: whether no answer of anybody can come any more.
    """

    assignment: Assignment | None
    paused: bool
    progress: Progress
    is_over: bool


def turn_of(connection: sqlite3.Connection, now: float, labeler: str) -> Turn:
    """What the labeler has to do, and how far everything is, as one reading."""
    assignment = next_of(connection, now, labeler)
    own = progress_of(connection, labeler_number(connection, labeler))
    is_over = own.left == 0 and progress_of_all(connection)[0].left == 0
    return Turn(assignment, is_paused(connection), own, is_over)


def keep_draft(connection: sqlite3.Connection, now: float, labeler: str, assignment: str, draft: str) -> None:
    """Keeps a draft, and the lease with it; one that has run out begins anew if the place is still free."""
    lapse(connection, now)
    held = _held(connection, labeler, assignment)
    if held.state not in _CLOSED:
        state, until = "lapsed" if held.is_late else "open", now + remembered(connection).lease
        query = "UPDATE assignments SET draft = ?, state = ?, until = ? WHERE number = ?"
        connection.execute(query, (draft, state, until, held.number))


def leave(connection: sqlite3.Connection, now: float, labeler: str, assignment: str) -> None:
    """Ends the lease soon, where there is no draft."""
    query = """UPDATE assignments SET until = min(until, ?) WHERE id = ? AND state = 'open' AND draft IS NULL
        AND labeler = (SELECT number FROM labelers WHERE name = ?)"""
    connection.execute(query, (now + _AWAY, assignment, labeler))


def answer(
    connection: sqlite3.Connection, now: float, labeler: str, assignment: str, reply: Reply, seconds: float
) -> None:
    """Keeps an answer."""
    lapse(connection, now)
    held = _held(connection, labeler, assignment)
    check_reply(reply, held.kind, held.candidates)
    text = _reply_text(reply)
    if held.state == "answered" and held.reply == text:
        return
    _check_open(held)
    query = """UPDATE assignments SET state = 'answered', reply = ?, draft = NULL, seconds = ?, at = ?, late = ?
        WHERE number = ?"""
    connection.execute(query, (text, _seconds(seconds), now, held.is_late, held.number))


def skip(
    connection: sqlite3.Connection, now: float, labeler: str, assignment: str, reason: str, note: str, seconds: float
) -> None:
    """Passes a task on; a draft stays, for an undo."""
    held = _held(connection, labeler, assignment)
    if held.state == "skipped" and (held.reason, held.note) == (reason, note):
        return
    _check_open(held)
    query = "UPDATE assignments SET state = 'skipped', reason = ?, note = ?, seconds = ?, at = ? WHERE number = ?"
    connection.execute(query, (reason, note, _seconds(seconds), now, held.number))


def _check_open(held: _Held) -> None:
    if held.state in _CLOSED:
        raise Refused("this task is closed already; undo to change the answer")


_BEGIN_ELSEWHERE = """
INSERT OR IGNORE INTO assignments (id, task, labeler, shown, state, opened, until)
SELECT ?, t.number, l.number, '[]', 'lapsed', ?, 0 FROM tasks t, labelers l WHERE t.id = ? AND l.name = ?
"""
_OF_TASK = """
SELECT a.id FROM assignments a JOIN tasks t ON t.number = a.task JOIN labelers l ON l.number = a.labeler
WHERE t.id = ? AND l.name = ?
"""


def take(
    connection: sqlite3.Connection, now: float, labeler: str, task: str, reply: Reply, order: Sequence[int] | None
) -> bool:
    """Keeps an answer from elsewhere; whether it is new."""
    lapse(connection, now)
    add_stranger(connection, labeler)
    connection.execute(_BEGIN_ELSEWHERE, (secrets.token_hex(8), now, task, labeler))
    row = connection.execute(_OF_TASK, (task, labeler)).fetchone()
    if row is None:
        raise Refused("there is no such task")
    held = _held(connection, labeler, row[0])
    own = list(range(held.candidates))
    shown, text = json.dumps(own if order is None else list(order)), _reply_text(reply)
    check_reply(reply, held.kind, len(own))
    if order is not None and sorted(order) != own:
        raise Refused(f"the order of {len(own)} answers cannot be {shown}")
    if held.state == "answered" and (held.shown, held.reply) == (shown, text):
        return False
    if held.state in _CLOSED:
        raise Refused(f"{labeler} has another answer to task {task}, or has skipped it")
    query = """UPDATE assignments SET state = 'answered', shown = ?, reply = ?, draft = NULL, seconds = 0, at = ?,
        late = ? WHERE number = ?"""
    connection.execute(query, (shown, text, now, held.is_late, held.number))
    return True


_LAST = """
SELECT a.number, a.state, t.gold OR t.places > t.answers + t.leases FROM assignments a
JOIN tasks t ON t.number = a.task WHERE a.labeler = ? AND a.state IN ('answered', 'skipped')
ORDER BY a.at DESC, a.number DESC LIMIT 1
"""
_REMEMBER = """
INSERT INTO history SELECT number, state, reply, reason, note, seconds, at, ? FROM assignments WHERE number = ?
"""
_REOPEN = """
UPDATE assignments SET state = 'open', opened = ?, until = ?, draft = coalesce(reply, draft),
reply = NULL, reason = NULL, note = NULL, seconds = NULL, at = NULL, late = 0 WHERE number = ?
"""


def undo(connection: sqlite3.Connection, now: float, labeler: str) -> Assignment | None:
    """Opens again what was closed last."""
    lapse(connection, now)
    row = connection.execute(_LAST, (labeler_number(connection, labeler),)).fetchone()
    if row is None:
        return None
    number, state, has_place = row
    if state == "skipped" and not has_place:
        raise Refused("another labeler has been given this task by now")
    connection.execute(_REMEMBER, (now, number))
    connection.execute(_REOPEN, (now, now + remembered(connection).lease, number))
    return assignment_of(connection, number)


def _reply_text(reply: Reply) -> str:
    """The same for the same reply, in whatever order its fields came."""
    return json.dumps(reply.model_dump(mode="json"), sort_keys=True)


def _seconds(value: float) -> float:
    """What a page claims, within a day."""
    return min(max(float(value), 0.0), _DAY) if math.isfinite(value) else 0.0
