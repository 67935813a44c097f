"""Data files as records: all that is wrong with a file is found in one go, and nothing wrong gets any further."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, overload

from .checks.ledger import Ledger
from .codes import severity_of
from .errors import DataError, Problem
from .formats.base import Format
from .guessing import foreign, guess_kind
from .records import Demonstration, Prompt, Ranking, Rating, Record, Text
from .rows import Row, iter_rows
from .scanning import Entry, scan

__all__ = [
    "HELDOUT",
    "KIND_OF_FIELD",
    "Checked",
    "Entry",
    "Row",
    "check",
    "guess_kind",
    "is_heldout",
    "iter_rows",
    "kind_of_field",
    "load",
    "load_fields",
    "scan",
    "sha256_of",
]

KIND_OF_FIELD = {
    "demonstrations": "demonstration",
    "rankings": "ranking",
    "rankings_heldout": "ranking",
    "ratings": "rating",
    "prompts": "prompt",
    "prompts_heldout": "prompt",
    "text": "text",
}
"""The kind of the rows that each field of a recipe's `data` section names."""
HELDOUT = ("rankings_heldout", "prompts_heldout")
"""Those that none of the others may share a prompt with."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checked:
    """What a source holds: the records that can be used, where each stands, and all findings."""

    records: list[Record] = field(default_factory=list)
    wheres: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    """What makes rows unusable."""
    warnings: list[Problem] = field(default_factory=list)
    """What is wrong or unusual with rows that can be used."""


def check(source: str, kind: str, format: Format | None = None, ledger: Ledger | None = None) -> Checked:
    """Reads all rows of a source as records of `kind`; never stops at the first problem.

    Findings come in the order of the rows, those that only show between rows after the others. A row that contradicts
    an earlier one is among the records all the same; `load` gives none of them.
    """
    checked, rows = Checked(), 0
    if format is None and (problem := foreign(source, kind)):
        return Checked(problems=[problem])
    ledger = Ledger() if ledger is None else ledger
    for entry in scan(source, kind, format):
        rows += entry.row.is_row
        _sort(checked, entry.problems)
        if not entry.usable:
            ledger.add_unusable(entry.row)
        for record in entry.records:
            ledger.add(record, entry.row.place, entry.row.number, entry.sided)
            checked.records.append(record)
            checked.wheres.append(entry.where)
    _sort(checked, ledger.problems())
    if not rows and not checked.problems:
        checked.problems.append(Problem(source, "", "holds no rows", "empty-file"))
    return checked


def kind_of_field(name: str) -> str:
    """The kind of the rows that a field of a recipe names: of `data` by its own name, any other by its dotted path.

    The last part of the path tells: `reward.phases.0.rankings` holds rankings.
    """
    return KIND_OF_FIELD[name.rpartition(".")[2]]


def is_heldout(name: str) -> bool:
    """Whether none of the other fields may share a prompt with this one; `name` as in `kind_of_field`."""
    return name.rpartition(".")[2] in HELDOUT


def load_fields(sources: Mapping[str, str]) -> dict[str, list[Record]]:
    """The records of several fields of a recipe, each source read once, however many fields name it.

    Args:
        sources: by the name of the field, as in `kind_of_field`.

    Raises:
        DataError: every problem of all sources. That a held-out prompt stands in what is trained on is one of them.
    """
    keys = {name: (source, kind_of_field(name)) for name, source in sources.items()}
    checked, ledgers = dict[tuple[str, str], Checked](), dict[tuple[str, str], Ledger]()
    for key in keys.values():
        if key not in checked:
            ledgers[key] = Ledger(keep_prompts=True)
            checked[key] = check(*key, ledger=ledgers[key])
    problems = [problem for one in checked.values() for problem in one.problems]
    trained = dict[tuple[str, str], str]()
    for name, key in keys.items():
        if not is_heldout(name):
            trained.setdefault(key, name)
    for key in dict.fromkeys(key for name, key in keys.items() if is_heldout(name)):
        for other, name in trained.items():
            problems += ledgers[key].leaks_from(ledgers[other], name if "." in name else f"data.{name}")
    if problems:
        raise DataError(problems)
    for (source, _), one in checked.items():
        _tell(source, one)
    return {name: list(checked[key].records) for name, key in keys.items()}


def _sort(checked: Checked, problems: Iterable[Problem]) -> None:
    for problem in problems:
        (checked.problems if severity_of(problem.code) == "error" else checked.warnings).append(problem)


@overload
def load(source: str, kind: Literal["demonstration"]) -> list[Demonstration]: ...
@overload
def load(source: str, kind: Literal["ranking"]) -> list[Ranking]: ...
@overload
def load(source: str, kind: Literal["prompt"]) -> list[Prompt]: ...
@overload
def load(source: str, kind: Literal["rating"]) -> list[Rating]: ...
@overload
def load(source: str, kind: Literal["text"]) -> list[Text]: ...
@overload
def load(source: str, kind: str) -> list[Record]: ...
def load(
    source: str, kind: str
) -> list[Record] | list[Demonstration] | list[Ranking] | list[Prompt] | list[Rating] | list[Text]:
    """The records of a source; raises `DataError` with every problem if there is one. Warnings are logged."""
    checked = check(source, kind)
    if checked.problems:
        raise DataError(checked.problems)
    _tell(source, checked)
    return checked.records


def _tell(source: str, checked: Checked) -> None:
    warnings = sum(severity_of(problem.code) == "warning" for problem in checked.warnings)
    if warnings:
        log.warning("%s: %d warnings; rlhf-kit validate shows them", source, warnings)


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
