"""The report's plots: small SVGs without scripts or fonts of their own, in the page's colours by day and by night."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator

from rlhf_kit.report.words import estimate, number, percent, plain, rule_words
from rlhf_kit.svg import ACCENT, INK, MUTED, SETTINGS, Plot, as_svg, lines_behind, new_axes

__all__ = ["CURVES", "SMOOTH_FROM", "Curve", "accuracy_plot", "plots", "points_of", "smooth", "sources"]

_SIZE = (3.3, 1.9)
_MOST_POINTS = 400
SMOOTH_FROM = 60
"""Points from which a curve is drawn as a moving average."""
_SOURCE = "rewards/"


@dataclass(frozen=True)
class Curve:
    """What to draw of a stage's log: one figure over the steps.

    Attributes:
        key: name in metrics.jsonl.
        name: heading of the plot.
        hint: what to look for, in words.
        spread: name of the standard deviation that is drawn as a band around the line.
        share: a figure between 0 and 1, drawn on that scale where it uses most of it.
        level: a value worth a line of its own.
        beside: name of a figure that is drawn as a second, dashed line.
        if_it_moves: drawn only where it is not the same all the time.
        drawn: what else the drawing of one run shows, in words.
        id: of the drawing, where the name in the log cannot be one.
    """

    key: str
    name: str
    hint: str
    spread: str = ""
    share: bool = False
    level: float | None = None
    beside: str = ""
    if_it_moves: bool = False
    drawn: str = ""
    id: str = ""


_LOSS_HINT = "Should fall, then level out."
_NORM = Curve("grad_norm", "Gradient norm", "Spikes mean that the learning rate is too high.")
CURVES: dict[str, tuple[Curve, ...]] = {
    "sft": (
        Curve("loss", "Loss", f"Nats for one token of the demonstrations. {_LOSS_HINT}"),
        _NORM,
        Curve("learning_rate", "Learning rate", "As the schedule sets it."),
    ),
    "reward": (
        Curve("loss", "Loss", "Of the ranked pairs; a coin has 0.69.", level=math.log(2)),
        _NORM,
    ),
    "ppo": (
        Curve(
            "score",
            "Reward",
            "The score before penalties.",
            spread="score_std",
            drawn="The band is one standard deviation.",
        ),
        Curve("kl", "KL from SFT", "Nats a response. Should rise slowly and stay small."),
        Curve(
            "response_length", "Response length", "Tokens. A steady climb or fall is a taste, not always a good one."
        ),
        Curve("eos_rate", "Answers that end", "Share of the answers. Should stay high.", share=True),
        Curve("entropy", "Entropy", "Nats a token. A collapse means that the answers become all alike."),
        Curve(
            "explained_variance", "Explained variance", "Of the returns, by the value model. Above 0 it helps.", level=0
        ),
        Curve("clip_fraction", "Clip fraction", "Share of the tokens whose change was cut. Small is calm."),
        Curve("value_loss", "Value loss", "Should fall as the value model learns."),
        Curve("kl_coef", "KL coefficient", "As the controller sets it to hold the KL.", if_it_moves=True),
        Curve(
            "engine_mismatch",
            "Mismatch of the server",
            "Nats a token between the log-probabilities of sampling and of training. Rounding in bfloat16 is 0.05.",
        ),
        Curve("ptx_loss", "Loss on other text", "Nats a token of the text beside it. A rise is what was forgotten."),
        _NORM,
        Curve(
            "eval_score",
            "Held-out score",
            "Penalties included.",
            beside="eval_reference_score",
            drawn="Dashed: the reference's answers.",
        ),
        Curve("eval_win_rate", "Held-out win rate", "Share of the prompts, a tie is half.", share=True, level=0.5),
    ),
}


def plots(stage: str, entries: Sequence[dict[str, Any]]) -> list[Plot]:
    """The curves of a stage that its log has at least two points of."""
    drawn = []
    for curve in (*CURVES[stage], *sources(entries)):
        points = points_of(entries, curve)
        if len(points) > 1 and not (curve.if_it_moves and len({value for _, value, _ in points}) == 1):
            beside = points_of(entries, Curve(curve.beside, "", "")) if curve.beside else []
            drawn.append(Plot(curve.name, f"{curve.hint} {curve.drawn}".strip(), _draw(stage, curve, points, beside)))
    return drawn


def sources(entries: Sequence[dict[str, Any]]) -> list[Curve]:
    """What each reward source said, where there are several; the names are the user's."""
    names = list(dict.fromkeys(name for entry in entries for name in entry if name.startswith(_SOURCE)))
    hint = "What this source said, before its weight."
    if len(names) < 2:
        return []
    return [Curve(name, name.removeprefix(_SOURCE), hint, id=f"source-{n}") for n, name in enumerate(names, 1)]


