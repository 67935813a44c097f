"""The history of rounds as a page: one HTML file without scripts and without network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from rlhf_kit import pages
from rlhf_kit.pages import Headline
from rlhf_kit.report.words import MUCH_KL
from rlhf_kit.rounds.history import History, Interval, Row
from rlhf_kit.rounds.tables import name_of, tables
from rlhf_kit.stats.words import number, percent
from rlhf_kit.svg import ACCENT, MUTED, SETTINGS, Plot, as_svg, lines_behind, new_axes

__all__ = ["write_page"]

_WIDTH, _HEIGHT = 3.3, 2.1
_DASHES = (0, (2.5, 1.5))
Line = list[tuple[str, Interval | None]]
"""A figure by the rounds' names."""


def write_page(found: History, title: str, path: Path) -> Path:
    """Writes the page and returns its path.

    Raises:
        DataError: it cannot be written.
    """
    view = {
        "title": title,
        "byline": [_counted(len(found.rows) - 1, "round"), f"compared by {found.judge}"],
        "headlines": _headlines(found),
        "notes": _notes(found),
        "plots": _plots(found),
        "tables": tables(found, _cell),
    }
    return pages.write_page(path, pages.rendered("rounds.html.j2", view))


def _counted(count: int, what: str) -> str:
    return f"{number(count)} {what}{'s' * (count != 1)}"


def _cell(figure: Interval | None, form: str) -> str:
    if figure is None:
        return "–"
    value, low, high = (form.format(figure[name]) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


# -------------------------------------------------------------------- in words


def _headlines(found: History) -> list[Headline]:
    last = found.rows[-1]
    rankings, spent = sum(row.rankings for row in found.rows), sum(row.labeler_seconds for row in found.rows)
    said = [
        _wins("Beats the start", last.over_start, f"How often round {last.round}'s answers are better than round 0's."),
        _wins("Beats the round before", last.over_before, "A coin has 50 %.") if last.round > 1 else None,
        Headline(
            "Gone from the start",
            f"{last.kl['value']:.1f}",
            "nats",
            f"{last.kl['low']:.1f} to {last.kl['high']:.1f}",
            "KL of its answers from round 0's policy.",
        )
        if last.kl
        else None,
        Headline("Labels", number(rankings), "rankings", caption=_people(spent)),
    ]
    return [headline for headline in said if headline is not None]


def _wins(name: str, rate: Interval | None, caption: str) -> Headline | None:
    if rate is None:
        return None
    bar = pages.Interval.of_shares(rate["value"], rate["low"], rate["high"])
    ends = f"{percent(rate['low'])} to {percent(rate['high'])}"
    return Headline(name, percent(rate["value"]), "of the time", ends, f"{caption} A tie counts half.", bar)


def _people(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes of people's time." if seconds else "No people's time."


def _notes(found: History) -> list[str]:
    """What a reader must know before believing that it gets better and better."""
    last, said = found.rows[-1], []
    if last.round > 1 and last.over_before and last.over_before["low"] <= 0.5:
        rate = percent(last.over_before["value"])
        said.append(
            f"Round {last.round} is not surely better than round {last.round - 1}: it wins {rate}. Another round may "
            "only go further away; look at the answers, or at labels by somebody else."
        )
    if last.kl and last.kl["value"] > MUCH_KL:
        said.append(
            f"Round {last.round} is {last.kl['value']:.1f} nats a response from the start. So far away a reward model "
            "is easily fooled; a larger ppo.kl_coef, or round.start=sft, holds it back."
        )
    stale = [row for row in found.rows if (fresh := row.reward_fresh.get(row.round + 1)) and fresh["low"] <= 0.5]
    said += [
        f"The reward model of {'the start' if not row.round else f'round {row.round}'} is no better than a coin on the "
        "next round's labels: PPO was led by something else than what the labels say."
        for row in stale
    ]
    return said


# -------------------------------------------------------------------- in pictures


def _plots(found: History) -> list[Plot]:
    rows = found.rows
    strength = [(name_of(row), row.over_start) for row in rows[1:]]
    distance = [(name_of(row), row.kl) for row in rows]
    heldout = [(name_of(row), row.reward_heldout) for row in rows]
    fresh = [(name_of(row), row.reward_fresh.get(row.round + 1)) for row in rows]
    hint = "Solid: prompts kept from it. Dashed: the next round's labels, of answers that it has pushed the policy to."
    return [
        Plot("Wins over the start", "Even is 50 %.", _drawn("strength", rows, [strength], share=True, even=0.5)),
        Plot("Distance from the start", "KL, nats a response.", _drawn("distance", rows, [distance], share=False)),
        Plot("Reward models", hint, _drawn("reward-models", rows, [heldout, fresh], share=True, even=0.5)),
    ]


def _drawn(name: str, rows: Sequence[Row], lines: Sequence[Line], *, share: bool, even: float | None = None) -> Any:
    """Figures with their intervals by round; the second line is dashed."""
    form = "{:.1%}" if share else "{:.2f}"
    places = {name_of(row): row.round for row in rows}
    said = ". ".join("; ".join(f"{who}: {_cell(figure, form)}" for who, figure in line) for line in lines)
    with rc_context(SETTINGS):
        figure, axes = new_axes(_WIDTH, _HEIGHT)
        lines_behind(axes)
        if even is not None:
            axes.axhline(even, color=MUTED, linewidth=0.9, linestyle=_DASHES)
        for line, style, marker in zip(lines, ("-", "--"), ("o", "s"), strict=False):
            drawn = [(places[who], one) for who, one in line if one is not None]
            for at, one in drawn:
                axes.plot([at, at], [one["low"], one["high"]], color=ACCENT, linewidth=2.2, alpha=0.45)
            values = [one["value"] for _, one in drawn]
            axes.plot([at for at, _ in drawn], values, style, marker=marker, color=ACCENT, linewidth=1.4, markersize=4)
        axes.set_xticks(list(places.values()), list(places))
        axes.margins(x=0.08)
        if share:
            axes.yaxis.set_major_formatter(lambda value, _: percent(value, 0))
        axes.locator_params(axis="y", nbins=4)
        axes.set_xlabel("round", color=MUTED)
        return as_svg(figure, f"rounds-{name}", f"{name}. {said}.")
