"""Rankings from files, folders and Hub datasets in any known format, with an account of what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from .checks.ledger import Ledger
from .codes import severity_of
from .errors import DataError, Problem
from .formats.base import Format
from .guessing import Guess, guess
from .records import Ranking
from .rows import open_source
from .scanning import scan_sources

__all__ = ["RankedFiles", "SourceFile", "read_rankings"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """What was read of one source, or of several whose rows belong together."""

    name: str
    format: str
    """Empty for the kit's own shape."""
    rows: int
    left_out: int
    """Rows of which nothing came."""
    rankings: int


@dataclass(frozen=True, slots=True)
class RankedFiles:
    """All rankings of some sources."""

    records: tuple[Ranking, ...]
    sources: tuple[SourceFile, ...]
    notes: tuple[str, ...]
    """What was guessed and what was left out, one sentence each."""


def read_rankings(sources: Sequence[str], format: Format | None = None) -> RankedFiles:
    """The rankings of all sources. Rows of a foreign format that cannot be used are left out and counted.

    Args:
        sources: files, saved `datasets` directories or Hub ids; at least one.
        format: of the rows; guessed where it is not given.

    Raises:
        DataError: every bad row of the sources in the kit's own shape; a source that cannot be read to its end, that
            looks like nothing known, or that holds no ranking.
    """
    groups: dict[str, tuple[Guess, list[str]]] = {}
    problems: list[Problem] = []
    for name in dict.fromkeys(sources):
        try:
            found = guess(name, "ranking", format)
        except DataError as error:
            problems += error.problems
            continue
        joins = found.format is not None and found.format.key is not None
        group = f"format {found.format.name}" if joins and found.format else f"file {name}"
        groups.setdefault(group, (found, []))[1].append(name)
    records: list[Ranking] = []
    files: list[SourceFile] = []
    notes: list[str] = []
    for found, names in groups.values():
        file, mistakes, of_file = _read(names, found.format)
        problems += mistakes
        records += of_file
        files.append(file)
        if found.format is not None and format is None:
            notes.append(f"{file.name} was read as {found.format.name}: {found.why}.")
        if file.left_out:
            words = f"{file.left_out} of {file.rows} rows of {file.name} are left out"
            notes.append(f"{words}; rlhf-kit validate names each with its reason.")
    if problems:
        raise DataError(problems)
    return RankedFiles(tuple(records), tuple(files), tuple(notes))


def _read(names: Sequence[str], format: Format | None) -> tuple[SourceFile, list[Problem], list[Ranking]]:
    """One source, or the sources of a format that joins their rows."""
    ledger, records, problems, rows, left_out = Ledger(), list[Ranking](), list[Problem](), 0, 0
    for entry in scan_sources(map(open_source, names), "ranking", format):
        rows += entry.row.is_row
        left_out += entry.row.is_row and not entry.usable
        if format is None or not entry.row.is_row:
            problems += [problem for problem in entry.problems if severity_of(problem.code) == "error"]
        for record in entry.records:
            ledger.add(record, entry.row.place, entry.row.number, entry.sided)
            records.append(cast("Ranking", record))
    if format is None:
        problems += [problem for problem in ledger.problems() if severity_of(problem.code) == "error"]
    name = ", ".join(names)
    if not records and not problems:
        reason = "holds no rows" if not rows else f"none of its {rows} rows is a ranking that can be used"
        advice = "" if not rows else "; rlhf-kit validate names each with its reason"
        problems.append(Problem(name, "", reason + advice, "empty-file"))
    return SourceFile(name, format.name if format else "", rows, left_out, len(records)), problems, records
