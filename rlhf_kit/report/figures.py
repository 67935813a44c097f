"""Figures of figures with intervals: win rates by policy, rows of points, several curves in one plot."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator

from rlhf_kit.report.evaluation import Span, ends
from rlhf_kit.report.words import percent
from rlhf_kit.svg import ACCENT, INK, MUTED, SETTINGS, as_svg, lines_behind, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "LETTERS",
    "Points",
    "Style",
    "end_labels",
    "interval_rows",
    "quiet_grid",
    "style",
    "win_rate_figure",
]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WIDTH, _ROW = 3.3, 0.3
_DASHES = (0, (3, 3))
_LINES: tuple[Any, ...] = ("solid", (0, (4, 1.6)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (2, 3)))
_COLOURS = (ACCENT, INK, MUTED)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LONGEST = 11


@dataclass(frozen=True)
class Style:
    """How one of several things is drawn; no two of the first fifteen differ in colour alone."""

    colour: str
    line: Any
    marker: str


@dataclass(frozen=True)
class Points:
    """One series of a win-rate figure: a judge's, or a run's.

    Attributes:
        spans: one a policy; None where nothing is known of it.
        place: of its style.
    """

    name: str
    spans: Sequence[Span | None]
    place: int


def style(place: int) -> Style:
    """The style of the series at that place."""
    return Style(_COLOURS[place % len(_COLOURS)], _LINES[place % len(_LINES)], _MARKERS[place % len(_MARKERS)])


def win_rate_figure(slug: str, policies: Sequence[str], series: Sequence[Points], against: str) -> Markup:
    """Win rates against one policy, in the manner of figure 1 of InstructGPT (Ouyang et al. 2022).

    Args:
        slug: of the drawing's ids.
        policies: the names below the axis, `against` among them; its own place is a hollow mark at a half.
        series: one a judge or a run, drawn beside each other above each name.
        against: the policy that all are held against.
    """
    said = "; ".join(
        f"{one.name}: "
        + ", ".join(
            f"{name} {percent(found.value)}" + (f" ({ends(found, percent)})" if ends(found, percent) else "")
            for name, found in zip(policies, one.spans, strict=True)
            if found is not None and name != against
        )
        for one in series
    )
    with rc_context({**SETTINGS, "font.size": 9}):
        figure, axes = new_axes(4.0, 2.7 + 0.17 * (len(series) if len(series) > 1 else 0))
        axes.axhline(0.5, color=MUTED, linewidth=0.9, linestyle=_DASHES, zorder=1)
        apart = min(0.34, 0.72 / max(1, len(series)))
        with_values = len(series) <= 2 and len(policies) <= 5
        for place, one in enumerate(series):
            shift = (place - (len(series) - 1) / 2) * apart
            spots = [(x + shift, found) for x, found in enumerate(one.spans)]
            known = [(x, found) for x, found in spots if found is not None and policies[round(x - shift)] != against]
            _points(axes, known, style(one.place), one.name, with_values)
        if against in policies:
            axes.plot([policies.index(against)], [0.5], "o", color=MUTED, markersize=6, fillstyle="none", zorder=3)
        names = [textwrap.fill(name, _LONGEST, max_lines=3, placeholder="…") for name in policies]
        axes.set(xlim=(-0.6, len(policies) - 0.4), ylim=(0, 1.04), xticks=range(len(policies)), xticklabels=names)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.tick_params(axis="x", length=0, labelcolor=INK)
        axes.yaxis.set_major_formatter(lambda value, _: percent(value))
        axes.set_ylabel(f"win rate against {against}", color=MUTED)
        if len(series) > 1:
            figure.legend(loc="outside upper left", frameon=False, labelcolor=INK, handlelength=1.5, ncols=1)
        return as_svg(figure, slug, f"Win rate against {against}. {said}.")


def _points(axes: Axes, known: Sequence[tuple[float, Span]], look: Style, name: str, with_values: bool) -> None:
    """Points with bars; the figure stands above the bar."""
    for x, found in known:
        if found.low is not None and found.high is not None:
            axes.plot(
                [x, x], [found.low, found.high], color=look.colour, linewidth=1.5, solid_capstyle="butt", zorder=2
            )
        if with_values:
            top = found.high if found.high is not None else found.value
            offset: Any = {"xytext": (0, 3), "textcoords": "offset points"}
            axes.annotate(f"{100 * found.value:.0f}", (x, top), ha="center", fontsize=8.5, color=INK, **offset)
    values = [found.value for _, found in known]
    axes.plot([x for x, _ in known], values, look.marker, color=look.colour, markersize=6, zorder=4, label=name)


def interval_rows(
    slug: str,
    rows: Sequence[tuple[str, Span]],
    words: str,
    *,
    at: float | None = None,
    write: Callable[[Any], str] = percent,
    limits: tuple[float, float] | None = None,
) -> Markup:
    """A point with its interval under each name; dashes at `at`, grey where the interval includes it."""
    said = "; ".join(
        f"{name} {write(found.value)}" + (f" ({ends(found, write)})" if ends(found, write) else "")
        for name, found in rows
    )
    edges = [edge for _, one in rows for edge in (one.value, one.low, one.high) if edge is not None]
    edges += [] if at is None else [at]
    low, high = limits or (min(edges), max(edges))
    spread = (high - low) or abs(high) or 1.0
    with rc_context(SETTINGS):
        figure, axes = new_axes(_WIDTH, 0.35 + _ROW * len(rows))
        left, right = (low, high) if limits else (low - 0.06 * spread, high + 0.06 * spread)
        for place, (name, found) in enumerate(rows):
            if at is not None:  # a short line in each row, so that none goes through the names
                axes.plot([at, at], [place - 0.17, place + 0.17], color=INK, linewidth=1, linestyle=(0, (2.5, 1.5)))
            colour = ACCENT if at is None or found.excludes(at) else MUTED
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([found.value], [place], "o", color=colour, markersize=4.5)
            told = axes.annotate(f"{name} {write(found.value)}", (left, place - 0.22), color=INK, va="bottom")
            told.set_in_layout(False)  # a long name would make the axes narrow
        axes.set(xlim=(left, right), ylim=(len(rows) - 0.5, -0.95), yticks=[])
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(lambda value, _: write(value))
        axes.spines["left"].set_visible(False)
        return as_svg(figure, slug, f"{words}. {said}.")


def end_labels(axes: Axes, labels: Sequence[tuple[str, float]]) -> None:
    """A letter at the right edge for each line's last value, moved apart where they would overlap."""
    if not labels:
        return
    low, high = axes.get_ylim()
    spread = (high - low) or 1.0
    gap = min(0.11, 1 / len(labels))
    ordered = sorted(((value - low) / spread, text) for text, value in labels if math.isfinite(value))
    places: list[float] = []
    for wanted, _ in ordered:
        places.append(max(wanted, places[-1] + gap) if places else wanted)
    over = max(0.0, places[-1] - 1.0) if places else 0.0
    for (_, text), place in zip(ordered, places, strict=True):
        spot = (1.015, place - over)
        axes.annotate(text, spot, xycoords="axes fraction", color=INK, va="center", fontweight="bold")


def quiet_grid(axes: Axes) -> None:
    """Thin lines behind the curves, and few ticks."""
    lines_behind(axes)
    axes.yaxis.set_major_locator(MaxNLocator(4))
