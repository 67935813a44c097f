"""Who may label, and what lets them in.

A token is made of a secret in the store's file and a name, so that links are the same after a restart, and nothing that
opens a page is written down anywhere else.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
from collections.abc import Iterable, Sequence

from rlhf_kit.errors import RlhfKitError

from .assignment import Refused

__all__ = ["ADMIN", "active", "add_stranger", "is_active", "labeler_number", "owner_of", "set_active", "token_of"]

ADMIN = "admin"
_MOST_NAME = 64


def _checked(name: str) -> str:
    if not name.strip() or len(name) > _MOST_NAME or not name.isprintable() or name == ADMIN:
        raise Refused(f"labelers: {name!r} cannot be a name; use 1 to {_MOST_NAME} letters, but not {ADMIN!r}")
    return name


def set_active(connection: sqlite3.Connection, names: Sequence[str]) -> None:
    """Who may label from now on, and nobody else; what others have open can be given out again."""
    if len(set(map(_checked, names))) < len(names):
        raise RlhfKitError("labelers: a name stands twice; give each person one")
    connection.execute("UPDATE labelers SET active = 0")
    query = "INSERT INTO labelers (name, active) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET active = 1"
    connection.executemany(query, [(name,) for name in names])
    gone = "labeler IN (SELECT number FROM labelers WHERE NOT active)"
    connection.execute(f"UPDATE assignments SET state = 'lapsed' WHERE state = 'open' AND {gone}")


def add_stranger(connection: sqlite3.Connection, name: str) -> None:
    """Somebody whose answers were given elsewhere; they get no link."""
    connection.execute("INSERT OR IGNORE INTO labelers (name, active) VALUES (?, 0)", (_checked(name),))


def active(connection: sqlite3.Connection) -> list[str]:
    """Who may label, in the order in which they came."""
    return [name for (name,) in connection.execute("SELECT name FROM labelers WHERE active ORDER BY number")]


def labeler_number(connection: sqlite3.Connection, name: str) -> int:
    """The number of somebody who may label; raises `Refused` otherwise."""
    row = connection.execute("SELECT number FROM labelers WHERE name = ? AND active", (name,)).fetchone()
    if row is None:
        raise Refused("there is no such labeler")
    return int(row[0])


def is_active(connection: sqlite3.Connection, name: str) -> bool:
    """Whether somebody may label."""
    return connection.execute("SELECT 1 FROM labelers WHERE name = ? AND active", (name,)).fetchone() is not None


def token_of(secret: bytes, name: str) -> str:
    """64 hexadecimal digits that only who knows the secret can make."""
    return hmac.new(secret, name.encode(), hashlib.sha256).hexdigest()


def owner_of(token: str, names: Iterable[str], secret: bytes) -> str | None:
    """Whose of these a token is. The time that it takes says nothing about how much of it is right."""
    found = None
    for name in names:
        if hmac.compare_digest(token_of(secret, name).encode(), token.encode("utf-8", "replace")):
            found = name
    return found
