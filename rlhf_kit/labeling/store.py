"""Everything that is known of a labelling job, in one SQLite file: tasks, labelers, what is in whose hands, answers.

Whatever a call has done is on the disk when it returns, inside `together` when the block is over. Any thread and
several processes may use a file at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from . import accounts, changes, people
from .accounts import Answered, Counts, Opinion, Progress, Skipped
from .assignment import Assignment, Refused, Settings, remember, remembered
from .changes import Turn
from .database import Database
from .people import ADMIN, labeler_number
from .replies import MOST_NOTE, SKIP_REASONS, Reply
from .tasks import Kind, Task

__all__ = ["ADMIN", "Answered", "Assignment", "Progress", "Refused", "Settings", "Skipped", "Store", "Turn"]

_MOST_DRAFT = 400_000


class Store:
    """A file of tasks and answers.

    Args:
        path: is made if it is not there, readable by its owner alone.
        clock: seconds since 1970.

    Raises:
        RlhfKitError: it cannot be opened, or is no such file.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._database = Database(path)
        with self._database.reading() as connection:
            (secret,) = connection.execute("SELECT value FROM facts WHERE name = 'secret'").fetchone()
        self._secret = bytes.fromhex(secret)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def together(self) -> AbstractContextManager[None]:
        """All that this thread changes inside is on the disk when the block is over, at once; what raises inside and is
        caught undoes itself alone, also a block within the block.

        Raises:
            RlhfKitError: the file cannot be written; nothing of the block is kept.
        """
        return self._database.together()

    # ---- what is asked, and of whom

    def configure(self, settings: Settings) -> None:
        """Says how tasks are given out from now on, by whoever serves them."""
        self._database.write(lambda connection: remember(connection, settings))

    @property
    def settings(self) -> Settings:
        """How tasks are given out; the defaults where nobody has said."""
        with self._database.reading() as connection:
            return remembered(connection)

    def add(self, tasks: Iterable[Task], *, batch: str = "") -> int:
        """Adds tasks and returns how many are new; one that is there already belongs to the new batch too, and gets the
        higher of both priorities."""
        found = list(tasks)  # made before the file is held, whatever that takes
        return self._database.write(lambda connection: changes.add(connection, found, batch))

    def tasks(self, *, batch: str | None = None) -> Iterator[Task]:
        """All tasks, or those of a batch, in the order in which they were added."""
        with self._database.reading() as connection:
            yield from accounts.tasks(connection, batch)

    def kind(self) -> Kind | None:
        """Of the first task, and so of all that the command has put here; None where there is none yet."""
        return next((task.kind for task in self.tasks()), None)

    def task(self, task_id: str) -> Task | None:
        """The task with this id, if there is one."""
        with self._database.reading() as connection:
            return accounts.task(connection, task_id)

    def more(self, task_id: str) -> None:
        """Asks one labeler more than `overlap` for a task; raises `Refused` where there is none, or it is gold."""
        self._database.write(lambda connection: changes.more(connection, task_id))

    def set_labelers(self, names: Sequence[str]) -> None:
        """Who may label from now on; what others have answered is kept, and their links are dead."""
        self._database.write(lambda connection: people.set_active(connection, names))

    def labelers(self) -> list[str]:
        """Who may label, in the order in which they came."""
        with self._database.reading() as connection:
            return people.active(connection)

    def may_label(self, name: str) -> bool:
        """Whether that is one of the `labelers`."""
        with self._database.reading() as connection:
            return people.is_active(connection, name)

    def token(self, name: str) -> str:
        """What lets a labeler in, or `ADMIN`; the same as long as the file is."""
        return people.token_of(self._secret, name)

    def who(self, token: str) -> str | None:
        """Whose token this is: `ADMIN`, or somebody who may label."""
        return people.owner_of(token, [ADMIN, *self.labelers()], self._secret)

    def pause(self, paused: bool) -> None:
        """While it is paused no new tasks are given out; what was begun can be finished."""
        self._database.write(lambda connection: changes.pause(connection, paused))

    @property
    def paused(self) -> bool:
        """Whether it is."""
        with self._database.reading() as connection:
            return changes.is_paused(connection)

    # ---- what a labeler does

    def next(self, labeler: str) -> Assignment | None:
        """What the labeler has to do now; None where there is nothing for them at this moment.

        What is open already comes first, so that a page that is loaded again shows the same. See `assignment.py`.
        """
        return self._database.write(lambda connection: changes.next_of(connection, self._clock(), labeler))

    def turn(self, labeler: str) -> Turn:
        """`next`, and with it how far everything is."""
        return self._database.write(lambda connection: changes.turn_of(connection, self._clock(), labeler))

    def keep_draft(self, labeler: str, assignment: str, draft: Mapping[str, Any]) -> None:
        """Keeps an unfinished answer, and the task for its labeler; a draft of what is answered by now is dropped."""
        text = json.dumps(draft)
        if len(text) > _MOST_DRAFT:
            raise Refused("the draft is too long to be kept")
        self._database.write(lambda c: changes.keep_draft(c, self._clock(), labeler, assignment, text))

    def leave(self, labeler: str, assignment: str) -> None:
        """Somebody has closed the page: a task with which they have not begun waits a minute for them, and then for
        anybody. One with a draft stays theirs as long as its lease lasts."""
        self._database.write(lambda c: changes.leave(c, self._clock(), labeler, assignment))

    def answer(self, labeler: str, assignment: str, reply: Reply, seconds: float) -> None:
        """Keeps an answer; the same one again changes nothing.

        One whose lease has run out is taken all the same, even where another labeler has the place by now.

        Raises:
            Refused: it is not this labeler's, or has another answer already.
            DataError: the reply does not fit the task.
        """
        self._database.write(lambda c: changes.answer(c, self._clock(), labeler, assignment, reply, seconds))

    def skip(self, labeler: str, assignment: str, reason: str, note: str, seconds: float) -> None:
        """Passes a task on to another labeler; the same again changes nothing.

        Raises:
            Refused: it is not this labeler's, or closed already; no such reason, or a note that is too long.
        """
        if reason not in SKIP_REASONS:
            raise Refused(f"a task is skipped for one of these reasons: {', '.join(SKIP_REASONS)}")
        if len(note) > MOST_NOTE:
            raise Refused(f"the note is too long: at most {MOST_NOTE:,} characters")
        self._database.write(lambda c: changes.skip(c, self._clock(), labeler, assignment, reason, note, seconds))

    def take(self, labeler: str, task_id: str, reply: Reply, *, order: Sequence[int] | None = None) -> bool:
        """Keeps an answer that was given elsewhere, by anybody; True where it is new.

        It counts as every answer does, also where the task has had all that were wanted.

        Args:
            order: the shown one, to which the keys of the reply belong: key A is `task.candidates[order[0]]`. Without
                it they are in the task's own order.

        Raises:
            Refused: no such task, or this labeler has answered or skipped it otherwise.
            DataError: the reply does not fit the task.
        """
        return self._database.write(lambda c: changes.take(c, self._clock(), labeler, task_id, reply, order))

    def undo(self, labeler: str) -> Assignment | None:
        """Opens again what the labeler answered or skipped last, with the answer as its draft; None if nothing was.

        What they said before stays in the file.

        Raises:
            Refused: it was skipped, and another labeler has it by now.
        """
        return self._database.write(lambda connection: changes.undo(connection, self._clock(), labeler))

    # ---- what there is

    def progress(self, labeler: str | None = None) -> Progress:
        """How far everybody is, or one labeler."""
        with self._database.reading() as connection:
            if labeler is None:
                return accounts.progress_of_all(connection)[0]
            return accounts.progress_of(connection, labeler_number(connection, labeler))

    def counts(self) -> Counts:
        """How many tasks are done, and how many are gold."""
        with self._database.reading() as connection:
            return accounts.progress_of_all(connection)[1]

    def version(self) -> object:
        """Differs from an earlier one where answers, skips or who may label have changed since."""
        with self._database.reading() as connection:
            return accounts.version(connection)

    def now(self) -> float:
        """The time by the store's clock."""
        return self._clock()

    def answered(self, *, batch: str | None = None) -> Iterator[Answered]:
        """All answers, or those to the tasks of a batch; task by task, in the order in which these were added."""
        with self._database.reading() as connection:
            yield from accounts.answered(connection, batch)

    def opinions(self) -> Iterator[Opinion]:
        """All answers as numbers, without their texts: quick enough to be asked for every few seconds."""
        with self._database.reading() as connection:
            yield from accounts.opinions(connection)

    def skipped(self) -> Iterator[Skipped]:
        """All that was skipped and is not open again."""
        with self._database.reading() as connection:
            yield from accounts.skipped(connection)
