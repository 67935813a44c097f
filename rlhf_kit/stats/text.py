"""The figures as plain tables for a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .figures import Share, Statistics, TextSource
from .words import bounds, findings, number, percent, share, shown, span

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Section", "print_table", "render", "sections"]

_MOST = 20


class Section:
    """A table: its title, its columns, its rows; names are in the first column."""

    def __init__(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> None:
        self.title, self.columns, self.note = title, columns, note
        self.rows = list(rows)


def render(statistics: Statistics, console: Console) -> None:
    """Prints all that there is, a table each; what the files do not have is left out."""
    from rich.text import Text

    for section in sections(statistics, _MOST):
        print_table(section, console)
    for words in findings(statistics):
        console.print(Text(f"! {words}", "yellow"))


def print_table(section: Section, console: Console) -> None:
    """Prints one table with its title and its note."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console.print(Text(section.title, "bold"))  # Text, never markup: a category called [red] is no colour
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(section.columns):
        table.add_column(Text(column), justify="right" if index else "left", overflow="fold")
    for row in section.rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    if section.note:
        console.print(Text(section.note))
        console.print()


def sections(statistics: Statistics, most: int) -> list[Section]:
    """All tables that are not empty; long ones end after `most` rows, with a note of how many there are."""
    found = [
        *_of_files(statistics),
        *_of_rankings(statistics),
        *_of_labelers(statistics, most),
        *_of_lengths(statistics),
        *_of_prompts(statistics, most),
        *_of_answers(statistics, most),
        _texts(statistics, most),
    ]
    return [section for section in found if section.rows]


def _cut(section: Section, most: int) -> Section:
    if len(section.rows) > most:
        more = f"The first {most} of {len(section.rows):,}; the JSON has all."
        section.note = f"{section.note} {more}".strip()
        section.rows = section.rows[:most]
    return section


def _named(name: str) -> str:
    return shown(name) or "(not named)"


def _of_files(statistics: Statistics) -> Iterable[Section]:
    yield Section(
        "Sources",
        ("source", "kind", "format", "rows", "left out", "records"),
        (
            (shown(f.name, 200), f.kind, f.format or "own", number(f.rows), number(f.left_out), number(f.records))
            for f in statistics.sources
        ),
        f"Of {number(statistics.partly_left_out)} further rows a part was left out."
        if statistics.partly_left_out
        else "",
    )
    yield Section(
        "Left out, by what is wrong", ("code", "rows"), ((c, number(n)) for c, n in statistics.left_out_by_code.items())
    )
    yield Section(
        "Records",
        ("kind", "records", "different prompts", "of these several times", "duplicate records"),
        (
            (k.kind, number(k.records), number(k.prompts), number(k.prompts_repeated), number(k.duplicates))
            for k in statistics.kinds
        ),
    )


def _of_rankings(statistics: Statistics) -> Iterable[Section]:
    rankings = statistics.rankings
    if rankings is None:
        return
    yield Section(
        "Responses a ranking (K)",
        ("K", "rankings", "share"),
        ((str(k), number(n), percent(n / rankings.rankings)) for k, n in rankings.sizes.items()),
    )
    yield Section(
        "Pairs",
        ("", "count"),
        (
            ("pairs with an order", number(rankings.pairs)),
            ("tied pairs", number(rankings.ties)),
            ("rankings without a pair", number(rankings.without_pair)),
            ("responses cut off at a length limit", number(rankings.cut_off)),
        ),
    )
    wins = (("the longer response", rankings.longer), ("the first response in the row", rankings.first))
    yield Section(
        "Who wins",
        ("", "wins", "95 % interval", "pairs"),
        ((name, *_share_cells(one)) for name, one in wins),
        "Pairs of equal length, and rows made of chosen and rejected, are left out of these.",
    )


def _share_cells(found: Share) -> tuple[str, str, str]:
    return percent(found.value), bounds(found) or "–", number(found.total)


def _cells(found: Share) -> tuple[str, str]:
    return share(found), number(found.total)


