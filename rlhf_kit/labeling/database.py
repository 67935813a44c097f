"""The SQLite file of a store: its tables, and how it is read and written by many threads and processes.

A transaction that writes takes the write lock at its beginning, so that what it has read still holds when it writes.
Journal: WAL with `synchronous=FULL`, so that what was committed outlives the process and the machine. Waiting for the
disk is most of a small transaction's time: whoever has several at hand writes them `together` (a group commit).

Triggers count each task's answers, skips and open leases, and the tasks with a place free, whatever changes them, so
that nothing scans all tasks to know which and how many these are. Each labeler has a mark in the order of the tasks:
every task with a free place up to it has been given to them. A task that gets a place free again moves the marks behind
it back.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rlhf_kit.errors import RlhfKitError

__all__ = ["Database"]

_T = TypeVar("_T")
_APPLICATION = 0x726C6866
_VERSION = 2
_PATIENCE = 30.0
"""Seconds that a process waits for another one's transaction."""

_SCHEMA = f"""
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE labelers (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    active INTEGER NOT NULL,
    seen INTEGER NOT NULL DEFAULT 0,
    mark_urgency REAL NOT NULL DEFAULT -1e308,
    mark_number INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE tasks (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    prompt TEXT NOT NULL,
    gold INTEGER NOT NULL,
    urgency REAL NOT NULL,
    extra INTEGER NOT NULL DEFAULT 0,
    places INTEGER NOT NULL,
    answers INTEGER NOT NULL DEFAULT 0,
    skips INTEGER NOT NULL DEFAULT 0,
    leases INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX tasks_with_places ON tasks (urgency, number) WHERE gold = 0 AND places > answers + leases;
CREATE INDEX tasks_gold ON tasks (number) WHERE gold = 1;
CREATE TABLE contents (task INTEGER PRIMARY KEY REFERENCES tasks, body TEXT NOT NULL);
CREATE TABLE batches (
    batch TEXT NOT NULL, task INTEGER NOT NULL REFERENCES tasks, PRIMARY KEY (batch, task)
) WITHOUT ROWID;
CREATE TABLE assignments (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    task INTEGER NOT NULL REFERENCES tasks,
    labeler INTEGER NOT NULL REFERENCES labelers,
    shown TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'lapsed', 'answered', 'skipped')),
    opened REAL NOT NULL,
    until REAL NOT NULL,
    draft TEXT,
    reply TEXT,
    reason TEXT,
    note TEXT,
    seconds REAL,
    at REAL,
    late INTEGER NOT NULL DEFAULT 0,
    UNIQUE (task, labeler)
);
CREATE INDEX assignments_of ON assignments (labeler, state, at);
CREATE INDEX assignments_leased ON assignments (until) WHERE state = 'open';
CREATE TABLE history (
    assignment INTEGER NOT NULL REFERENCES assignments,
    state TEXT NOT NULL, reply TEXT, reason TEXT, note TEXT, seconds REAL, at REAL, undone REAL NOT NULL
);
CREATE TRIGGER assigned AFTER INSERT ON assignments BEGIN
    UPDATE tasks SET
        answers = answers + (new.state = 'answered'),
        skips = skips + (new.state = 'skipped'),
        leases = leases + (new.state = 'open')
    WHERE number = new.task;
END;
CREATE TRIGGER changed AFTER UPDATE OF state ON assignments WHEN old.state <> new.state BEGIN
    UPDATE tasks SET
        answers = answers + (new.state = 'answered') - (old.state = 'answered'),
        skips = skips + (new.state = 'skipped') - (old.state = 'skipped'),
        leases = leases + (new.state = 'open') - (old.state = 'open')
    WHERE number = new.task;
END;
CREATE TRIGGER freed AFTER UPDATE OF places, answers, leases ON tasks
WHEN new.places > new.answers + new.leases AND old.places <= old.answers + old.leases BEGIN
    UPDATE labelers SET mark_urgency = new.urgency, mark_number = new.number - 1
    WHERE (mark_urgency, mark_number) >= (new.urgency, new.number);
    UPDATE facts SET value = value + 1 WHERE name = 'free';
END;
CREATE TRIGGER filled AFTER UPDATE OF places, answers, leases ON tasks
WHEN new.places <= new.answers + new.leases AND old.places > old.answers + old.leases BEGIN
    UPDATE facts SET value = value - 1 WHERE name = 'free';
END;
CREATE TRIGGER added AFTER INSERT ON tasks BEGIN
    UPDATE labelers SET mark_urgency = new.urgency, mark_number = new.number - 1
    WHERE (mark_urgency, mark_number) >= (new.urgency, new.number);
    UPDATE facts SET value = value + (new.places > 0) WHERE name = 'free';
END;
INSERT INTO facts VALUES ('free', '0');
CREATE TRIGGER hurried AFTER UPDATE OF urgency ON tasks BEGIN
    UPDATE labelers SET mark_urgency = new.urgency, mark_number = new.number - 1
    WHERE (mark_urgency, mark_number) >= (new.urgency, new.number);
END;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""


class Database:
    """Connections to one file, as many as are in use at once; any thread may use it.

    Raises:
        RlhfKitError: the file cannot be opened, is no store, or one of another version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: deque[sqlite3.Connection] = deque()
        self._writing = threading.RLock()  # SQLite's own waiting would sleep for longer and longer
        self._shared: sqlite3.Connection | None = None
        self._closed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite's own would be readable by others; -wal and -shm take the mode of the file. One that is there must
            # not be opened and closed beside SQLite: that would drop the locks that it has on it in this process.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            with contextlib.closing(sqlite3.connect(path, timeout=_PATIENCE)) as connection:
                self._is_new(connection)  # before anything of another program's file is changed
            self.write(self._prepare)
        except (OSError, sqlite3.Error) as error:
            raise RlhfKitError(f"{path}: cannot be opened as a store of labels: {error}") from None

    def _is_new(self, connection: sqlite3.Connection) -> bool:
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return True
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION:
            raise RlhfKitError(f"{self._path}: is another program's database; name another file")
        if version != _VERSION:
            advice = "use the rlhf-kit that wrote it, or another file"
            raise RlhfKitError(f"{self._path}: a store of version {version}, this is version {_VERSION}; {advice}")
        return False

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if self._is_new(connection):
            for statement in _statements(_SCHEMA):
                connection.execute(statement)
            connection.execute("INSERT INTO facts VALUES ('secret', ?)", (secrets.token_hex(32),))

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        for _ in range(100):  # the switch to WAL does not wait where another process is making it
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                time.sleep(0.05)
        return connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        if self._closed:
            raise RlhfKitError(f"{self._path}: the store is closed")
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
        finally:
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """All statements inside see the file as it was at the first; writers are not held up."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def together(self) -> Iterator[None]:
        """All that this thread writes inside is one transaction, and on the disk when the block is over.

        A `write` or a block inside that raises undoes its own part alone. `reading` shows nothing of the block before
        its end.

        Raises:
            RlhfKitError: the file cannot be written; nothing of the block is kept.
        """
        with self._changing():
            yield

    def write(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """What `work` gives. All or none of what it writes is there afterwards, and is on the disk; inside `together`
        at its end.

        Raises:
            RlhfKitError: the file cannot be written.
        """
        with self._changing() as connection:
            return work(connection)

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, or inside one a part of it that can be undone alone."""
        with self._writing, self._told():
            if self._shared is not None:
                with self._part_of(self._shared):
                    yield self._shared
                return
            with self._transaction("BEGIN IMMEDIATE") as connection:
                self._shared = connection
                try:
                    yield connection
                finally:
                    self._shared = None

    @contextmanager
    def _part_of(self, connection: sqlite3.Connection) -> Iterator[None]:
        if not connection.in_transaction:  # a full disk has undone all of it
            raise RlhfKitError(f"{self._path}: cannot be written: what came before could not be")
        connection.execute("SAVEPOINT part")  # those of one name lie within each other
        try:
            yield
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK TO part")
                connection.execute("RELEASE part")
            raise
        connection.execute("RELEASE part")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # a full disk, a file that another program holds
            raise RlhfKitError(f"{self._path}: cannot be written: {error}") from error

    def close(self) -> None:
        """Closes the file; what is still in use is closed when it is done."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


def _statements(script: str) -> Iterator[str]:
    """Its statements one by one: `executescript` would commit the transaction first."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
