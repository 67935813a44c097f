"""What was said once, by the content it was said of: a JSON Lines file that is never asked for twice."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from rlhf_kit.errors import RlhfKitError
from rlhf_kit.outputs import json_line

__all__ = ["Ledger", "key_of"]


def key_of(*content: Any) -> str:
    """The SHA-256 of what an entry is about, which JSON must have a form for."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Ledger:
    """Entries by key, each a line that is on the disk when `keep` returns.

    Several threads and processes may share one file. The first entry of a key counts, for all of them, so that they
    come to the same results. A last line that a killed process left half-written is no entry; the next one takes its
    place. Other lines that cannot be read, or are not sound, are passed over.

    Args:
        sound: whether an entry is one; somebody may have edited the file.

    Raises:
        RlhfKitError: the file cannot be read or written.
    """

    def __init__(self, path: Path, sound: Callable[[dict[str, Any]], bool]) -> None:
        self.path, self._sound = path, sound
        self._entries: dict[str, dict[str, Any]] = {}
        self._end = 0  # of the last whole line that was read, in bytes
        self._threads = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failed(error) from None
        self._processes = FileLock(f"{path}.lock")
        self.refresh()

    def get(self, key: str) -> dict[str, Any] | None:
        """The entry of that key as far as the file was read."""
        return self._entries.get(key)

    def refresh(self) -> None:
        """Reads what others have added since."""
        with self._threads:
            self._read()

    def keep(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds the entries whose keys have none yet."""
        try:
            with self._threads, self._processes:
                self._read()
                lines = [json_line({"key": k, **entry}) for k, entry in entries.items() if k not in self._entries]
                if lines:
                    with self.path.open("ab") as stream:
                        stream.truncate(self._end)  # half a line, if there is one, and nobody is writing it now
                        stream.write(b"".join(lines))
                        stream.flush()
                        os.fsync(stream.fileno())
                    self._read()
        except OSError as error:
            raise self._failed(error) from None

    def _read(self) -> None:
        try:
            with self.path.open("rb") as stream:
                if stream.seek(0, os.SEEK_END) < self._end:  # somebody has begun it anew
                    self._end = 0
                stream.seek(self._end)
                added = stream.read()
        except FileNotFoundError:
            self._end = 0
            return
        except OSError as error:
            raise self._failed(error) from None
        whole = added[: added.rfind(b"\n") + 1]
        self._end += len(whole)
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("key"), str) and self._sound(entry):
                self._entries.setdefault(entry["key"], entry)

    def _failed(self, error: OSError) -> RlhfKitError:
        return RlhfKitError(f"{self.path}: cannot be read or written: {error.strerror or error}")
