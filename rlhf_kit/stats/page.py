"""The figures as a page: one HTML file without scripts and without network, for light and dark, desk and phone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import pages
from ..pages import Headline, Interval
from ..svg import Plot
from .figures import Share, Statistics
from .plots import categories_plot, labelers_plot, length_plot, sizes_plot
from .text import sections
from .words import bounds, findings, number, percent, shown

__all__ = ["write_page"]

_MOST = 50


def write_page(statistics: Statistics, path: str | Path) -> Path:
    """Writes the page to `path` and returns it.

    Raises:
        DataError: the file cannot be written.
    """
    return pages.write_page(Path(path), pages.rendered("stats.html.j2", _view(_without_directories(statistics))))


def _without_directories(statistics: Statistics) -> Statistics:
    """Files of an absolute path by their names: a page that is handed on need not tell of a machine's directories."""
    files = []
    for file in statistics.sources:
        name = Path(file.name).name if Path(file.name).is_absolute() else file.name
        files.append(replace(file, name=name, damage=tuple(one.replace(file.name, name) for one in file.damage)))
    return replace(statistics, sources=tuple(files))


def _view(statistics: Statistics) -> dict[str, Any]:
    """Everything that the template shows, by name."""
    records = sum(kind.records for kind in statistics.kinds)
    names = [shown(Path(file.name).name or file.name) for file in statistics.sources]
    return {
        "title": names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more",
        "records": number(records),
        "byline": [f"{number(kind.records)} {kind.kind}{'s' * (kind.records != 1)}" for kind in statistics.kinds],
        "headlines": _headlines(statistics),
        "notes": findings(statistics),
        "plots": list(_plots(statistics)),
        "tables": sections(statistics, _MOST),
    }


def _headlines(statistics: Statistics) -> list[Headline]:
    found: list[Headline] = []
    rankings, agreement = statistics.rankings, statistics.agreement
    if rankings is not None:
        ties = f"{number(rankings.ties)} more are ties."
        caption = f"Of {number(rankings.rankings)} rankings; {ties}"
        found.append(Headline("Pairs to learn from", number(rankings.pairs), caption=caption))
    if agreement is not None:
        caption = "How often two labelers order a pair of answers alike, ties left out. A coin has 50 %."
        found.append(_of_share("Labelers agree", agreement.pairs, caption))
    if rankings is not None and rankings.longer.total:
        caption = "Of pairs of unequal length. Far above 50 %, a reward model may learn length alone."
        found.append(_of_share("The longer one wins", rankings.longer, caption))
    if rankings is not None and rankings.first.total:
        caption = "Far from 50 %, the order in the file gives the label away."
        found.append(_of_share("The first one wins", rankings.first, caption))
    if not found:
        for kind in statistics.kinds:
            words = "" if kind.prompts is None else f"{number(kind.prompts)} different prompts."
            found.append(Headline(f"Records ({kind.kind})", number(kind.records), caption=words))
    return found


def _of_share(name: str, found: Share, caption: str) -> Headline:
    if found.low is None or found.high is None or found.value is None:
        return Headline(name, percent(found.value, 0), caption=caption)
    interval = Interval.of_shares(found.value, found.low, found.high)
    return Headline(name, percent(found.value, 0), "", f"95 % interval {bounds(found)}", caption, interval)


def _plots(statistics: Statistics) -> Iterable[Plot]:
    if statistics.rankings is not None:
        yield sizes_plot(statistics.rankings)
    units = {one.unit for one in statistics.lengths}
    unit = "tokens" if "tokens" in units else "characters"
    yield from (length_plot(one) for one in statistics.lengths if one.unit == unit)
    if statistics.categories:
        yield categories_plot(statistics.categories)
    if statistics.agreement is not None:
        drawn = labelers_plot(statistics.labelers, statistics.agreement)
        if drawn is not None:
            yield drawn
