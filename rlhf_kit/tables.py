"""The rows of tables: CSV, Parquet, saved `datasets` directories, Hub datasets."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import Problem
from .json_rows import Fault, fault_in, strict
from .row import Row, Unreadable

__all__ = ["csv_rows", "open_table", "parquet"]

# ---- CSV ----

_NOT_TEXT = {"conversations", "conversation", "flags", "meta", "messages", "overall", "rank", "ranks", "responses"} | {
    "margin",
    "scale",
    "score",
    "thumb",
    "weight",
}
"""Columns of the kit's own records whose cells are JSON in a CSV file, where everything is text."""

_LARGEST_CELL = 1 << 27


def csv_rows(name: str, stream: IO[bytes], delimiter: str) -> tuple[bytes, Iterator[Row]]:
    """The header's own bytes, and the rows: a cell a column, empty cells left out.

    Cells of columns that hold no text in the kit's records (`responses`, `messages`, `score`, …) are read as JSON.
    """
    lines = _Lines(stream)
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise Unreadable("damaged-table", f"its first line is no CSV header: {error}") from None
    if not header:
        return b"", iter(())
    if not all(map(_is_utf8, header)):
        raise Unreadable("not-utf-8", "its first line is not UTF-8; save the file in that encoding")
    if not all(column.strip() for column in header) or len(set(header)) < len(header):
        raise Unreadable("damaged-table", "its first line must name each column, and each once")
    return lines.taken(), _csv_body(f"{name}#", reader, header, lines)


def _csv_body(place: str, reader: Iterator[list[str]], header: list[str], lines: _Lines) -> Iterator[Row]:
    number = 0
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            where = f"{place}{number}"
            reason = f"is no CSV from here on: {error}; nothing behind it was read"
            yield Row(place, number, lines.taken() + lines.rest(), Problem(where, "", reason, "damaged-table"))
            return
        if cells is None:
            return
        raw = lines.taken()
        if not cells:  # a blank line is no row
            continue
        yield Row(place, number, raw, _cells(cells, header, f"{place}{number}"))
        number += 1


def _cells(cells: list[str], header: list[str], where: str) -> dict[str, Any] | Problem:
    if len(cells) != len(header):
        return Problem(where, "", f"has {len(cells)} cells, the header {len(header)}", "damaged-table")
    if not all(map(_is_utf8, cells)):
        return Problem(where, "", "not UTF-8; save the file in that encoding", "not-utf-8")
    row = {column: cell for column, cell in zip(header, cells, strict=True) if cell != ""}
    for column in [name for name in row if name in _NOT_TEXT]:
        try:
            row[column] = strict(row[column])
        except json.JSONDecodeError:
            pass  # found to be of the wrong type later, with its field's name
        except Fault as error:
            return Problem(where, column, str(error), error.code)
    return row


def _is_utf8(cell: str) -> bool:
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:  # a byte that `_Lines` let pass
        return False
    return True


class _Lines:
    """The lines of a stream as text, remembering the bytes of those that were taken since it was last asked."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._taken: list[bytes] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._stream)
        self._taken.append(line)
        return line.decode("utf-8", "surrogateescape")

    def taken(self) -> bytes:
        raw = b"".join(self._taken)
        self._taken.clear()
        return raw

    def rest(self) -> bytes:
        return self._stream.read()


# ---- Parquet and datasets ----


def open_table(source: str) -> Iterator[Row]:
    """The rows of a saved `datasets` directory or a Hub dataset, with `:split` behind its name or without."""
    name, colon, split = source.rpartition(":")
    if Path(source).is_dir():
        return _saved(source, Path(source), "")
    if colon and Path(name).is_dir():
        return _saved(source, Path(name), split)
    if _is_hub_id(name if colon else source):
        return _hub(source, name if colon else source, split if colon else "")
    raise Unreadable("no-file", "no such file")


def parquet(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, read in batches."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from _table(str(path), batch.to_pylist(), number)
                number += batch.num_rows
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: a text in it is not UTF-8
        where = f"{path}#{number}" if number else str(path)
        reason = f"is no Parquet file that can be read: {_first_line(error)}"
        yield Row(where, -1, None, Problem(where, "", reason, "damaged-table"))


def _saved(source: str, folder: Path, split: str) -> Iterator[Row]:
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except FileNotFoundError:
        reason = "is a directory, but none that datasets.save_to_disk wrote; name the file in it"
        raise Unreadable("unknown-container", reason) from None
    except ValueError as error:
        raise Unreadable("damaged-table", f"cannot be read: {_first_line(error)}") from None
    if isinstance(found, datasets.DatasetDict):
        name = split or (next(iter(found)) if len(found) == 1 else "train")
        if name not in found:
            raise Unreadable("no-file", f"has no split '{name}'; add one of :{', :'.join(found)}")
        found = found[name]
    elif split:
        raise Unreadable("no-file", "has no splits; leave out what stands after the colon")
    return _table(source, found)


def _hub(source: str, name: str, split: str) -> Iterator[Row]:
    import datasets

    try:
        found = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = f"is no file here, and no dataset that the Hub gives: {_first_line(error)}"
        raise Unreadable("no-file", reason) from None
    return _table(source, found)


def _table(source: str, rows: Iterable[dict[str, Any]], start: int = 0) -> Iterator[Row]:
    place = f"{source}#"
    for number, row in enumerate(rows, start):
        # A table has every column in every row: null says that there is none. What is in `meta` is left alone.
        value = {k: v if k == "meta" else _pruned(v) for k, v in row.items() if v is not None}
        yield Row(place, number, None, fault_in(value, f"{place}{number}") or value)


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _pruned(v) for k, v in value.items() if v is not None}
    return [_pruned(item) for item in value] if isinstance(value, list) else value


def _is_hub_id(name: str) -> bool:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return False
    no_names = {".jsonl", ".json", ".gz", ".parquet", ".csv", ".tsv", ".txt", ".arrow", ".zip"}
    return Path(name).suffix.lower() not in no_names


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
