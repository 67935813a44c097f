"""Small SVG plots without scripts or fonts of their own, in their page's colours by day and by night."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ACCENT", "INK", "MUTED", "RULE", "SETTINGS", "Plot", "as_svg", "lines_behind", "new_axes"]

# Stand-ins that matplotlib can parse; the finished SVG gets the page's custom properties in their place.
ACCENT, MUTED, RULE, INK = "#a1b001", "#a1b002", "#a1b003", "#a1b004"
_COLOURS = {ACCENT: "var(--accent)", MUTED: "var(--muted)", RULE: "var(--rule)", INK: "var(--ink)"}
SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.size": 8,
    "text.parse_math": False,  # a name with dollars is no formula
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "axes.formatter.limits": (-3, 5),
}
"""matplotlib's settings for every plot, under `rc_context`."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A finished drawing with its heading."""

    name: str
    hint: str
    svg: Markup


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty plot; width and height in inches, at 72 points each."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.tick_params(length=2.5, width=0.8)
    return figure, axes


def lines_behind(axes: Axes) -> None:
    """Thin lines at the ticks of the upright axis, behind what is drawn."""
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)


def as_svg(figure: Figure, name: str, words: str) -> Markup:
    """The figure as an SVG element that may stand in a page with others."""
    from markupsafe import Markup
    from matplotlib import rc_context

    buffer = io.StringIO()
    none: Any = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with rc_context({"svg.hashsalt": name}), warnings.catch_warnings():  # the same page each time, no id twice on it
        warnings.simplefilter("ignore", UserWarning)  # the reader's fonts have the letters that are missing here
        figure.savefig(buffer, format="svg", transparent=True, metadata=none)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    for stand_in, colour in _COLOURS.items():
        text = text.replace(stand_in, colour)
    box = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :]
    head = f'<svg class="plot" role="img" aria-labelledby="{name}-title" {box.group() if box else ""}'
    xlink = ' xmlns:xlink="http://www.w3.org/1999/xlink"' if "xlink:" in body else ""
    title = f'<title id="{name}-title">{escape(words)}</title>'
    return Markup(f"{head}{xlink}>{title}{body.strip()}")
