"""Checkpoints of PPO: written beside the others and renamed when whole, so that none is ever half there."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError

from rlhf_kit.checkpoint import by_step, is_whole, read_json, seal, write_json
from rlhf_kit.errors import CheckpointError

STATE = "ppo_state.json"
_STAGING = ".saving"


@contextlib.contextmanager
def staged(folder: Path, name: str) -> Iterator[Path]:
    """A directory to write the checkpoint `name` into; it becomes `folder/name` by one rename once it is whole.

    Raises:
        CheckpointError: it could not be written; nothing is left of it, and what was there before still is.
    """
    staging = folder / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        yield staging
        seal(staging / name)
        target = folder / name
        if target.exists():  # of the same update
            target.rename(staging / "older")
        (staging / name).rename(target)
        _flush(folder)
    except (OSError, RuntimeError, SafetensorError) as failure:
        raise CheckpointError(
            f"{folder / name}: could not be written ({failure}); the checkpoints before it are kept. Make room, and "
            "the same command goes on from the last one"
        ) from failure
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Makes a rename last, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def keep_last(folder: Path, limit: int | None) -> None:
    """Removes all but the last checkpoints."""
    for path in by_step(folder)[: -limit if limit else 0]:
        shutil.rmtree(path)


def refuse_damaged(directory: Path) -> None:
    """Stops a run that was told to go on from a checkpoint that is not whole.

    Raises:
        CheckpointError: it is not.
    """
    if not is_whole(directory):
        raise CheckpointError(f"{directory}: missing, damaged or incomplete; go on from the one before it")


def last_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint of a folder."""
    return next((path for path in reversed(by_step(folder)) if is_whole(path)), None)


def write_state(directory: Path, state: dict[str, Any]) -> None:
    """What is no weight: the KL coefficient, running moments."""
    write_json(directory / STATE, state)


def read_state(directory: Path) -> dict[str, Any]:
    """What `write_state` wrote."""
    found: dict[str, Any] = read_json(directory / STATE)
    return found


class Termination:
    """SIGTERM as a wish: the update that runs is finished and saved, then the process ends. A second one ends it at
    once, as before."""

    def __init__(self) -> None:
        self.wished = False
        self._before: Any = None

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.wished = True
        signal.signal(signal.SIGTERM, self._before)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
