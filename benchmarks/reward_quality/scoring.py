"""Which checkpoints of a run are scored, and where the scores are kept; the same for both trainers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .settings import Pair, checkpoints, read_pairs, write_json


def is_wanted(meta: dict[str, Any], only: list[str]) -> bool:
    """Whether a checkpoint is one of `only`: marks in seconds, or `epochs`; all are where nothing is named."""
    if not only:
        return True
    at = {float(name) for name in only if name != "epochs"}
    return bool(at.intersection(meta["marks"])) or ("epochs" in only and meta["epochs_done"] is not None)


def score_checkpoints(run: Path, only: list[str], scorer: Callable[[Path, list[Pair]], list[float]]) -> None:
    """Writes `scores/step-N.json` for each wanted checkpoint that has none.

    Args:
        scorer: a checkpoint and P pairs to 2 P scores, better and worse in turn.
    """
    pairs = read_pairs(run, "heldout")
    for checkpoint, meta in checkpoints(run):
        target = run / "scores" / f"{checkpoint.name}.json"
        if target.is_file() or not is_wanted(meta, only):
            continue
        started, wall = time.process_time(), time.perf_counter()
        scores = scorer(checkpoint, pairs)
        if len(scores) != 2 * len(pairs) or not all(map(math.isfinite, scores)):
            raise SystemExit(f"{checkpoint}: a score is missing or not finite")
        took = time.process_time() - started
        write_json(target, {**meta, "scores": scores, "evaluation_cpu_seconds": took})
        right = sum(b > w for b, w in zip(scores[::2], scores[1::2], strict=True)) / len(pairs)
        print(
            f"{checkpoint}: {right:.3f} of {len(pairs)} pairs, {took:.0f} CPU s, {time.perf_counter() - wall:.0f} s",
            flush=True,
        )
