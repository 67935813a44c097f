"""Data files as records: all that is wrong with a file is found in one go, and nothing wrong gets any further."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

from .errors import DataError, Problem
from .records import Demonstration, Prompt, Ranking, Record, Text, parse
from .rows import Row, iter_rows

__all__ = ["Checked", "Row", "check", "guess_kind", "iter_rows", "load", "sha256_of"]


@dataclass(frozen=True, slots=True)
class Checked:
    """What a source holds: the valid records, where each stands, and the problems of all other rows."""

    records: list[Record]
    wheres: list[str]
    problems: list[Problem]


def check(source: str, kind: str) -> Checked:
    """Reads all rows of a source as records of `kind`; never stops at the first problem."""
    checked = Checked([], [], [])
    first: dict[str, str] = {}  # where each id was seen first
    empty = True
    for where, value in iter_rows(source):
        empty = False
        if isinstance(value, Problem):
            checked.problems.append(value)
            continue
        before = len(checked.problems)
        name = value.get("id")
        if isinstance(name, str) and (seen := first.setdefault(name, where)) != where:
            checked.problems.append(Problem(where, "id", f"duplicate; '{name}' is already the id of {seen}"))
        try:
            record = parse(value, kind, where)
        except DataError as error:
            checked.problems.extend(error.problems)
            continue
        if len(checked.problems) == before:
            checked.records.append(record)
            checked.wheres.append(where)
    if empty:
        checked.problems.append(Problem(source, "", "holds no rows"))
    return checked


@overload
def load(source: str, kind: Literal["demonstration"]) -> list[Demonstration]: ...
@overload
def load(source: str, kind: Literal["ranking"]) -> list[Ranking]: ...
@overload
def load(source: str, kind: Literal["prompt"]) -> list[Prompt]: ...
@overload
def load(source: str, kind: Literal["text"]) -> list[Text]: ...
@overload
def load(source: str, kind: str) -> list[Record]: ...
def load(source: str, kind: str) -> list[Record] | list[Demonstration] | list[Ranking] | list[Prompt] | list[Text]:
    """The records of a source; raises `DataError` with every problem if there is one."""
    checked = check(source, kind)
    if checked.problems:
        raise DataError(checked.problems)
    return checked.records


def guess_kind(source: str) -> str:
    """The kind of a source's rows, by the fields of the first row that can be read."""
    problems = []
    for where, value in iter_rows(source):
        if isinstance(value, Problem):
            problems.append(value)
        elif kind := _kind_of(value):
            return kind
        else:
            reason = f"looks like no kind of row that is known; it has {', '.join(value) or 'no fields'}"
            raise DataError([Problem(where, "", reason)])
    raise DataError(problems or [Problem(source, "", "holds no rows")])


def _kind_of(row: dict[str, object]) -> str | None:
    if row.keys() & {"responses", "chosen", "rejected"}:
        return "ranking"
    if "completion" in row:
        return "demonstration"
    if isinstance(messages := row.get("messages"), list):
        last = messages[-1] if messages else None
        return "prompt" if isinstance(last, dict) and last.get("role") == "user" else "demonstration"
    return next((kind for kind in ("prompt", "text") if kind in row), None)


def sha256_of(source: str) -> str:
    """The SHA-256 of a file's bytes, of a directory's files with their names, or of the rows that the Hub gives."""
    path = Path(source)
    digest = hashlib.sha256()
    if not path.exists() and ":" in source and Path(source.rpartition(":")[0]).is_dir():
        path = Path(source.rpartition(":")[0])
        digest.update(source.rpartition(":")[2].encode())
    if path.is_file():
        _add_file(digest, path)
    elif path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("cache-")):
            digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
            _add_file(digest, file)
    else:
        for row in iter_rows(source):
            if isinstance(row.value, Problem):
                raise DataError([row.value])
            digest.update(json.dumps(row.value, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
