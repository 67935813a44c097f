"""The plots of a reward model's page: small SVGs in the page's own colours, without scripts or fonts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_kit.reward_evaluation import Evaluation
from rlhf_kit.reward_page_words import RULES, interval, is_small
from rlhf_kit.reward_quality.figures import Accuracy, Calibration, CurvePoint, Quality
from rlhf_kit.stats.words import number, percent, shown
from rlhf_kit.svg import ACCENT, INK, MUTED, SETTINGS, Plot, as_svg, lines_behind, new_axes

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

__all__ = ["plots"]

_WIDTH, _HEIGHT, _ROW = 3.3, 2.1, 0.3
_MOST = 12
_LONGEST = 34
_DASHES, _DOTS = (0, (2.5, 1.5)), (0, (1, 1))


def plots(evaluation: Evaluation) -> list[Plot]:
    """All plots that there are figures for."""
    quality = evaluation.quality
    found = [_beside(quality)]
    if quality.calibration is not None:
        found.append(reliability(quality.calibration))
    if evaluation.length_points:
        found.append(_score_by_length(evaluation))
    if quality.length is not None:
        found.append(_by_length(quality))
    if quality.curve:
        found.append(_curve(quality.curve))
    return [*found, *_groups(quality)]


# -------------------------------------------------------------------- rows of accuracies


Row = tuple[str, Accuracy]


def _beside(quality: Quality) -> Plot:
    rows = [("the model", quality.accuracy)]
    if quality.ceiling is not None:
        rows.append(("a labeler with another", quality.ceiling.agreement))
    if quality.memorised is not None:
        rows.append(("on prompts it was trained on", quality.memorised.training))
    if quality.length is not None:
        rules = quality.length.baselines.items()
        rows += [(RULES.get(name, name), one) for name, one in rules if not one.low == one.high == 0.5]  # says nothing
    hint = "Pairs in the labelers' order. Lines: intervals. Upright dashes: a coin."
    return Plot("Beside what it must beat", hint, _rows("accuracy", rows, "Pairs in the right order"))


def _by_length(quality: Quality) -> Plot:
    length = quality.length
    assert length is not None
    rows = [
        ("the shorter was preferred", length.shorter_preferred),
        ("the longer was preferred", length.longer_preferred),
        ("lengths within 10 %", length.matched),
    ]
    hint = "The model's accuracy on pairs where … Alike in all, it is not length that it judges."
    rows = [row for row in rows if row[1].pairs]
    return Plot("Accuracy by length", hint, _rows("by-length", rows, "The model's accuracy by length"))


def _groups(quality: Quality) -> Iterable[Plot]:
    gap = "How far the two answers are apart; farther should be easier."
    kinds = (
        ("by-gap", "By rank gap", gap, quality.by_rank_gap, lambda name: f"{name} place{'s' * (name != '1')} apart"),
        ("by-k", "By K", "Responses of the ranking that the pair is of.", quality.by_k, "K = {}".format),
        ("by-category", "By category", "The most pairs first.", quality.by_category, str),
        ("by-labeler", "By labeler", "The most pairs first.", quality.by_labeler, str),
        ("by-source", "By who wrote the answers", "The preferred one, then the other.", quality.by_source, str),
    )
    for slug, name, hint, groups, write in kinds:
        if len(groups) < 2:
            continue
        shortened = f" The first {_MOST} of {len(groups)}." if len(groups) > _MOST else ""
        grey = " Grey: fewer than 30 pairs." if is_small(groups[:_MOST]) else ""
        rows = [(write(shown(group.name) or "(not said)"), group.accuracy) for group in groups[:_MOST]]
        small = [group.small for group in groups[:_MOST]]
        svg = _rows(slug, rows, f"Accuracy {name.lower()}", small=small, line=quality.accuracy.value)
        yield Plot(name, f"{hint} Upright dots: all pairs.{grey}{shortened}", svg)


def _rows(
    slug: str, rows: Sequence[Row], words: str, *, small: Sequence[bool] = (), line: float | None = None
) -> Markup:
    """A point with its interval under each name; dashes at a coin's half, dots at `line`."""
    from matplotlib import rc_context

    said = "; ".join(f"{name} {percent(one.value)} ({interval(one)}, {number(one.pairs)} pairs)" for name, one in rows)
    with rc_context(SETTINGS):
        figure, axes = new_axes(_WIDTH, 0.35 + _ROW * len(rows))
        for place, (name, one) in enumerate(rows):
            if one.value is None:
                continue
            _mark(axes, place, 0.5, _DASHES)
            if line is not None:
                _mark(axes, place, line, _DOTS)
            colour = MUTED if place < len(small) and small[place] else ACCENT
            if one.low is not None and one.high is not None:
                axes.plot([one.low, one.high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([one.value], [place], "o", color=colour, markersize=4.5)
            label = f"{shown(name, _LONGEST)} {percent(one.value)}"
            axes.annotate(label, (0, place - 0.22), color=INK, va="bottom")
        axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.95), yticks=[], xticks=[0, 0.25, 0.5, 0.75, 1])
        axes.xaxis.set_major_formatter(lambda value, _: percent(value, 0))
        axes.spines["left"].set_visible(False)
        return as_svg(figure, slug, f"{words}. {said}.")


