"""Reward against KL: what a policy gained for how far it moved, and where gaining went wrong.

Gao et al. 2022 (Scaling laws for reward model overoptimization) draw the proxy that is optimised and a gold judge over
the KL from where training began; over-optimisation begins where the gold judge falls while the proxy does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator

from rlhf_kit.report.evaluation import Span, ends, span
from rlhf_kit.report.figures import Style, end_labels, quiet_grid, style
from rlhf_kit.report.run import Run
from rlhf_kit.report.words import number, plain
from rlhf_kit.stats.words import shown
from rlhf_kit.svg import ACCENT, INK, MUTED, SETTINGS, Plot, as_svg, new_axes

__all__ = ["Frontier", "Point", "frontier_plots", "frontiers"]

_NOTHING_MORE = (
    "No checkpoints were evaluated, so there is no second judge, no interval, and over-optimisation cannot be seen."
)
# What PPO's log may have: source, names of score and KL, what the score is called, and what there is to know of it.
_LOGS = (
    (
        *("held-out", "eval_score", "eval_kl", "Held-out score"),
        f"From PPO's own evaluations of held-out prompts, penalties included. {_NOTHING_MORE}",
    ),
    (
        *("rollouts", "score", "kl", "Score of the rollouts"),
        f"From PPO's own log: score and KL of each update's rollouts on its training prompts. {_NOTHING_MORE}",
    ),
)


@dataclass(frozen=True)
class Point:
    """A checkpoint or an update: its KL in nats a response, and what each judge says of it."""

    step: int
    kl: Span
    scores: dict[str, Span]


@dataclass(frozen=True)
class Frontier:
    """One run's points in the order of their steps.

    Attributes:
        source: `evaluation`, `held-out` (PPO's own evaluations) or `rollouts` (its training log).
        over: where over-optimisation begins, as evaluation.json has it: proxy, gold, step, kl.
        words: what there is to know of it, a sentence each.
        place: of its style.
    """

    run: str
    source: str
    points: tuple[Point, ...]
    over: dict[str, Any] | None = None
    words: tuple[str, ...] = ()
    place: int = 0

    @property
    def judges(self) -> list[str]:
        """The names of those who scored, the proxy first and the gold judge second."""
        names = list(dict.fromkeys(name for point in self.points for name in point.scores))
        first = [str((self.over or {}).get(part)) for part in ("proxy", "gold")]
        return sorted(names, key=lambda name: first.index(name) if name in first else len(first))


def frontiers(run: Run) -> list[Frontier]:
    """Of the evaluation's checkpoints; where it has none, one from PPO's own log, which has no intervals."""
    found = [_evaluated(entry, run) for entry in run.evaluation.get("frontier") or []]
    found = [one for one in found if len(one.points) > 1]
    return [replace(one, place=place) for place, one in enumerate(found)] or _logged(run)


def _evaluated(entry: dict[str, Any], run: Run) -> Frontier:
    points = []
    for told in entry.get("points") or []:
        kl, step = span(told.get("kl")), number(told.get("step"))
        scores = {str(name): found for name, value in (told.get("scores") or {}).items() if (found := span(value))}
        if kl is not None and step is not None and scores:
            points.append(Point(int(step), kl, scores))
    words = entry.get("words")
    return Frontier(
        run=str(entry.get("run") or run.name),
        source="evaluation",
        points=tuple(sorted(points, key=lambda point: point.step)),
        over=entry.get("over_optimised") or None,
        words=(words,) if isinstance(words, str) and words else tuple(map(str, words or ())),
    )


def _logged(run: Run) -> list[Frontier]:
    log = run.logs.get("ppo", [])
    for source, score, kl, name, words in _LOGS:
        points = []
        for entry in log:
            found, nats, step = (span({"value": entry.get(key)}) for key in (score, kl, "step"))
            if found is not None and nats is not None and step is not None:
                points.append(Point(int(step.value), nats, {name: found}))
        if len(points) > 1:
            return [Frontier(run.name, source, tuple(points), words=(words,))]
    return []


def frontier_plots(found: Sequence[Frontier], prefix: str = "frontier") -> list[Plot]:
    """One plot a judge, all runs in it; the same KL axis in all of them."""
    judges = list(dict.fromkeys(name for one in found for name in one.judges))
    over = {str(one.over[part]): part for one in found if one.over for part in ("proxy", "gold") if one.over.get(part)}
    edge = max((p.kl.high if p.kl.high is not None else p.kl.value for one in found for p in one.points), default=1.0)
    drawn = []
    for place, judge in enumerate(judges, 1):
        role = {"proxy": " (the proxy that is optimised)", "gold": " (the gold judge)"}.get(over.get(judge, ""), "")
        hint = "KL from the reference." + (" Figures at points are updates." if len(found) == 1 else "")
        if any(one.over for one in found):
            hint += " Upright: over-optimisation begins."
        drawn.append(Plot(shown(judge) + role, hint, _draw(f"{prefix}-{place}", judge, found, edge)))
    return drawn


def _draw(slug: str, judge: str, found: Sequence[Frontier], edge: float) -> Markup:
    with rc_context(SETTINGS):
        figure, axes = new_axes(3.3, 2.3)
        quiet_grid(axes)
        said, labels = [], []
        for one in found:
            points = [point for point in one.points if judge in point.scores]
            if not points:
                continue
            look = style(one.place)
            _line(axes, points, judge, one, look, numbered=len(found) == 1)
            labels.append((shown(one.run, 12), points[-1].scores[judge].value))
            said.append(f"{one.run}: {_said(points, judge)}{_over_said(one)}")
        axes.set_xlim(min(0.0, -0.02 * edge), edge * 1.06 or 1.0)
        axes.margins(y=0.16)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("KL, nats a response", color=MUTED)
        axes.set_ylabel("score", color=MUTED)
        if len(found) > 1:
            end_labels(axes, labels)
        return as_svg(figure, slug, f"{judge}: score against KL. {'; '.join(said)}.")


def _line(axes: Any, points: Sequence[Point], judge: str, one: Frontier, look: Style, numbered: bool) -> None:
    spans = [point.scores[judge] for point in points]
    x, y = [point.kl.value for point in points], [found.value for found in spans]
    if one.source == "rollouts":  # each is one batch: a cloud, and no path to be read
        axes.plot(x, y, look.marker, color=look.colour, markersize=2.8, alpha=0.75, markeredgewidth=0)
    else:
        for point, found in zip(points, spans, strict=True):
            for ends_, fixed_ in ((found, "x"), (point.kl, "y")):
                if ends_.low is not None and ends_.high is not None:
                    at = [point.kl.value if fixed_ == "x" else found.value] * 2
                    bar = [ends_.low, ends_.high]
                    axes.plot(*((at, bar) if fixed_ == "x" else (bar, at)), color=look.colour, linewidth=0.9)
        axes.plot(x, y, color=look.colour, linestyle=look.line, marker=look.marker, linewidth=1.3, markersize=4)
    if numbered:
        for point, value in _told(points, y, one):
            spot = (point.kl.value, value)
            axes.annotate(str(point.step), spot, xytext=(4, 4), textcoords="offset points", color=INK)
    if one.over and number(one.over.get("kl")) is not None:
        axes.axvline(
            one.over["kl"], color=look.colour if not numbered else ACCENT, linewidth=1.1, linestyle=(0, (1, 1.5))
        )


def _told(points: Sequence[Point], values: Sequence[float], one: Frontier) -> list[tuple[Point, float]]:
    """The points whose update is written beside them: all where they are few, else the first, the last, the turn."""
    pairs = list(zip(points, values, strict=True))
    if len(pairs) <= 8 and one.source != "rollouts":
        return pairs
    steps = {points[0].step, points[-1].step, (one.over or {}).get("step")}
    return [pair for pair in pairs if pair[0].step in steps]


def _said(points: Sequence[Point], judge: str) -> str:
    some = points if len(points) <= 12 else (points[0], points[-1])
    return ", ".join(
        f"update {point.step} {plain(point.scores[judge].value)}"
        + (f" ({ends(point.scores[judge], plain)})" if ends(point.scores[judge], plain) else "")
        + f" at {plain(point.kl.value)} nats"
        for point in some
    )


def _over_said(one: Frontier) -> str:
    return f"; over-optimised after update {one.over.get('step')}" if one.over else ""
