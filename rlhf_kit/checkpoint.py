"""Run directories: what a stage leaves on disk, written so that a half-made one is never mistaken for a whole one.

A stage works in `.NAME.partial` beside its run directory. When it is done the manifest is written last, and the
directory gets its
name by one rename. `inputs` in the manifest say what the stage depended on; the same inputs mean there is nothing to
do.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf_kit.errors import CheckpointError
from rlhf_kit.files import sha256_of
from rlhf_kit.process import line_for
from rlhf_kit.recipe import Recipe

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
INPUTS = "inputs.json"
LAUNCH = "launch.json"
"""In a work directory: on how many processes and how its stage was begun."""
METRICS = "metrics.jsonl"
CHECKSUMS = "checksums.json"
CHECKPOINTS = "checkpoints"
_WEIGHTS = (".safetensors", ".gguf")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_PACKAGES = ("rlhf_kit", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "deepspeed")


@dataclass(frozen=True)
class Manifest:
    """What stands in `manifest.json`.

    Attributes:
        stage: sft, reward or ppo.
        inputs: everything the result depends on: settings, hashes of data and of the parents' weights, seed.
        metrics: the stage's figures.
        seconds: wall time of the stage; of the last attempt, where it was interrupted.
        base: name, revision and hash of the weights that the adapter was trained on.
        parents: directory of each stage that this one started from, relative to the run.
        files: sha256 of each weight file in the directory.
    """

    stage: str
    inputs: dict[str, Any]
    metrics: dict[str, Any]
    seconds: float
    base: dict[str, Any]
    parents: dict[str, str]
    recipe: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    finished: str = ""


def versions() -> dict[str, str]:
    """Installed versions of what a result may depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all: to a temporary name, flushed to the disk, then renamed."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=2, ensure_ascii=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise CheckpointError(f"{path}: missing or damaged ({failure})") from failure


def read_manifest(run: Path) -> Manifest:
    """The manifest of a finished stage, its weight files checked against their hashes.

    Raises:
        CheckpointError: not a finished run directory, or a damaged one.
    """
    try:
        manifest = Manifest(**read_json(run / MANIFEST))
    except TypeError as failure:
        raise CheckpointError(f"{run / MANIFEST}: not a manifest of this kit ({failure})") from failure
    for name, expected in manifest.files.items():
        if not (run / name).is_file() or sha256_of(str(run / name)) != expected:
            raise CheckpointError(
                f"{run / name}: missing or changed since the stage finished; remove {run} to make it again"
            )
    return manifest


def work_directory(run: Path) -> Path:
    """Where a stage works before `run` exists."""
    return run.with_name(f".{run.name}.partial")


def recipe_of(manifest: Manifest, directory: Path) -> Recipe:
    """The recipe of a finished stage.

    Raises:
        CheckpointError: another version has written it.
    """
    try:
        return Recipe.model_validate(manifest.recipe)
    except ValidationError as failure:
        words = f"its recipe is not one of this version ({failure.error_count()} mistakes)"
        raise CheckpointError(f"{directory / MANIFEST}: {words}") from failure


def differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    """What differs between two trees of settings, one dotted line each."""
    if isinstance(before, dict) and isinstance(now, dict):
        lines = []
        for key in sorted({*before, *now}):
            lines += differences(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else key)
        return lines
    if before == now:
        return []
    return [f"{prefix}: {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:18] + "..." + text[-18:]


def open_work(run: Path, inputs: dict[str, Any]) -> Path:
    """The work directory of an interrupted stage with the same inputs, or a new and empty one.

    An interrupted run with other inputs that has a checkpoint is kept beside it as `.NAME.interrupted-N`: a mended
    reward function is another input, and nobody wants to lose hours for it.

    Raises:
        CheckpointError: nothing can be written there.
    """
    work = work_directory(run)
    if work.is_dir():
        try:
            if read_json(work / INPUTS) == inputs:
                return work
            what = "with other inputs"
        except CheckpointError:
            what = "without readable inputs"
        if checkpoints(work):
            aside = unused(run, f".{run.name}.interrupted")
            work.rename(aside)
            log.info("%s: an interrupted run %s is kept as %s", run.name, what, aside.name)
        else:
            log.info("%s: an interrupted run %s is thrown away", run.name, what)
            shutil.rmtree(work)
    try:
        work.mkdir(parents=True)
    except OSError as error:
        if line_for(error) is not None:  # a full disk, which has words of its own
            raise
        raise CheckpointError(f"{run}: cannot be written: {error.strerror or error}") from None
    write_json(work / INPUTS, inputs)
    return work


def clear_work(work: Path) -> None:
    """Empties a work directory but for what the stage depends on."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != INPUTS:
            path.unlink()


def seal(directory: Path) -> None:
    """Writes the hashes of all files of a checkpoint into it and flushes them to the disk; nothing may change after."""
    hashes = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        hashes[str(path.relative_to(directory))] = sha256_of(str(path))
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    write_json(directory / CHECKSUMS, hashes)


def is_whole(directory: Path, *, sealed: bool = False) -> bool:
    """Whether a checkpoint is all there: by its hashes where it is sealed, else by what the Trainer writes last.

    Args:
        sealed: one that is not sealed is not whole: of a stage that seals all of its checkpoints.
    """
    try:
        if not sealed and not (directory / CHECKSUMS).is_file():
            read_json(directory / "trainer_state.json")
            return True
        hashes = read_json(directory / CHECKSUMS)
    except CheckpointError:
        return False
    found = [(directory / n).is_file() and sha256_of(str(directory / n)) == h for n, h in hashes.items()]
    return bool(found) and all(found)


def last_checkpoint(work: Path) -> Path | None:
    """The newest whole checkpoint of an interrupted stage; one that was cut off while it was written does not count."""
    for path in reversed(checkpoints(work)):
        if not is_whole(path):
            log.warning("%s is damaged; the one before it is used", path)
            shutil.rmtree(path)
            continue
        return path
    return None


def unused(run: Path, name: str) -> Path:
    """`NAME-N` beside a run, or a file, with the first number that is free."""
    return next(path for n in range(1, 10_000) if not (path := run.with_name(f"{name}-{n}")).exists())


def finish(work: Path, run: Path, manifest: Manifest, keep_checkpoints: int = 0) -> None:
    """Turns a work directory into the run directory. An older run of that name is kept beside it as `NAME.previous-N`.

    The checkpoints go last: a stage that is killed in here goes on from them. Of the newest `keep_checkpoints` the
    adapters stay.
    """
    paths = sorted(path for path in work.rglob("*") if path.suffix in _WEIGHTS)
    weights = [path for path in paths if CHECKPOINTS not in path.relative_to(work).parts]
    files = {str(path.relative_to(work)): sha256_of(str(path)) for path in weights}
    finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(work / MANIFEST, {**asdict(manifest), "files": files, "versions": versions(), "finished": finished})
    if run.exists():
        aside = unused(run, f"{run.name}.previous")
        run.rename(aside)
        log.info("%s: the older result is kept as %s", run.name, aside.name)
    work.rename(run)
    _prune(run / CHECKPOINTS, keep_checkpoints)
    for name in (INPUTS, LAUNCH):
        (run / name).unlink(missing_ok=True)


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a stage by their steps, the oldest first."""
    return by_step(directory / CHECKPOINTS)


def by_step(folder: Path) -> list[Path]:
    """The checkpoints that the Trainer has left in a folder, the oldest first."""
    found = (path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal())
    return sorted(found, key=lambda path: int(path.name.rsplit("-", 1)[1]))


def _prune(directory: Path, keep: int) -> None:
    kept = checkpoints(directory.parent)[-keep:] if keep else []
    if not kept:
        shutil.rmtree(directory, ignore_errors=True)
        return
    for path in (p for p in directory.iterdir() if p not in kept):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    # PEFT saves an adapter that has a name in a folder of that name.
    for path in [file for checkpoint in kept for file in checkpoint.rglob("*") if file.name not in _ADAPTER]:
        if path.is_file():
            path.unlink()


class MetricsLog(TrainerCallback):  # type: ignore[misc]
    """Appends each of the Trainer's log entries to `metrics.jsonl` and prints it as one line for machines."""

    def __init__(self, stage: str, work: Path) -> None:
        self.stage = stage
        self.path = work / METRICS

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """When a stage goes on from a checkpoint, forgets what was logged after that checkpoint."""
        if state.is_world_process_zero and self.path.is_file():
            before = self.path.read_text(encoding="utf-8").splitlines() if state.global_step else []
            kept = [line for line in before if _step(line) <= state.global_step]
            scratch = self.path.with_name(f".{self.path.name}.tmp")  # a kill while it is written leaves what was there
            scratch.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            scratch.replace(self.path)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """One JSON line a log entry."""
        if not state.is_world_process_zero or logs is None or "train_runtime" in logs:
            return
        entry = {"step": state.global_step, **{k: v for k, v in logs.items() if k not in ("total_flos", "epoch")}}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        if not args.disable_tqdm:
            return  # the Trainer's own progress bar shows it
        figures = " ".join(
            f"{k}={float(v):.4g}" for k, v in entry.items() if isinstance(v, (int, float, str)) and k != "step"
        )
        print(f"{self.stage} step={state.global_step}/{state.max_steps} {figures}", file=sys.stderr, flush=True)


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # a line that was cut off when the stage was killed


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The entries of `metrics.jsonl`."""
    return [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]
