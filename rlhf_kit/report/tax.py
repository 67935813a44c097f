"""The alignment tax: what the training cost on other text, on questions with a known answer, and on other tasks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rlhf_kit.report.evaluation import Span, ends, label, policies, span
from rlhf_kit.report.tables import Cell, Table
from rlhf_kit.report.words import fixed, number
from rlhf_kit.stats.words import shown

__all__ = ["TaxEntry", "rising", "tax_entries", "tax_table"]

Evaluation = dict[str, Any]
_LESS_IS_BETTER = ("perplexity", "bits_per_byte", "loss")


@dataclass(frozen=True)
class TaxEntry:
    """One thing that was measured elsewhere: of each policy what it has and how much that is changed.

    Attributes:
        kind: `text` (nats a token), `choices` or `tasks`.
        rising: whether more of it is better.
    """

    kind: str
    name: str
    rows: int | None
    rising: bool
    values: dict[str, Span]
    changes: dict[str, Span]

    def write(self, value: Any) -> str:
        """A value for reading."""
        return f"{_hundredths(value)} %" if self.is_share else fixed(value, 3)

    def bare(self, value: Any) -> str:
        """A change with its sign and without its unit."""
        return _hundredths(value, signed=True) if self.is_share else fixed(value, 3, signed=True)

    @property
    def unit(self) -> str:
        """Of its changes."""
        return "nats a token" if self.kind == "text" else "points" if self.is_share else ""

    def changed(self, found: Span) -> str:
        """A change with its unit and its interval: `−1.5 points (−3.0 to +0.1)`."""
        interval = f"({ends(found, self.bare)})" if found.low is not None else ""
        return " ".join(filter(None, (self.bare(found.value), self.unit, interval)))

    def lost(self, policy: str) -> bool:
        """Whether the policy is worse there, the whole interval of the change saying so."""
        found = self.changes.get(policy)
        return found is not None and (found.below(0) if self.rising else found.above(0))

    @property
    def is_share(self) -> bool:
        """Whether it is an accuracy, and not a loss in nats."""
        return self.kind != "text" and all(-1 <= found.value <= 1 for found in self.values.values())


def _hundredths(value: Any, signed: bool = False) -> str:
    """A share in hundredths with one decimal."""
    found = number(value)
    return "–" if found is None else fixed(100 * found, 1, signed)


def rising(metric: str) -> bool:
    """Whether more of a task's metric is better."""
    return not any(word in metric for word in _LESS_IS_BETTER)


def tax_entries(evaluation: Evaluation) -> list[TaxEntry]:
    """Everything that was measured elsewhere, in the order text, choices, tasks."""
    return list(_tax(evaluation.get("tax") or {}))


def _tax(tax: dict[str, Any]) -> Iterable[TaxEntry]:
    for kind, value in (("text", "loss"), ("choices", "accuracy"), ("tasks", "value")):
        for told in tax.get(kind) or []:
            metric = str(told.get("metric") or value)
            name = str(told.get("name"))
            yield TaxEntry(
                kind=kind,
                name=shown(f"{name}, {metric}" if kind == "tasks" else name),
                rows=told.get("rows"),
                rising=kind != "text" and rising(metric),
                values=_spans(told.get(value)),
                changes=_spans(told.get("change")),
            )


def _spans(told: dict[str, Any] | None) -> dict[str, Span]:
    return {name: found for name, value in (told or {}).items() if (found := span(value)) is not None}


def tax_table(evaluation: Evaluation) -> Table:
    """Values of each policy and, of all but the first, the change with its interval."""
    entries = tax_entries(evaluation)
    names = [name for name in policies(evaluation) if any(name in entry.values for entry in entries)]
    rows = []
    for entry in entries:
        cells = []
        for name in names:
            value, change = entry.values.get(name), entry.changes.get(name)
            text = "–" if value is None else entry.write(value.value)
            range_ = ""
            if change is not None and name != (evaluation.get("tax") or {}).get("against"):
                interval = f" ({ends(change, entry.bare)})" if change.low is not None else ""
                range_ = f"{entry.bare(change.value)}{interval}"
            cells.append(Cell(text, range_))
        unit = (
            "loss, nats a token"
            if entry.kind == "text"
            else "right answers, changes in points"
            if entry.kind == "choices"
            else entry.unit
        )
        rows.append((f"{entry.name} {unit and f'({unit})'}".strip(), tuple(cells)))
    against = label(evaluation, str((evaluation.get("tax") or {}).get("against") or "base"))
    caption = f"What each policy has, and below it how far that is from {against}, with the interval of the difference"
    return Table(caption, ("", *(label(evaluation, name) for name in names)), tuple(rows))
