"""The history of rounds as tables, for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlhf_kit.rounds.history import History, Interval, Row

__all__ = ["Table", "tables"]

Cell = Callable[[Interval | None, str], str]
"""Writes a figure with its interval by a format such as `{:.2f}`; a dash where there is none."""


@dataclass(frozen=True)
class Table:
    """Rows of texts, the round first in each."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(found: History, cell: Cell) -> tuple[Table, Table]:
    """How strong the policies are, and what was labelled and learned."""
    return (
        Table(
            "The policies",
            f"by {found.judge}, on {found.prompts} held-out prompts; KL from the start, nats a response",
            ("round", "Elo", "beats start", "beats last", "KL", "tokens"),
            tuple((name_of(row), *_strength(row, cell)) for row in found.rows),
        ),
        Table(
            "Labels",
            "what the reward model got right of prompts kept from it, and of the next round's labels",
            ("round", "rankings (pairs)", "held out", "next labels", "minutes", "people's"),
            tuple((name_of(row), *_learning(row, cell)) for row in found.rows),
        ),
    )


def name_of(row: Row) -> str:
    """`start`, or the number of the round."""
    return str(row.round or "start")


def _strength(row: Row, cell: Cell) -> tuple[str, ...]:
    return (
        cell(row.elo, "{:.0f}"),
        cell(row.over_start, "{:.1%}"),
        cell(row.over_before, "{:.1%}"),
        cell(row.kl, "{:.2f}"),
        "–" if row.tokens is None else f"{row.tokens:.1f}",
    )


def _learning(row: Row, cell: Cell) -> tuple[str, ...]:
    return (
        f"{row.rankings:,} ({row.pairs:,})" if row.round else "–",
        cell(row.reward_heldout, "{:.1%}"),
        cell(row.reward_fresh.get(row.round + 1), "{:.1%}"),
        f"{sum(row.seconds.values()) / 60:.1f}" if row.seconds else "–",
        f"{row.labeler_seconds / 60:.1f}" if row.labeler_seconds else "–",
    )