def accuracy_plot(reward: dict[str, Any]) -> Plot | None:
    """The held-out accuracy of the reward model with its interval, beside the simple rules that it must beat."""
    accuracy = number(reward.get("heldout_pair_accuracy"))
    if accuracy is None or not math.isfinite(accuracy):
        return None
    rules = {rule_words(name): number(value) for name, value in (reward.get("baseline_accuracy") or {}).items()}
    rows = [("reward model", accuracy), *((name, value) for name, value in rules.items() if value is not None)]
    with rc_context(SETTINGS):
        figure, axes = new_axes(*_SIZE)
        for place, (name, value) in enumerate(rows):
            ours = place == 0
            axes.barh(place, value, height=0.34, color=ACCENT if ours else MUTED, alpha=1 if ours else 0.55)
            axes.vlines(0.5, place - 0.24, place + 0.24, color=INK, linewidth=0.8)
            axes.annotate(f"{name} {percent(value)}", (0, place - 0.27), color=INK, va="bottom")
        bounds = estimate(reward, "heldout_accuracy_by_prompt")
        if bounds is not None:
            axes.plot(bounds[1:], [0, 0], color=INK, linewidth=1.4, solid_capstyle="butt")
        axes.set(
            xlim=(0, 1),
            ylim=(len(rows) - 0.6, -0.95),
            yticks=[],
            xticks=[0, 0.5, 1],
            xticklabels=["0", "50 %", "100 %"],
        )
        axes.spines["left"].set_visible(False)
        words = (
            "Held-out pairs in the right order: " + "; ".join(f"{name} {percent(value)}" for name, value in rows) + "."
        )
        svg = as_svg(figure, "reward-accuracy", words)
    line = "; the line is its interval" if bounds else ""
    return Plot("Held-out accuracy", f"Pairs in the labelers' order{line}. Tick: a coin.", svg)


def points_of(entries: Sequence[dict[str, Any]], curve: Curve) -> list[tuple[float, float, float]]:
    """(step, value, spread) of each entry that has the figure, thinned to what a small plot can show."""
    found = []
    for entry in entries:
        step, value = number(entry.get("step")), number(entry.get(curve.key))
        if step is not None and value is not None and math.isfinite(value):
            spread = number(entry.get(curve.spread)) if curve.spread else None
            found.append((step, value, spread if spread is not None and math.isfinite(spread) else 0.0))
    if len(found) <= _MOST_POINTS:
        return found
    pieces = np.array_split(np.asarray(found), _MOST_POINTS)
    return [(float(p[-1, 0]), float(p[:, 1].mean()), float(p[:, 2].mean())) for p in pieces]


def _draw(
    stage: str,
    curve: Curve,
    points: list[tuple[float, float, float]],
    beside: Sequence[tuple[float, float, float]] = (),
) -> Markup:
    steps, values, spreads = np.asarray(points, dtype=np.float64).T
    with rc_context(SETTINGS):
        figure, axes = new_axes(*_SIZE)
        lines_behind(axes)
        if spreads.any():
            axes.fill_between(steps, values - spreads, values + spreads, color=ACCENT, alpha=0.14, linewidth=0)
        if curve.level is not None:
            axes.axhline(curve.level, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        if beside:
            axes.plot([p[0] for p in beside], [p[1] for p in beside], color=MUTED, linewidth=1.1, linestyle=(0, (3, 3)))
        if len(values) < SMOOTH_FROM:
            axes.plot(steps, values, color=ACCENT, linewidth=1.4)
        else:
            axes.plot(steps, values, color=ACCENT, linewidth=0.7, alpha=0.35)
            axes.plot(steps, smooth(values), color=ACCENT, linewidth=1.5)
        axes.plot(steps[-1:], values[-1:], "o", color=ACCENT, markersize=3)
        if curve.share and values.min() < 0.9:
            axes.set_ylim(0, 1.03)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        unit = "update" if stage == "ppo" else "step"
        axes.set_xlabel(unit, color=MUTED)
        words = (
            f"{curve.name} by {unit}: {plain(values[0])} at {steps[0]:.0f}, {plain(values[-1])} at {steps[-1]:.0f}; "
            f"lowest {plain(values.min())}, highest {plain(values.max())}."
        )
        return as_svg(figure, f"{stage}-{curve.id or curve.key}", words)


def smooth(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """A centred moving average over a tenth of the curve; shorter at the ends, never shifted."""
    half = max(2, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(len(values))
    low, high = np.maximum(middle - half, 0), np.minimum(middle + half + 1, len(values))
    smooth: np.ndarray = (sums[high] - sums[low]) / (high - low)
    return smooth
