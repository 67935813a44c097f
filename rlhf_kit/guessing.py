"""What a source holds, by its first rows: a kind of the kit's own, or a foreign format, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from .codes import severity_of
from .errors import DataError, Problem
from .formats.base import Format, Unusable
from .formats.catalogue import FORMATS
from .formats.resolve import converter_to, default_kind, kinds_of, resolved
from .parsing import parse
from .records import Prompt
from .rows import iter_rows

__all__ = ["ASKED_FOR", "Guess", "foreign", "guess", "guess_kind", "joined_by", "kind_of", "kind_of_joined"]

ASKED_FOR = "asked for"
"""Why a source is taken for what it is where only the caller said so."""
_LOOKED_AT = 20


class Guess(NamedTuple):
    """What a source is taken for."""

    kind: str
    format: Format | None
    """None for the kit's own shape and those of TRL's that are read as they are."""
    why: str


def guess(source: str, kind: str | None = None, format: Format | None = None) -> Guess:
    """What the first rows of a source that can be read look like.

    Args:
        source: as `iter_rows` takes it.
        kind: what they are to become; otherwise what they say most about.
        format: what they are in, where that is known.

    Raises:
        DataError: they look like nothing that is known, or none can be read.
    """
    if format is not None:
        return Guess(kind or _fruitful_kind(format, _first_rows(source)[0]), format, ASKED_FOR)
    rows, where, problems = _first_rows(source)
    if not rows:
        errors = [problem for problem in problems if severity_of(problem.code) == "error"]
        raise DataError(errors or [Problem(source, "", "holds no rows", "empty-file")])
    own = _own_kind(rows)
    as_own = Guess(own, None, f"its rows have the fields of a {own}") if own and kind in (None, own) else None
    wanted = kind or own
    clean = sum(_is_clean(row, wanted) for row in rows) if wanted else 0
    if as_own and clean == len(rows):
        return as_own
    if found := _recognised(rows):
        format, why = found
        becomes = kind or _fruitful_kind(format, rows)
        # TRL's shapes that are like the kit's own are read strictly: as a format, it lets misspelt fields pass.
        if own is None or (format.name != "trl" and _clean_rows(format, becomes, rows) > clean):
            return Guess(becomes, format, why)
    if as_own or kind:  # the findings of the rows will say what is wrong
        return as_own or Guess(str(kind), None, ASKED_FOR)
    if "prompt" in rows[0]:  # that alone says little: many foreign formats have one
        return Guess("prompt", None, "its rows have a prompt")
    reason = f"looks like no kind of row that is known; it has {', '.join(map(str, rows[0])) or 'no fields'}"
    raise DataError([Problem(where, "", reason, "unknown-kind")])


def joined_by(source: str, format: Format | None = None) -> Guess | None:
    """What a source is taken for, where its format joins rows, which may stand in other files beside it."""
    try:
        found = guess(source, None, format)
    except DataError:  # told when the source itself is examined
        return None
    return found if found.format is not None and found.format.key is not None else None


def kind_of_joined(sources: Iterable[str], format: Format) -> str:
    """The kind that most of the first rows of sources together give something of."""
    return _fruitful_kind(format, [row for source in sources for row in _first_rows(source)[0]])


def foreign(source: str, kind: str) -> Problem | None:
    """That the rows of a source are in a foreign format, where `kind` is wanted in the kit's own shape."""
    rows, where, _ = _first_rows(source)
    if not rows or _own_kind(rows) == kind or (found := _recognised(rows)) is None:
        return None
    format, why = found
    if kind not in kinds_of(format):
        return None
    command = f"rlhf-kit convert {source} --from {format.name} --to {kind} --out FILE"
    reason = f"is of the format {format.name} ({why}); turn it into {kind}s first: {command}"
    return Problem(where, "", reason, "foreign-format")