def _of_labelers(statistics: Statistics, most: int) -> Iterable[Section]:
    agreement = statistics.agreement
    if agreement is not None:
        alpha = "–" if agreement.alpha is None else f"{agreement.alpha:.3f}"
        yield Section(
            "Agreement between labelers",
            ("", "value", "95 % interval", "opinions compared"),
            (
                ("order a pair alike (ties left out)", *_share_cells(agreement.pairs)),
                ("say the same of better, worse, tie", *_share_cells(agreement.with_ties)),
                ("Krippendorff's alpha of these, nominal", alpha, "–", f"{number(agreement.alpha_sets)} sets"),
            ),
            f"{number(agreement.sets)} sets of answers were ranked by several of {number(agreement.labelers)} labelers"
            + (f"; {number(agreement.nameless)} rankings without a labeler take no part" if agreement.nameless else "")
            + (f". {agreement.note}" if agreement.note else "."),
        )
    yield _cut(
        Section(
            "Labelers",
            ("labeler", "records", "pairs", "agrees with others", "opinions compared"),
            (
                (_named(one.name), number(one.records), number(one.pairs), *_cells(one.agreement))
                for one in statistics.labelers
            ),
            f"{number(statistics.without_labeler)} records name no labeler." if statistics.without_labeler else "",
        ),
        most,
    )


def _of_lengths(statistics: Statistics) -> Iterable[Section]:
    for unit in ("characters", "tokens"):
        yield Section(
            f"Lengths in {unit}",
            ("", "count", "mean", "5 %", "25 %", "50 %", "75 %", "95 %", "max"),
            (
                (one.what, *map(number, (one.count, one.mean, *one.quantiles.values(), one.max)))
                for one in statistics.lengths
                if one.unit == unit
            ),
            "Without the chat template." if unit == "tokens" else "",
        )
    yield Section(
        "Longer than",
        ("", "limit", "share", "of"),
        (
            (t.what, f"{number(t.limit)} {t.unit}", percent(t.over.value), number(t.over.total))
            for t in statistics.truncation
        ),
    )


def _of_prompts(statistics: Statistics, most: int) -> Iterable[Section]:
    objective = statistics.objective
    note = f"{number(statistics.without_category)} records name no category." if statistics.without_category else ""
    if objective is not None:
        words = f"{percent(objective.share.value)} of {number(objective.share.total)} have objective answers"
        note = f"{note} {words} (InstructGPT {percent(objective.instructgpt)}).".strip()
    yield _cut(
        Section(
            "Categories beside InstructGPT's",
            ("category", "records", "share", "InstructGPT"),
            (
                (_named(one.name), number(one.count), percent(one.share), percent(one.instructgpt))
                for one in statistics.categories
            ),
            note,
        ),
        most,
    )
    said = [one for one in statistics.origins if one.origin or one.kind]
    yield Section(
        "Prompts by origin and kind",
        ("origin", "kind", "prompts"),
        ((o.origin or "(not said)", o.kind or "(not said)", number(o.count)) for o in statistics.origins if said),
    )


def _of_answers(statistics: Statistics, most: int) -> Iterable[Section]:
    yield _cut(
        Section(
            "Who wrote the answers",
            ("source", "responses", "mean characters", "wins against others", "pairs"),
            (
                (_named(s.name), number(s.responses), number(s.mean_length), *_cells(s.wins))
                for s in statistics.answer_sources
            ),
        ),
        most,
    )
    if statistics.marks is not None:
        flags = statistics.marks.flags.items()
        yield Section(
            "Marked on the answers",
            ("flag", "share", "of"),
            ((name.replace("_", " "), percent(one.value), number(one.total)) for name, one in flags),
        )
        yield Section(
            "Overall rating",
            ("of 7", "answers"),
            ((str(value), number(count)) for value, count in statistics.marks.overall.items()),
            f"Mean {number(statistics.marks.mean_overall, 2)}.",
        )
    for group in statistics.ratings[:most]:
        scale = f", {number(group.scale[0], 3)} to {number(group.scale[1], 3)}" if group.scale else ""
        title = f"Ratings: {shown(group.axis) or 'the whole answer'}{scale}"
        thumbs = [("thumbs up", f"{percent(group.thumbs_up.value)} of {number(group.thumbs_up.total)}")]
        yield Section(
            title,
            ("score", "ratings"),
            [*((span(one), number(one.count)) for one in group.bins), *thumbs * bool(group.thumbs_up.total)],
            f"Mean {number(group.mean, 2)}." if group.scores else "",
        )


def _texts(statistics: Statistics, most: int) -> Section:
    rows = (
        (_named(one.name), number(one.texts), number(one.characters), percent(one.share), _weight(one))
        for one in statistics.texts
    )
    return _cut(Section("Texts", ("source", "texts", "characters", "share", "weight"), rows), most)


def _weight(source: TextSource) -> str:
    return number(source.weight, 3) + (", varies" if source.weight_varies else "")
