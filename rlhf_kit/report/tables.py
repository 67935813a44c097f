"""The tables of an evaluation: who wins by which judge, and what the answers are like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlhf_kit.report.evaluation import (
    MEASURES,
    Span,
    change_of,
    compared,
    controlled,
    ends,
    label,
    length_controls,
    policies,
    reference,
    span,
    win,
)
from rlhf_kit.report.words import fixed, number, percent, plain
from rlhf_kit.stats.words import shown

__all__ = ["Cell", "Table", "judge_tables", "measures_table", "summary_table"]

Evaluation = dict[str, Any]
Write = Callable[[Any], str]
_MEANS = {
    "score": "reward-model score",
    "rubric": "rubric",
    "tokens": "length in tokens",
    "eos_rate": "answers that end",
    "preamble_rate": "answers with a preamble",
    "list_rate": "answers with a list",
    "distinct": "distinct samples of a prompt (share)",
    "sentences": "sentences",
}


@dataclass(frozen=True)
class Cell:
    """A figure as it is written, and its interval below it."""

    text: str
    range: str = ""


@dataclass(frozen=True)
class Table:
    """Names are in the first column."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def _cell(found: Span | None, write: Write) -> Cell:
    return Cell("–") if found is None else Cell(write(found.value), ends(found, write))


# -------------------------------------------------------------------- who wins


def judge_tables(evaluation: Evaluation, judge: dict[str, Any]) -> list[Table]:
    """Strengths, every policy against every other (as it is, and between answers of equal length), flags."""
    names = [name for name in policies(evaluation) if name in (judge.get("win_rates") or {})]
    found = [_strengths(evaluation, judge, names)]
    if len(names) > 2:
        found.append(_matrix(evaluation, names, "Win rates, row against column", partial(win, judge)))
    if length_controls(judge) and len(names) > 2:
        caption = "The same between answers of equal length, row against column"
        found.append(_matrix(evaluation, names, caption, partial(controlled, judge)))
    return [table for table in [*found, _flags(evaluation, judge)] if table.rows]


def _strengths(evaluation: Evaluation, judge: dict[str, Any], names: Sequence[str]) -> Table:
    against = reference(evaluation)
    title = f"against {label(evaluation, against)}" if against else ""
    whole: list[tuple[str, Callable[[str], Span | None], Write]] = []
    if against in names:
        whole.append((f"win rate {title}", partial(win, judge, theirs=str(against)), percent))
        if length_controls(judge):
            whole.append(("at equal length", partial(controlled, judge, theirs=str(against)), percent))
    parts = (
        ("bradley_terry", "Bradley–Terry, log-odds", partial(fixed, signed=True)),
        ("elo", "Elo", partial(fixed, places=0)),
        ("scores", "score", fixed),
    )
    for key, column, write in parts:
        told = judge.get(key) or {}
        if any(span(told.get(name)) for name in names):
            whole.append((column, partial(_of, told), write))
    rows = tuple(
        (label(evaluation, name), tuple(_cell(read(name), write) for _, read, write in whole)) for name in names
    )
    caption = "How strong each policy is; Bradley–Terry has mean 0 and Elo mean 1000 over the policies"
    return Table(caption, ("policy", *(column for column, _, _ in whole)), rows if whole else ())


def _of(told: dict[str, Any], name: str) -> Span | None:
    return span(told.get(name))


def _matrix(
    evaluation: Evaluation, names: Sequence[str], caption: str, read: Callable[[str, str], Span | None]
) -> Table:
    rows = tuple(
        (
            label(evaluation, ours),
            tuple(Cell("") if ours == theirs else _cell(read(ours, theirs), percent) for theirs in names),
        )
        for ours in names
    )
    return Table(caption, ("", *(label(evaluation, name) for name in names)), rows)


def _flags(evaluation: Evaluation, judge: dict[str, Any]) -> Table:
    flags = judge.get("flags") or {}
    names = [name for name in policies(evaluation) if flags.get(name)]
    kinds = list(dict.fromkeys(kind for name in names for kind in flags[name]))
    rows = tuple(
        (label(evaluation, name), tuple(_flag((flags[name] or {}).get(kind)) for kind in kinds)) for name in names
    )
    return Table("Answers with each flag, of those that were asked about", ("policy", *map(shown, kinds)), rows)


def _flag(told: dict[str, Any] | None) -> Cell:
    if not told:
        return Cell("–")
    rate = span(told.get("rate"))
    count = f"{plain(told.get('yes'))} of {plain(told.get('of'))}"
    return Cell(count) if rate is None else Cell(count, f"{percent(rate.value)} ({ends(rate, percent)})")


# -------------------------------------------------------------------- what the answers are like


def summary_table(evaluation: Evaluation) -> Table:
    """One row a measure: what each policy has, and what PPO changed. What has an interval elsewhere is left out."""
    summary, names = evaluation.get("summary") or {}, policies(evaluation)
    elsewhere = {key for policy in names for key in (evaluation.get("measures") or {}).get(policy) or {}}
    rows = []
    for key in dict.fromkeys(key for policy in names for key in summary.get(policy) or {}):
        values = [number((summary.get(policy) or {}).get(key)) for policy in names]
        if key in elsewhere or all(value is None for value in values):
            continue
        large = max(abs(value) for value in values if value is not None) >= 10
        write = percent if key.endswith("_rate") else partial(fixed, places=1 if large else 2)
        by_policy = dict(zip(names, values, strict=True))
        before, after = by_policy.get("sft"), by_policy.get("ppo")
        change = write(after - before, signed=True) if before is not None and after is not None else "–"
        share = " (share of the answers)" if key.endswith("_rate") else ""
        name = _MEANS.get(key, key.removesuffix("_rate").replace("_", " ") + share)
        rows.append((shown(name), (*(Cell(write(value)) for value in values), Cell(change))))
    columns = ("Measure", *(label(evaluation, name) for name in names), "SFT to PPO")
    return Table("Means over all samples of the held-out prompts", columns, tuple(rows))


def measures_table(evaluation: Evaluation) -> Table:
    """KL and what is measured of the text alone, each with its interval, and what the first trained policy changed."""
    names, told = policies(evaluation), evaluation.get("measures") or {}
    kl = [span((evaluation.get("kl") or {}).get(name)) for name in names]
    trained = [name for name in compared(evaluation)[:1] if (evaluation.get("changes") or {}).get(name)]
    rows = [("KL, nats a response", (*(_cell(one, fixed) for one in kl), *(Cell("–") for _ in trained)))]
    for key, measure in MEASURES.items():
        found = [span((told.get(name) or {}).get(key)) for name in names]
        if any(found):
            signed = partial(measure.write, signed=True)
            changes = (_cell(change_of(evaluation, policy, key), signed) for policy in trained)
            rows.append((measure.name, (*(_cell(one, measure.write) for one in found), *changes)))
    caption = (
        "Measured of the answers' text, with intervals. Distinct words and pairs: shares of a prompt's samples, more "
        "is more varied. Self-BLEU (of the samples with each other) and repetition: 0 to 1, less is more varied"
    )
    pairs = (f"{label(evaluation, str(reference(evaluation)))} to {label(evaluation, name)}" for name in trained)
    columns = ("Measure", *(label(evaluation, name) for name in names), *pairs)
    return Table(caption, columns, tuple(rows if any(kl) else rows[1:]))
