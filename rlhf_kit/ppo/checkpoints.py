"""Checkpoints of PPO: written beside the others and renamed when whole, so that none is ever half there."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_kit import launch
from rlhf_kit.checkpoint import by_step, is_whole, read_json, seal, write_json
from rlhf_kit.errors import CheckpointError
from rlhf_kit.process import line_for

log = logging.getLogger(__name__)

STATE = "ppo_state.json"
AVERAGE = "ema_state.safetensors"
_STAGING = "_saving"  # a name that transformers' uploads leave out
_OLDER = "older"


@contextlib.contextmanager
def staged(folder: Path, name: str) -> Iterator[Path]:
    """A directory to write the checkpoint `name` into; it becomes `folder/name` by one rename once it is whole. Of
    several processes all write into it, and the main one does the rest.

    Raises:
        CheckpointError: it could not be written; nothing is left of it, and what was there before still is.
    """
    staging = folder / _STAGING
    try:
        if launch.is_main():
            tidy(folder)
            staging.mkdir(parents=True)
        launch.wait()
        yield staging
        launch.wait()
        if launch.is_main():
            _give_name(staging, folder, name)
        launch.wait()
    except Exception as failure:
        # The tokenizer's library raises a plain Exception, torch a RuntimeError, where the disk is full.
        line = line_for(failure)
        if not isinstance(failure, (OSError, SafetensorError)) and line is None:
            raise
        reason = "disk full" if (line or "").startswith("disk full") else str(failure).splitlines()[0]
        raise CheckpointError(
            f"{folder / name}: could not be written ({reason}); the checkpoints before it are kept. Make room, and "
            "the same command goes on from the last one"
        ) from failure
    finally:
        if launch.is_main():
            tidy(folder)


def _give_name(staging: Path, folder: Path, name: str) -> None:
    seal(staging / name)
    for path in (staging / name, *(path for path in (staging / name).rglob("*") if path.is_dir())):
        _flush(path)
    if (folder / name).exists():  # of the same update
        (staging / _OLDER).mkdir()
        (folder / name).rename(staging / _OLDER / name)
    (staging / name).rename(folder / name)
    _flush(folder)


def tidy(folder: Path) -> None:
    """Removes what a process that was killed while it saved has left, and gives a checkpoint its name back that was
    about to be replaced by another of the same update."""
    for path in (folder / _STAGING / _OLDER).glob("checkpoint-*"):
        if not (folder / path.name).exists():
            path.rename(folder / path.name)
    shutil.rmtree(folder / _STAGING, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Makes a rename last, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def keep_last(folder: Path, limit: int | None, newest: Path, best: str | None = None) -> None:
    """Removes all but the last checkpoints.

    Args:
        newest: the one that was just written. Those of later updates are of a run that went on from one before them,
            or damaged, and go first.
        best: one that is kept in any case, as transformers does.
    """
    if not launch.is_main():
        return
    paths = by_step(folder)
    after = paths.index(newest) + 1
    order = paths[after:] + paths[:after]
    if best is not None and Path(best) in order[:-1]:
        order.remove(Path(best))
        order.insert(-1, Path(best))
    removed = folder / _STAGING / "removed"  # so that a kill leaves none half there under its name
    for path in order[: -limit if limit else 0]:
        if str(path) != best:
            removed.mkdir(parents=True, exist_ok=True)
            path.rename(removed / path.name)
    tidy(folder)


def start_of(folder: Path, wished: str | Path | bool | None) -> str | None:
    """The checkpoint that training goes on from, the same on all processes; None begins anew.

    Args:
        folder: where the run keeps its checkpoints; what a killed save has left in it goes.
        wished: True is the newest whole one, if there is one.

    Raises:
        CheckpointError: one was named that is not whole.
    """
    found: str | Path | None = None
    if launch.is_main():
        tidy(folder)
        found = last_whole(folder) if wished is True else wished or None
        if found is not None and wished is not True and not is_whole(Path(found), sealed=True):
            raise CheckpointError(f"{found}: missing, damaged or incomplete; go on from the one before it")
    found = launch.agreed(found)
    return None if found is None else str(found)


def last_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint of a folder; a damaged one is passed over, and the log says so."""
    damaged = []
    for path in reversed(by_step(folder)):
        if is_whole(path, sealed=True):
            for one in damaged:
                log.warning("ppo: %s is damaged; %s is used instead", one, path.name)
            return path
        damaged.append(path)
    for one in damaged:
        log.warning("ppo: %s is damaged, and there is none before it; the run starts from its beginning", one)
    return None


def write_state(directory: Path, state: dict[str, Any], average: list[Tensor] | None = None) -> None:
    """What the Trainer does not know of: the KL coefficient, running moments, what is still to be logged, and the
    moving average in float32, whatever the weights are in. Of several processes the main one writes."""
    if not launch.is_main():
        return
    write_json(directory / STATE, state)
    if average is not None:
        save_file({str(n): tensor.cpu().contiguous() for n, tensor in enumerate(average)}, directory / AVERAGE)


def read_state(directory: Path) -> dict[str, Any]:
    """What `write_state` wrote, without the average.

    Raises:
        CheckpointError: it is not there.
    """
    found: dict[str, Any] = read_json(directory / STATE)
    return found


def read_average(directory: Path) -> list[Tensor]:
    """The average that `write_state` wrote.

    Raises:
        CheckpointError: it is not there, because the run was begun without `ema_decay`.
    """
    try:
        tensors = load_file(directory / AVERAGE)
    except (OSError, SafetensorError) as failure:
        raise CheckpointError(f"{directory / AVERAGE}: no moving average to go on with ({failure})") from failure
    return [tensors[str(n)] for n in range(len(tensors))]


class Termination:
    """SIGTERM as a wish: the update that runs is finished and saved, then the process ends. A second one ends it at
    once, as before. Outside the main thread nothing is changed, because Python hands signals to that one only."""

    def __init__(self) -> None:
        self.wished = False
        self._before: Any = None

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            # None where something that is not Python has set it; it could not be put back.
            self._before = signal.signal(signal.SIGTERM, self._handle) or signal.SIG_DFL
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.wished = True
        signal.signal(signal.SIGTERM, self._before)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
