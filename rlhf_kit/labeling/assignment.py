"""Which task a labeler gets next.

* A task goes to `overlap` labelers, and to one more for each time it was asked for. Places are taken by answers and by
  leases that have not run out; a task is never given to more.
* Nobody is given a task twice. One whose lease ran out is still theirs as long as nobody else has taken the place.
* Tasks come by priority, then in the order in which they were added. One that was begun is finished first.
* Of every `gold_every` tasks of a labeler one is gold, at a place that is drawn for each labeler, until all were seen.
* The order in which answers are shown is drawn for each labeler and task. What is drawn depends on the seed alone.
"""

from __future__ import annotations

import json
import math
import random
import secrets
import sqlite3
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_kit.errors import RlhfKitError

from .tasks import Task, task_of

__all__ = [
    "Assignment",
    "Refused",
    "Settings",
    "assign",
    "assignment_of",
    "lapse",
    "remember",
    "remembered",
]


@dataclass(frozen=True)
class Settings:
    """How tasks are given out.

    Attributes:
        overlap: labelers for each task.
        gold_every: one in so many tasks of a labeler is gold; 0 is none.
        lease: seconds after which a task that was begun is given to another labeler.
        seed: of all that is drawn.
    """

    overlap: int = 1
    gold_every: int = 0
    lease: float = 1800.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.overlap < 1 or self.gold_every < 0 or not 0 < self.lease < math.inf:
            raise RlhfKitError("labels: overlap and lease must be above 0, and gold_every at least 0")


@dataclass(frozen=True)
class Assignment:
    """A task in a labeler's hands."""

    id: str
    task: Task
    labeler: str
    order: tuple[int, ...]
    """The shown order: key A is `task.candidates[order[0]]`."""
    draft: dict[str, Any] | None = None
    """What was kept of an answer that is not given yet; after an undo the answer that was taken back."""


class Refused(RlhfKitError):
    """What was asked for cannot be done: somebody else's task, one that is closed, an unknown one or person."""


def remembered(connection: sqlite3.Connection) -> Settings:
    """The settings by which tasks are given out."""
    row = connection.execute("SELECT value FROM facts WHERE name = 'settings'").fetchone()
    return Settings() if row is None else Settings(**json.loads(row[0]))


def remember(connection: sqlite3.Connection, settings: Settings) -> None:
    """Keeps the settings; another overlap gives every task another number of places."""
    before = remembered(connection)
    if settings == before:
        return
    if settings.overlap != before.overlap:
        connection.execute("UPDATE tasks SET places = ? + extra WHERE gold = 0", (settings.overlap,))
    connection.execute("INSERT OR REPLACE INTO facts VALUES ('settings', ?)", (json.dumps(asdict(settings)),))


def lapse(connection: sqlite3.Connection, now: float) -> None:
    """Ends the leases that have run out."""
    connection.execute("UPDATE assignments SET state = 'lapsed' WHERE state = 'open' AND until <= ?", (now,))


_WHOLE = """
SELECT a.id, a.shown, a.draft, l.name, c.body FROM assignments a
JOIN labelers l ON l.number = a.labeler JOIN contents c ON c.task = a.task WHERE a.number = ?
"""


def assignment_of(connection: sqlite3.Connection, number: int) -> Assignment:
    """The assignment with this number in the table."""
    name, shown, draft, labeler, body = connection.execute(_WHOLE, (number,)).fetchone()
    kept = None if draft is None else json.loads(draft)
    return Assignment(name, task_of(json.loads(body)), labeler, tuple(json.loads(shown)), kept)


_OPEN = "SELECT number FROM assignments WHERE labeler = ? AND state = 'open' ORDER BY opened DESC, number DESC LIMIT 1"
_LAPSED = """
SELECT a.number FROM assignments a JOIN tasks t ON t.number = a.task
WHERE a.labeler = ? AND a.state = 'lapsed' AND (t.gold = 1 OR t.places > t.answers + t.leases)
ORDER BY a.opened, a.number LIMIT 1
"""


