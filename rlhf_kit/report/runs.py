"""What the page of several runs shows, by name, for its template: each run has a letter, a line style and a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlhf_kit.report.answers import answers_of, columns_of, joined
from rlhf_kit.report.evaluation import Span, ends, judge_name, judges, label, policies, reference, win
from rlhf_kit.report.figures import LETTERS, Points, interval_rows, win_rate_figure
from rlhf_kit.report.frontier import Frontier, frontier_plots, frontiers
from rlhf_kit.report.lead import KeyFigure, key_figures
from rlhf_kit.report.overlay import key, overlaid
from rlhf_kit.report.page import LONG_NAMES, judge_views, run_warnings
from rlhf_kit.report.run import STAGES, Run
from rlhf_kit.report.stages import NAMES, data_hashes, differing_settings, stage_row
from rlhf_kit.report.tables import Cell, Table, measures_table
from rlhf_kit.report.tax import tax_table
from rlhf_kit.report.words import percent
from rlhf_kit.stats.words import shown
from rlhf_kit.svg import Plot

__all__ = ["differences", "letters", "view"]

_MOST_FIGURES, _MOST_SETTINGS = 6, 10
_FIRST = ("ppo_beats_sft", "reward_gained")
_NAME = 40


def letters(runs: Sequence[Run]) -> list[str]:
    """A short name of each run on the page: A, B, C, and numbers after the alphabet's end."""
    return [LETTERS[place] if place < len(LETTERS) else str(place + 1) for place in range(len(runs))]


