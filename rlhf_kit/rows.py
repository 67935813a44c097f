"""The rows of a data source, one by one, each with its place; a row that cannot be read is a problem with a place.

Only `\n` ends a line of JSON Lines. Rows of arrays and tables are counted from 0.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from .errors import Problem

__all__ = ["Row", "iter_rows"]


class Row(NamedTuple):
    """One row of a source, or why it cannot be read."""

    where: str
    """`path:12` is line 12 of a file, `path#12` the element or table row 12."""
    value: dict[str, Any] | Problem


class _Unreadable(Exception):
    """The source as a whole cannot be read; the message is the reason."""


def iter_rows(source: str) -> Iterator[Row]:
    """Reads `.jsonl`, `.json` (an array; both also gzipped), `.parquet`, a saved `datasets` directory, a Hub dataset.

    A directory or Hub id may end in `:split`; without it, the split is `train` where there are several. What makes the
    whole source unreadable comes as one row with a problem, so that a reader of all rows sees it.
    """
    try:
        yield from _rows(source)
    except _Unreadable as error:
        yield Row(source, Problem(source, "", str(error)))
    except OSError as error:
        yield Row(source, Problem(source, "", f"cannot be read: {error.strerror or error}"))


def _rows(source: str) -> Iterator[Row]:
    path = Path(source)
    if path.is_file():
        suffix = Path(path.name.lower().removesuffix(".gz")).suffix
        if suffix == ".jsonl":
            return _lines(path)
        if suffix == ".json":
            return _array(path)
        if suffix == ".parquet":
            return _parquet(path)
        raise _Unreadable(
            "is of no known kind; name it .jsonl, .jsonl.gz, .json, .json.gz or .parquet, as what it holds"
        )
    name, colon, split = source.rpartition(":")
    if path.is_dir():
        return _saved(source, path, "")
    if colon and Path(name).is_dir():
        return _saved(source, Path(name), split)
    if _is_hub_id(name if colon else source):
        return _hub(source, name if colon else source, split if colon else "")
    raise _Unreadable("no such file")


# ---- JSON ----


def _lines(path: Path) -> Iterator[Row]:
    number, begun = 0, False
    with _open(path) as stream:
        try:
            for number, raw in enumerate(stream, 1):
                if number == 1:
                    raw = _without_bom(raw)
                if not raw.strip():
                    continue
                if not begun and raw.lstrip().startswith(b"["):
                    raise _Unreadable("is a JSON array; name it .json, or write one object a line")
                begun = True
                where = f"{path}:{number}"
                yield Row(where, _object(raw, where))
        except (EOFError, zlib.error, gzip.BadGzipFile):
            where = f"{path}:{number + 1}"
            yield Row(
                where, Problem(where, "", "the gzip data are cut off or damaged from here on; fetch the file again")
            )


def _object(raw: bytes, where: str) -> dict[str, Any] | Problem:
    try:
        value = _STRICT.decode(raw.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        return Problem(where, "", f"not UTF-8 at byte {error.start + 1} of the line; save the file in that encoding")
    except json.JSONDecodeError as error:
        return Problem(where, "", f"broken JSON at column {error.colno}: {error.msg}")
    except (ValueError, RecursionError) as error:
        return Problem(where, "", _said(error))
    return _as_row(value, where)


def _array(path: Path) -> Iterator[Row]:
    try:
        with _open(path) as stream:
            data = _without_bom(stream.read())
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise _Unreadable("the gzip data are cut off or damaged; fetch the file again") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        where = f"{path}:{line}"
        yield Row(where, Problem(where, "", "not UTF-8; save the file in that encoding"))
        return
    try:
        yield from _elements(path, text)
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}"
        yield Row(
            where, Problem(where, "", f"broken JSON at column {error.colno}: {error.msg}; nothing after it was read")
        )
    except RecursionError as error:
        raise _Unreadable(_said(error)) from None


def _elements(path: Path, text: str) -> Iterator[Row]:
    """The elements of an array, one by one, so that what is wrong with one is told of that one."""
    place = _next(text, 0)
    if place == len(text):
        return
    if text[place] != "[":
        raise _Unreadable("must be a JSON array of objects; a file with one object a line is named .jsonl")
    place, number = _next(text, place + 1), 0
    while number or text[place : place + 1] != "]":
        where = f"{path}#{number}"
        value, end = _element(text, place, where)
        yield Row(where, value)
        place, number = _next(text, end), number + 1
        if text[place : place + 1] == "]":
            break
        if text[place : place + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
        place = _next(text, place + 1)
    if (end := _next(text, place + 1)) < len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _element(text: str, place: int, where: str) -> tuple[dict[str, Any] | Problem, int]:
    try:
        value, end = _STRICT.raw_decode(text, place)
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # the grammar is kept, so that reading can go on behind the element
        return Problem(where, "", _said(error)), _GRAMMAR.raw_decode(text, place)[1]
    return _as_row(value, where), end


def _as_row(value: object, where: str) -> dict[str, Any] | Problem:
    return value if isinstance(value, dict) else Problem(where, "", "must be an object with named fields")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(n for n in names if names.count(n) > 1)}' stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


_STRICT = json.JSONDecoder(object_pairs_hook=_no_twins, parse_constant=_no_constant)
_GRAMMAR = json.JSONDecoder(parse_int=str)
_SPACE = re.compile(r"[ \t\r\n]*")


def _next(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _said(error: Exception) -> str:
    return "nested too deeply to be a row" if isinstance(error, RecursionError) else str(error)


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    if zipped:
        return gzip.open(path, "rb")  # type: ignore[return-value, unused-ignore]  # a stream of bytes, whatever its class
    if path.name.lower().endswith(".gz"):
        raise _Unreadable("is no gzip file, though its name ends in .gz")
    return path.open("rb")


def _without_bom(data: bytes) -> bytes:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _Unreadable("is UTF-16; save it as UTF-8")
    return data.removeprefix(b"\xef\xbb\xbf")


# ---- tables ----


def _parquet(path: Path) -> Iterator[Row]:
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
        yield Row(where, Problem(where, "", f"is no Parquet file that can be read: {_first_line(error)}"))


def _saved(source: str, folder: Path, split: str) -> Iterator[Row]:
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except FileNotFoundError:
        raise _Unreadable("is a directory, but none that datasets.save_to_disk wrote; name the file in it") from None
    except ValueError as error:
        raise _Unreadable(f"cannot be read: {_first_line(error)}") from None
    if isinstance(found, datasets.DatasetDict):
        name = split or (next(iter(found)) if len(found) == 1 else "train")
        if name not in found:
            raise _Unreadable(f"has no split '{name}'; add one of :{', :'.join(found)}")
        found = found[name]
    elif split:
        raise _Unreadable("has no splits; leave out what stands after the colon")
    return _table(source, found)


def _hub(source: str, name: str, split: str) -> Iterator[Row]:
    import datasets

    try:
        found = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _Unreadable(f"is no file here, and no dataset that the Hub gives: {_first_line(error)}") from None
    return _table(source, found)


def _table(source: str, rows: Iterable[dict[str, Any]], start: int = 0) -> Iterator[Row]:
    for number, row in enumerate(rows, start):
        # A table has every column in every row: null says that there is none. What is in `meta` is left alone.
        yield Row(f"{source}#{number}", {k: v if k == "meta" else _pruned(v) for k, v in row.items() if v is not None})


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _pruned(v) for k, v in value.items() if v is not None}
    return [_pruned(item) for item in value] if isinstance(value, list) else value


def _is_hub_id(name: str) -> bool:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return False
    return Path(name).suffix.lower() not in {
        ".jsonl",
        ".json",
        ".gz",
        ".parquet",
        ".csv",
        ".tsv",
        ".txt",
        ".arrow",
        ".zip",
    }


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
