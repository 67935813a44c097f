"""The learning curves of both trainers over CPU seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import Point, Runs, interval, over_seeds
from .settings import TRAINERS

COLOURS = {"kit": "#1b6ca8", "trl": "#c8553d"}
NAMES = {"kit": "rlhf_kit", "trl": "TRL RewardTrainer"}


def draw(runs: Runs, budget: float, baselines: Mapping[str, float], targets: Sequence[Path]) -> None:
    """Accuracy and log loss on the held-out pairs: the mean over seeds, its interval over prompts, each seed thin.

    Rings are ends of epochs; a dotted line is the end of the budget, beyond which a trainer only ends its epoch.
    """
    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "quality"}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name in TRAINERS:
            _curve(left, name, [sides[name] for sides in runs.values()], "right")
            _curve(right, name, [sides[name] for sides in runs.values()], "log_loss")
        best = max(baselines.values())
        left.axhline(best, color="#888888", linewidth=0.8, linestyle="--")
        left.annotate("by length alone", (0, best), textcoords="offset points", xytext=(2, 3), color="#666666")
        right.axhline(float(np.log(2)), color="#888888", linewidth=0.8, linestyle="--")
        right.annotate("chance", (0, float(np.log(2))), textcoords="offset points", xytext=(2, 3), color="#666666")
        for axes, words in ((left, "held-out pair accuracy"), (right, "held-out log loss")):
            axes.set_xlabel("CPU seconds of training, one core")
            axes.set_ylabel(words)
            axes.axvline(budget, color="#888888", linewidth=0.8, linestyle=":")
            axes.set_xlim(0, 1.03 * max(p.cpu_seconds for sides in runs.values() for ps in sides.values() for p in ps))
        left.legend(frameon=False, loc="lower right")
        for target in targets:
            none: Any = {"Date": None} if target.suffix == ".svg" else {}
            figure.savefig(target, metadata=none, dpi=150)


def _curve(axes: Axes, name: str, seeds: Sequence[Sequence[Point]], what: str) -> None:
    colour = COLOURS[name]
    for points in seeds:
        times, values = [p.cpu_seconds for p in points], [interval(getattr(p, what)).value for p in points]
        if len(seeds) > 1:
            axes.plot(times, values, color=colour, linewidth=0.6, alpha=0.45)
        ends = [i for i, point in enumerate(points) if point.epochs_done]
        axes.plot(
            [times[i] for i in ends], [values[i] for i in ends], "o", color=colour, fillstyle="none", markersize=5
        )
    marks = sorted(set.intersection(*({mark for p in points for mark in p.marks} for points in seeds)))
    at = [[next(p for p in points if mark in p.marks) for points in seeds] for mark in marks]
    means = [interval(over_seeds([getattr(p, what) for p in points])) for points in at]
    times = [sum(p.cpu_seconds for p in points) / len(points) for points in at]
    axes.plot(times, [mean.value for mean in means], color=colour, linewidth=1.8, label=NAMES[name])
    axes.fill_between(
        times, [mean.low for mean in means], [mean.high for mean in means], color=colour, alpha=0.12, linewidth=0
    )