def view(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the template shows."""
    named = list(zip(letters(runs), runs, strict=True))
    differing = differences(runs)
    found = _frontiers(named)
    columns = joined([(letter, columns_of(run.evaluation)) for letter, run in named if run.evaluation.get("prompts")])
    figures = [key_figures(run) for run in runs]
    logs = [(stage, [(letter, run.logs.get(stage, [])) for letter, run in named]) for stage in STAGES]
    return {
        "runs": named,
        "key": key([(letter, shown(run.name, _NAME)) for letter, run in named]),
        "models": list(dict.fromkeys(run.model for run in runs)),
        "figures_at_the_top": _figures(letters(runs), figures),
        "figures_table": _figures_table(named, figures),
        "differing": _differing(runs, differing),
        "warnings": _shared([(letter, words) for letter, run in named for words in run_warnings(run)]),
        "health": _shared([(letter, sentence) for letter, run in named for sentence in run.health]),
        "wins": _wins(named),
        "judges": [(letter, judge_views(run.evaluation)) for letter, run in named if judges(run.evaluation)],
        "frontier": frontier_plots(found),
        "frontier_words": _shared([(one.run, words) for one in found for words in one.words]),
        "measured": [
            (letter, (run.evaluation.get("gain") or {}).get("words") or [], measures_table(run.evaluation))
            for letter, run in named
        ],
        "tax": _tables(named, tax_table),
        "curves": [(LONG_NAMES[stage], stage, drawn) for stage, told in logs if (drawn := overlaid(stage, told))],
        "stages": [
            (letter, run, [stage_row(stage, run.manifests[stage], run.metrics, differing) for stage in run.manifests])
            for letter, run in named
        ],
        "chain": [NAMES[stage] for stage in STAGES if any(stage in run.manifests for run in runs)],
        "columns": columns,
        "prompts": answers_of([run.evaluation for run in runs], columns),
    }


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings and data that differ, by name, with each run's value."""
    data = [
        {name: digest for stage, one in run.manifests.items() for name, digest in data_hashes(stage, one).items()}
        for run in runs
    ]
    return differing_settings([run.recipe for run in runs], data)


def _differing(runs: Sequence[Run], found: dict[str, list[str]]) -> list[Table]:
    """The first of them, and the rest, which is folded."""
    rows = tuple((shown(name), tuple(map(Cell, values))) for name, values in found.items())
    columns = ("Setting", *letters(runs))
    tables = [
        Table("Settings and data that are not the same in all runs", columns, rows[:_MOST_SETTINGS]),
        Table("Further settings that are not the same", columns, rows[_MOST_SETTINGS:]),
    ]
    return [table for table in tables if table.rows]


def _shared(said: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """What is said of several runs in the same words once, with all their letters."""
    by_words: dict[str, list[str]] = {}
    for letter, words in said:
        by_words.setdefault(words, []).append(letter)
    return [(", ".join(of), words) for words, of in by_words.items()]


def _frontiers(named: Sequence[tuple[str, Run]]) -> list[Frontier]:
    """Each run's once, by its letter: evaluated checkpoints before a log, its own evaluation before that of another."""
    by_name = {run.name: (letter, place) for place, (letter, run) in enumerate(named)}
    found = []
    for place, (letter, run) in enumerate(named):
        told = frontiers(run)
        for one in told:
            own = (letter, place)  # a single one is the run's, whatever it was called when it was evaluated
            name, of = own if len(told) == 1 else by_name.get(one.run, (f"{letter} {one.run}", place))
            found.append((one.source != "evaluation", name != letter, replace(one, run=name, place=of)))
    found.sort(key=lambda entry: entry[:2])
    first = {one.run: one for _, _, one in reversed(found)}
    return sorted(first.values(), key=lambda one: one.place)


def _tables(named: Sequence[tuple[str, Run]], make: Any) -> list[tuple[str, Table]]:
    tables = [(letter, make(run.evaluation)) for letter, run in named]
    return [(letter, table) for letter, table in tables if table.rows]


# -------------------------------------------------------------------- the figures at the top


def _figures(names: Sequence[str], figures: Sequence[Sequence[KeyFigure]]) -> list[Plot]:
    """The first few figures that all or most runs have, a row a run."""
    by_key: dict[str, list[tuple[str, KeyFigure]]] = {}
    for letter, found in zip(names, figures, strict=True):
        for one in found:
            by_key.setdefault(one.key, []).append((letter, one))
    shared = {
        name: rows
        for name, rows in by_key.items()
        if len(rows) > 1 and any(one.span.low is not None for _, one in rows)
    }
    # What was gained, what it cost, then whatever else there is.
    ordered = sorted(shared, key=lambda name: 0 if name in _FIRST else 1 if name.startswith(("kl", "tax.")) else 2)
    drawn = []
    for number, rows in enumerate((shared[name] for name in ordered[:_MOST_FIGURES]), 1):
        first = rows[0][1]
        points = [(letter, one.span) for letter, one in rows]
        limits = (0.0, 1.0) if first.write is percent else None
        svg = interval_rows(f"figure-{number}", points, first.name, at=first.at, write=first.write, limits=limits)
        hint = "" if first.at is None else "Dashes: no difference. Grey: the interval includes it."
        drawn.append(Plot(first.name, hint, svg))
    return drawn


def _figures_table(named: Sequence[tuple[str, Run]], figures: Sequence[Sequence[KeyFigure]]) -> Table:
    """Every figure that at least one run has; a column a run."""
    found = [{one.key: one for one in of_run} for of_run in figures]
    rows = []
    for name in dict.fromkeys(one.key for of_run in figures for one in of_run):
        told = [of_run.get(name) for of_run in found]
        words = next(one.name for one in told if one is not None)
        rows.append((words, tuple(Cell("–") if one is None else _cell(one.span, one.write) for one in told)))
    return Table("What each run measured, with intervals", ("", *(letter for letter, _ in named)), tuple(rows))


def _cell(found: Span, write: Any) -> Cell:
    return Cell(write(found.value), ends(found, write))


# -------------------------------------------------------------------- who wins


def _wins(named: Sequence[tuple[str, Run]]) -> list[Plot]:
    """One figure a judge, one kind of mark a run; policies by their names, in the order of the runs."""
    asked = [
        (str(judge.get("name")), place, judge)
        for place, (_, run) in enumerate(named)
        for judge in judges(run.evaluation)
        if reference(run.evaluation) is not None
    ]
    drawn: list[Plot] = []
    for name in dict.fromkeys(name for name, _, _ in asked):
        held = [(place, judge) for other, place, judge in asked if other == name]
        against = _against(named[held[0][0]][1])
        # Win rates against another policy than the first run's could not be compared.
        held = [(place, judge) for place, judge in held if _against(named[place][1]) == against]
        rates = {place: _rates(named[place][1].evaluation, judge) for place, judge in held}
        shown_names = list(dict.fromkeys(policy for of_run in rates.values() for policy in of_run))
        series = [
            Points(named[place][0], [of_run.get(policy) for policy in shown_names], place)
            for place, of_run in rates.items()
        ]
        svg = win_rate_figure(f"wins-{len(drawn) + 1}", shown_names, series, against)
        hint = "Bars: intervals. Dashes: as good as. One kind of mark a run."
        drawn.append(Plot(f"How often each beats {against}, by “{judge_name(held[0][1])}”", hint, svg))
    return drawn


def _against(run: Run) -> str:
    return label(run.evaluation, str(reference(run.evaluation)))


def _rates(evaluation: dict[str, Any], judge: dict[str, Any]) -> dict[str, Span | None]:
    """By the policies' names, how often each beats the reference."""
    against = str(reference(evaluation))
    return {label(evaluation, policy): win(judge, policy, against) for policy in policies(evaluation)}
