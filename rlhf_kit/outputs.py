"""Files of rows that appear whole or not at all."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from .errors import DataError, Problem
from .records import Record
from .row import Row
from .rows import Source

__all__ = ["Files", "RowWriter", "check_outputs", "json_line", "row_of"]


def check_outputs(sources: Iterable[str], outputs: Iterable[Path]) -> None:
    """Raises `DataError` where an output is no file, stands twice, or is among what is read."""
    read, seen, problems = {Path(source).resolve() for source in sources}, set(), []
    for path in outputs:
        place = path.resolve()
        if reason := _no_file(path):
            problems.append(Problem(str(path), "", reason))
        elif place in read:
            problems.append(Problem(str(path), "", "is read from; write to another file"))
        elif place in seen:
            problems.append(Problem(str(path), "", "would be written twice; give each file its own name"))
        seen.add(place)
    if problems:
        raise DataError(problems)


def _no_file(path: Path) -> str:
    """Why nothing can be written there; empty where it is a file, or nothing yet."""
    if path.is_dir():
        return "is a directory; name a file"
    # Whoever may would put a file in the place of /dev/null: what is written is renamed when it is whole.
    return "is a device or a pipe; name a file" if path.exists() and not path.is_file() else ""


def row_of(record: Record) -> dict[str, Any]:
    """The record as a row of its file: fields that say nothing left out, the prompt a text or messages as it was."""
    return record.model_dump(exclude_defaults=True)


def json_line(value: Any) -> bytes:
    """One line of JSON; what JSON has no form for (dates, bytes, NaN from tables) as text or null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        text = json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False, default=_plain)
    try:
        return text.encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can hold
        return json.dumps(_without_nan(value), default=_plain).encode("ascii") + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode("ascii")
    return str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Files:
    """Files that are written under temporary names beside their places, and renamed together at the end.

    With an exception nothing is left and nothing changed. Names that end in .gz are gzipped, always to the same bytes.

    Raises:
        DataError: a file cannot be written.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        self._streams: dict[Path, IO[bytes]] = {}
        self._raw: list[IO[bytes]] = []

    def __enter__(self) -> Files:
        if problems := [Problem(str(path), "", reason) for path in self._paths if (reason := _no_file(path))]:
            raise DataError(problems)
        try:
            for path in self._paths:
                self._open(path)
        except OSError as error:
            self._tidy()
            raise self._refusal(error) from None
        return self

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = _scratch(path).open("wb")
        self._raw.append(raw)
        zipped = path.name.endswith(".gz")
        self._streams[path] = cast("IO[bytes]", gzip.GzipFile("", "wb", fileobj=raw, mtime=0)) if zipped else raw

    def _tidy(self) -> None:
        for raw in self._raw:
            raw.close()
        for path in self._paths:
            with contextlib.suppress(OSError):  # where it could not even be opened
                _scratch(path).unlink(missing_ok=True)

    def stream(self, path: Path) -> IO[bytes]:
        """What is written to it stands in the file at the end."""
        return self._streams[path]

    def write(self, path: Path, line: bytes) -> None:
        """Adds a line to one of the files."""
        self._streams[path].write(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as late:
            raise self._refusal(late) from None
        finally:
            self._tidy()
        if isinstance(error, OSError):
            raise self._refusal(error) from None

    def _refusal(self, error: OSError) -> DataError:
        """By the names that were asked for, not the temporary ones."""
        asked = {str(_scratch(path)): str(path) for path in self._paths}
        name = str(error.filename or "the output")
        return DataError([Problem(asked.get(name, name), "", f"cannot be written: {error.strerror or error}")])

    def _finish(self) -> None:
        for stream, raw in zip(self._streams.values(), self._raw, strict=True):
            if stream is not raw:
                stream.close()
            raw.flush()
            os.fsync(raw.fileno())
            raw.close()
        for path in self._paths:
            _scratch(path).replace(path)


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


class RowWriter:
    """Writes rows as their source has them, byte for byte: lines, elements of an array, CSV rows, paragraphs.

    CSV keeps its header. Rows of tables, which are no bytes, are written as JSON Lines.
    """

    def __init__(self, stream: IO[bytes], source: Source) -> None:
        self._stream, self._container = stream, source.container
        self.count = 0
        if source.container == "csv":
            stream.write(source.header)
        elif source.container == "array":
            stream.write(b"[\n")

    def write(self, row: Row) -> None:
        """Writes one row."""
        if row.raw is None:
            self._stream.write(json_line(row.value) if isinstance(row.value, dict) else b"")
        elif self._container == "array":
            self._stream.write((b",\n" if self.count else b"") + row.raw)
        else:
            if self._container == "paragraphs" and self.count:
                self._stream.write(b"\n")
            self._stream.write(row.raw if row.raw.endswith(b"\n") else row.raw + b"\n")
        self.count += 1

    def close(self) -> None:
        """Writes what ends the file."""
        if self._container == "array":
            self._stream.write(b"\n]\n" if self.count else b"]\n")