def assign(
    connection: sqlite3.Connection, labeler: int, name: str, settings: Settings, now: float, paused: bool
) -> int | None:
    """The number of the assignment that the labeler has to do next, begun now if need be; None where there is none.

    Nothing new is begun while it is paused. Leases that have run out must have been ended before.
    """
    until = now + settings.lease
    row = connection.execute(_OPEN, (labeler,)).fetchone()
    if row is not None:
        connection.execute("UPDATE assignments SET until = ? WHERE number = ?", (until, row[0]))
        return int(row[0])
    if paused:
        return None
    row = connection.execute(_LAPSED, (labeler,)).fetchone()
    if row is not None:
        again = "UPDATE assignments SET state = 'open', opened = ?, until = ? WHERE number = ?"
        connection.execute(again, (now, until, row[0]))
        return int(row[0])
    found = _with_a_place(connection, labeler)
    if found is None:
        return None
    (seen,) = connection.execute("SELECT seen FROM labelers WHERE number = ?", (labeler,)).fetchone()
    gold = _gold(connection, labeler, name, settings.seed) if _is_gold_due(name, seen, settings) else None
    if gold is None:
        mark = "UPDATE labelers SET mark_urgency = ?, mark_number = ? WHERE number = ?"
        connection.execute(mark, (found[1], found[0], labeler))
    connection.execute("UPDATE labelers SET seen = seen + 1 WHERE number = ?", (labeler,))
    return _begin(connection, found[0] if gold is None else gold, labeler, name, settings, now)


_NEXT = """
SELECT t.number, t.urgency FROM tasks t INDEXED BY tasks_with_places
WHERE t.gold = 0 AND t.places > t.answers + t.leases AND {behind_the_mark}
AND NOT EXISTS (SELECT 1 FROM assignments a WHERE a.task = t.number AND a.labeler = ?)
ORDER BY t.urgency, t.number LIMIT 1
"""
# In two steps: of (urgency, number) > (?, ?) the index would be used for the urgency only, which most tasks share.
_AS_URGENT = _NEXT.format(behind_the_mark="t.urgency = ? AND t.number > ?")
_LESS_URGENT = _NEXT.format(behind_the_mark="t.urgency > ?")


def _with_a_place(connection: sqlite3.Connection, labeler: int) -> tuple[int, float] | None:
    """The first task with a free place that the labeler was never given, and its urgency."""
    query = "SELECT mark_urgency, mark_number FROM labelers WHERE number = ?"
    urgency, number = connection.execute(query, (labeler,)).fetchone()
    row = connection.execute(_AS_URGENT, (urgency, number, labeler)).fetchone()
    row = row or connection.execute(_LESS_URGENT, (urgency, labeler)).fetchone()
    return None if row is None else (int(row[0]), float(row[1]))


def _is_gold_due(name: str, seen: int, settings: Settings) -> bool:
    if settings.gold_every < 1:
        return False
    block, place = divmod(seen, settings.gold_every)
    return random.Random(f"{settings.seed} gold {block} {name}").randrange(settings.gold_every) == place


_GOLD = """
SELECT t.number, t.id FROM tasks t
WHERE t.gold = 1 AND NOT EXISTS (SELECT 1 FROM assignments a WHERE a.task = t.number AND a.labeler = ?)
"""


def _gold(connection: sqlite3.Connection, labeler: int, name: str, seed: int) -> int | None:
    """A gold task that the labeler has not seen, in an order of their own."""
    unseen = connection.execute(_GOLD, (labeler,)).fetchall()
    drawn = [(random.Random(f"{seed} {task} {name}").random(), number) for number, task in unseen]
    return min(drawn)[1] if drawn else None


_BEGIN = """
INSERT INTO assignments (id, task, labeler, shown, state, opened, until) VALUES (?, ?, ?, ?, 'open', ?, ?)
"""


def _begin(connection: sqlite3.Connection, task: int, labeler: int, name: str, settings: Settings, now: float) -> int:
    query = "SELECT t.id, c.body FROM tasks t JOIN contents c ON c.task = t.number WHERE t.number = ?"
    content, body = connection.execute(query, (task,)).fetchone()
    order = list(range(len(json.loads(body)["candidates"])))
    random.Random(f"{settings.seed} {content} {name}").shuffle(order)
    begun = (secrets.token_hex(8), task, labeler, json.dumps(order), now, now + settings.lease)
    return int(connection.execute(_BEGIN, begun).lastrowid or 0)
