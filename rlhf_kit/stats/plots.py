"""The plots of the page: small SVGs in the page's own colours, by day and by night, without scripts or fonts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..svg import ACCENT, INK, MUTED, SETTINGS, Plot, as_svg, lines_behind, new_axes
from .figures import Agreement, Category, Labeler, Lengths, Rankings
from .words import number, percent, share, shown, span

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["categories_plot", "labelers_plot", "length_plot", "sizes_plot"]

_WIDTH, _HEIGHT, _BAR = 3.3, 1.9, 0.3
_MOST = 14
_LONGEST = 34


def sizes_plot(rankings: Rankings) -> Plot:
    """How many rankings have K responses."""
    words = "; ".join(f"K = {k}: {number(count)} rankings" for k, count in rankings.sizes.items())
    low, high = min(rankings.sizes), max(rankings.sizes)
    bars = [(float(k), 0.7, count) for k, count in rankings.sizes.items()]
    svg = _bars("sizes", bars, words, "responses a ranking", (low - 1.4, high + 1.4))
    return Plot("Responses a ranking", "More make more pairs of the same prompt.", svg)


def length_plot(found: Lengths) -> Plot:
    """A histogram; the last bar stands for all that is longer, where it is open."""
    width = (found.bins[0].high or 1) - found.bins[0].low
    bars = [(one.low + width / 2, 0.9 * width, one.count) for one in found.bins]
    words = "; ".join(f"{span(one)}: {number(one.count)}" for one in found.bins)
    name = f"{found.what[0].upper()}{found.what[1:]} length"
    hint = f"Median {number(found.quantiles[50])}, longest {number(found.max)}."
    if found.bins[-1].high is None:
        hint += f" The last bar: from {number(found.bins[-1].low)}."
    slug = re.sub(r"\W+", "-", f"length-{found.what}-{found.unit}")
    return Plot(name, hint, _bars(slug, bars, f"{name} in {found.unit}. {words}", found.unit, None))


def categories_plot(categories: Sequence[Category]) -> Plot:
    """A bar for the share here, a tick for InstructGPT's."""
    rows = [
        (one.name, one.share or 0.0, percent(one.share), None, one.instructgpt)
        for one in sorted(categories, key=lambda one: -max(one.share or 0, one.instructgpt or 0))[:_MOST]
    ]
    words = "; ".join(f"{shown(name)} {label}, InstructGPT {percent(there)}" for name, _, label, _, there in rows)
    svg = _named_bars("categories", rows, f"Share of each category. {words}", None)
    return Plot("Categories", "Bars: here. Ticks: InstructGPT's prompts.", svg)


def labelers_plot(labelers: Sequence[Labeler], agreement: Agreement) -> Plot | None:
    """How often each labeler agrees with the others, with the interval, beside all together."""
    rows = [
        (one.name, one.agreement.value, percent(one.agreement.value), (one.agreement.low, one.agreement.high), None)
        for one in labelers
        if one.agreement.value is not None
    ][:_MOST]
    if not rows:
        return None
    words = "; ".join(f"{shown(one.name)} {share(one.agreement)}" for one in labelers[:_MOST])
    svg = _named_bars("labelers", rows, f"Agreement with the other labelers. {words}", agreement.pairs.value)
    hint = "Pairs ordered as another labeler did; ties left out. Dashes: all together. Lines: intervals."
    return Plot("Labelers", hint, svg)


def _bars(
    slug: str, bars: Sequence[tuple[float, float, int]], words: str, unit: str, limits: tuple[float, float] | None
) -> Markup:
    """Upright bars (place, width, height) over a scale of numbers."""
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator

    with rc_context(SETTINGS):
        figure, axes = new_axes(_WIDTH, _HEIGHT)
        lines_behind(axes)
        for place, width, height in bars:
            axes.bar(place, height, width=width, color=ACCENT)
        if limits:
            axes.set_xlim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: number(value))
        axes.set_xlabel(unit, color=MUTED)
        return as_svg(figure, slug, words)


_Row = tuple[str, float, str, tuple[float | None, float | None] | None, float | None]


def _named_bars(slug: str, rows: Sequence[_Row], words: str, line: float | None) -> Markup:
    """Lying bars (name, value, label, interval, tick), each under its name; a dashed line through all."""
    from matplotlib import rc_context

    with rc_context(SETTINGS):
        figure, axes = new_axes(_WIDTH, 0.3 + _BAR * len(rows))
        for place, (name, value, label, interval, tick) in enumerate(rows):
            axes.barh(place, value, height=0.3, color=ACCENT)
            axes.annotate(f"{shown(name, _LONGEST)} {label}", (0, place - 0.19), color=INK, va="bottom")
            if tick is not None:
                axes.vlines(tick, place - 0.17, place + 0.17, color=INK, linewidth=1.2)
            if interval is not None and interval[0] is not None and interval[1] is not None:
                axes.plot([interval[0], interval[1]], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")
        if line is not None:
            axes.axvline(line, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        most = 1.0 if line is not None else max([value for _, value, *_ in rows] + [row[4] or 0 for row in rows])
        axes.set(xlim=(0, most * 1.02 or 1), ylim=(len(rows) - 0.6, -0.85), yticks=[])
        axes.xaxis.set_major_formatter(lambda value, _: percent(value, 0))
        axes.locator_params(axis="x", nbins=4)
        axes.spines["left"].set_visible(False)
        return as_svg(figure, slug, words)