def _mark(axes: Axes, place: int, at: float, style: Any) -> None:
    """A short upright line in one row, so that none goes through the names."""
    axes.plot([at, at], [place - 0.17, place + 0.17], color=INK, linewidth=1, linestyle=style, zorder=1)


# -------------------------------------------------------------------- curves


def reliability(calibration: Calibration) -> Plot:
    """How often the model is right where it is so confident; below the line it is too sure."""
    from matplotlib import rc_context

    bins = [
        (one.confidence, one.accuracy, one.pairs)
        for one in calibration.equal_count
        if one.confidence is not None and one.accuracy is not None
    ]
    said = "; ".join(f"confidence {percent(x, 0)}: {percent(y, 0)} of {number(n)} pairs" for x, y, n in bins)
    with rc_context(SETTINGS):
        figure, axes = new_axes(_WIDTH, _HEIGHT)
        lines_behind(axes)
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=0.9, linestyle=_DASHES)
        axes.plot([x for x, _, _ in bins], [y for _, y, _ in bins], "o-", color=ACCENT, linewidth=1.2, markersize=4)
        axes.set(xlim=(0.49, 1.01), ylim=(min([0.4, *(y - 0.05 for _, y, _ in bins)]), 1.03))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: percent(value, 0))
        axes.set_xlabel("confidence, sigmoid of the difference", color=MUTED)
        axes.set_ylabel("in the right order", color=MUTED)
        svg = as_svg(figure, "reliability", f"Reliability. {said}.")
    error = f"Expected calibration error {percent(calibration.error)}."
    return Plot("Reliability", f"Below the dashes it is surer than it is right. {error}", svg)


def _score_by_length(evaluation: Evaluation) -> Plot:
    from matplotlib import rc_context

    bins, shown_points = evaluation.length_bins, evaluation.length_points
    said = "; ".join(f"{one.low} to {one.high} tokens: {one.mean:.2f} (deviation {one.std:.2f})" for one in bins)
    with rc_context(SETTINGS):
        figure, axes = new_axes(_WIDTH, _HEIGHT)
        lines_behind(axes)
        lengths, scores = [x for x, _ in shown_points], [y for _, y in shown_points]
        axes.plot(lengths, scores, "o", color=MUTED, markersize=1.8, alpha=0.45, markeredgewidth=0)
        middles = [(one.low + one.high) / 2 for one in bins]
        axes.plot(middles, [one.mean for one in bins], "o-", color=ACCENT, linewidth=1.4, markersize=3.5)
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.locator_params(axis="y", nbins=4)
        axes.set_xlabel("tokens", color=MUTED)
        axes.set_ylabel("score", color=MUTED)
        svg = as_svg(figure, "score-length", f"Mean score by length. {said}.")
    length = evaluation.quality.length
    within = "" if length is None or length.pearson_within is None else f"{length.pearson_within:.2f}"
    hint = f"Correlation within prompts {within.replace('-', '−')}." if within else ""
    return Plot("Score against length", f"Points: answers. Line: means of a tenth each. {hint}".strip(), svg)


def _curve(points: Sequence[CurvePoint]) -> Plot:
    from matplotlib import rc_context
    from matplotlib.ticker import NullLocator

    known = [(one.prompts, one.accuracy) for one in sorted(points, key=lambda one: one.prompts)]
    said = "; ".join(f"{number(x)} prompts: {percent(one.value)} ({interval(one)})" for x, one in known)
    with rc_context(SETTINGS):
        figure, axes = new_axes(_WIDTH, _HEIGHT)
        lines_behind(axes)
        axes.set_xscale("log")
        axes.axhline(0.5, color=MUTED, linewidth=0.9, linestyle=_DASHES)
        drawn = [(x, one.value) for x, one in known if one.value is not None]
        for x, one in known:
            if one.low is not None and one.high is not None:
                axes.plot([x, x], [one.low, one.high], color=ACCENT, linewidth=2.2, alpha=0.45, solid_capstyle="butt")
        axes.plot([x for x, _ in drawn], [y for _, y in drawn], "o-", color=ACCENT, linewidth=1.4, markersize=4)
        axes.set_xticks([x for x, _ in known], [number(x) for x, _ in known])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.08)
        axes.yaxis.set_major_formatter(lambda value, _: percent(value, 0))
        axes.locator_params(axis="y", nbins=4)
        axes.set_xlabel("prompts trained on", color=MUTED)
        svg = as_svg(figure, "learning-curve", f"Learning curve. {said}.")
    return Plot("Learning curve", "Still rising at the right: more prompts of this kind would help.", svg)