def _first_rows(source: str) -> tuple[list[dict[str, Any]], str, list[Problem]]:
    """Those of the first rows that can be read, where the first of them stands, and what is wrong with the others."""
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    where = ""
    for index, row in enumerate(iter_rows(source)):
        if index >= _LOOKED_AT and rows:
            break
        if isinstance(row.value, dict):
            where = where or row.where
            rows.append(row.value)
        elif isinstance(row.value, Problem) and len(problems) < _LOOKED_AT:
            problems.append(row.value)
    return rows, where, problems


def _recognised(rows: list[dict[str, Any]]) -> tuple[Format, str] | None:
    """The first format that most of the rows look like, and why."""
    for format in FORMATS:
        reasons = [reason for row in rows if (reason := format.recognise(row))]
        if len(reasons) * 2 > len(rows):
            return format, reasons[0]
    return None


def guess_kind(source: str) -> str:
    """The kind of a source's rows; raises `DataError` where they look like none."""
    return guess(source).kind


def _fruitful_kind(format: Format, rows: list[dict[str, Any]]) -> str:
    """The kind that most of the rows say something about, be it wrong: a file of a format may hold its questions alone.

    Labels count before prompts, which every row has: in a project's export some tasks are skipped or not labelled yet.
    A user's own converter gives the same rows whatever they are to become: there it is the kind of most of them.
    """
    tell = _tellings if format in FORMATS else _clean_rows
    counts = {kind: tell(format, kind, rows) for kind in kinds_of(format)}
    if format in FORMATS and any(count for kind, count in counts.items() if kind != "prompt"):
        counts.pop("prompt", None)
    return max(counts, key=lambda kind: counts[kind]) if any(counts.values()) else default_kind(format)


def _tellings(format: Format, kind: str, rows: list[dict[str, Any]]) -> int:
    """How many of the rows, or of the groups of rows that belong together, are more than left out."""
    groups: list[Any] = list(rows)
    if format.key is not None:
        keys = [format.key(row) for row in rows]
        names = [name for name in dict.fromkeys(keys) if name is not None]
        groups = [[row for row, key in zip(rows, keys, strict=True) if key == name] for name in names]
    convert = converter_to(format, kind)
    return sum(
        any(not isinstance(one, Unusable) or severity_of(one.code) == "error" for one in convert(group))
        for group in groups
    )


def _clean_rows(format: Format, kind: str, rows: list[dict[str, Any]]) -> int:
    """How many of the rows give a record of the kind; all where rows are joined, which say little one by one."""
    if format.key is not None:
        return len(rows)
    if kind not in kinds_of(format):
        return 0
    outcomes = map(converter_to(format, kind), rows)
    shaped = [[one for found in of_row for one in resolved(found)] for of_row in outcomes]
    return sum(any(not isinstance(one, Unusable) and _is_clean(one.row, kind) for one in found) for found in shaped)


def _is_clean(row: dict[str, Any], kind: str) -> bool:
    try:
        parse(row, kind)
    except DataError:
        return False
    return True


def _own_kind(rows: Iterable[dict[str, Any]]) -> str | None:
    kinds = [kind for row in rows if (kind := kind_of(row))]
    return max(dict.fromkeys(kinds), key=kinds.count) if kinds else None


def kind_of(row: dict[str, Any]) -> str | None:
    """The kind of a row in the kit's own shape or one of TRL's that are read as they are, by its fields alone."""
    if "ranks" in row or ("responses" in row and "prompt" in row):
        return "ranking"
    if "chosen" in row and "rejected" in row:
        return "ranking" if "prompt" in row or isinstance(row["chosen"], list) else None
    if "response" in row and "prompt" in row and row.keys() & {"score", "thumb"}:
        return "rating"
    if "completion" in row and "prompt" in row and "label" not in row:
        return "demonstration"
    if isinstance(messages := row.get("messages"), list) and "label" not in row:
        last = messages[-1] if messages else None
        return "prompt" if isinstance(last, dict) and last.get("role") == "user" else "demonstration"
    if "prompt" in row and not row.keys() - Prompt.model_fields.keys():
        return "prompt"
    return "text" if "text" in row and not row.keys() - {"text", "source", "weight", "id", "meta"} else None
