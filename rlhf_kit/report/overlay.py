"""The curves of several runs, one plot a figure, each run with a line of its own and its letter at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator

from rlhf_kit.report.curves import CURVES, SMOOTH_FROM, Curve, points_of, smooth, sources
from rlhf_kit.report.figures import end_labels, quiet_grid, style
from rlhf_kit.report.words import plain
from rlhf_kit.svg import MUTED, SETTINGS, Plot, as_svg, new_axes

__all__ = ["key", "overlaid"]

Log = Sequence[dict[str, Any]]


def overlaid(stage: str, logs: Sequence[tuple[str, Log]]) -> list[Plot]:
    """The curves of a stage that at least one of the runs has two points of; `logs` are letters and entries."""
    own = {curve.key: curve for _, log in logs for curve in sources(log)}
    own = {name: Curve(name, one.name, one.hint, id=f"source-{n}") for n, (name, one) in enumerate(own.items(), 1)}
    drawn = []
    for curve in (*CURVES[stage], *own.values()):
        found = [(letter, place, points_of(log, curve)) for place, (letter, log) in enumerate(logs)]
        found = [one for one in found if len(one[2]) > 1]
        still = all(len({value for _, value, _ in points}) == 1 for _, _, points in found)
        if found and not (curve.if_it_moves and still and len({points[0][1] for _, _, points in found}) == 1):
            drawn.append(Plot(curve.name, curve.hint, _draw(stage, curve, found)))
    return drawn


def _draw(stage: str, curve: Curve, found: list[tuple[str, int, list[tuple[float, float, float]]]]) -> Markup:
    unit = "update" if stage == "ppo" else "step"
    with rc_context(SETTINGS):
        figure, axes = new_axes(3.3, 1.9)
        quiet_grid(axes)
        if curve.level is not None:
            axes.axhline(curve.level, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        said: list[str] = []
        labels: dict[tuple[tuple[float, float, float], ...], list[str]] = {}
        for letter, place, points in found:
            steps, values = [p[0] for p in points], [p[1] for p in points]
            drawn = values if len(values) < SMOOTH_FROM else smooth(values)
            look = style(place)
            axes.plot(steps, drawn, color=look.colour, linestyle=look.line, linewidth=1.3)
            axes.plot(steps[-1:], drawn[-1:], look.marker, color=look.colour, markersize=3.2)
            # Runs that share a stage have one line; both letters stand at its end.
            labels.setdefault(tuple(points), []).append(letter)
            said.append(f"{letter} {plain(values[0])} to {plain(values[-1])}")
        axes.margins(x=0.02)
        if curve.share and min(p[1] for _, _, points in found for p in points) < 0.9:
            axes.set_ylim(0, 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel(unit, color=MUTED)
        end_labels(axes, [(" ".join(letters), points[-1][1]) for points, letters in labels.items()])
        return as_svg(figure, f"{stage}-{curve.id or curve.key}", f"{curve.name} by {unit}: {'; '.join(said)}.")


def key(names: Sequence[tuple[str, str]]) -> list[tuple[str, str, Markup]]:
    """Letter, name and a piece of its line, for each run."""
    return [(letter, name, _sample(place, letter)) for place, (letter, name) in enumerate(names)]


def _sample(place: int, letter: str) -> Markup:
    look = style(place)
    with rc_context(SETTINGS):
        figure, axes = new_axes(0.6, 0.18)
        axes.set_axis_off()
        axes.plot([0, 1], [0, 0], color=look.colour, linestyle=look.line, linewidth=1.6)
        axes.plot([0.5], [0], look.marker, color=look.colour, markersize=4.5)
        return as_svg(figure, f"key-{letter}", f"The line of {letter}")
