"""Accuracy on parts of the pairs: by rank gap, K, category, labeler and source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .figures import Group, Labelers, LabelerSet, Ties
from .resampling import Bootstrap
from .table import Floats, Ints, Names, Table

__all__ = [
    "OTHERS",
    "SMALL",
    "by_category",
    "by_k",
    "by_labeler",
    "by_rank_gap",
    "by_source",
    "labeler_sets",
    "ties_of",
]

SMALL = 30
"""Pairs below which a group is marked as small: the interval of 29 pairs is at best 0.36 wide."""
OTHERS = "(all others)"
_MOST = 100
_SETS: tuple[LabelerSet, ...] = ("training", "held-out", "unknown")


def by_rank_gap(table: Table, right: Floats, bootstrap: Bootstrap) -> tuple[Group, ...]:
    """By how many places the responses are apart, the least first."""
    return _by_number(table.gap, table, right, bootstrap)


def by_k(table: Table, right: Floats, bootstrap: Bootstrap) -> tuple[Group, ...]:
    """By the number of responses of the ranking, the least first."""
    return _by_number(table.size[table.pair_ranking], table, right, bootstrap)


def by_category(table: Table, right: Floats, bootstrap: Bootstrap) -> tuple[Group, ...]:
    """By category, the most pairs first; nothing where no ranking has one."""
    return _by_name(_of_pairs(table.category, table), table, right, bootstrap)


def by_labeler(
    table: Table, right: Floats, bootstrap: Bootstrap, training: frozenset[str], heldout: frozenset[str]
) -> tuple[Group, ...]:
    """By labeler, the most pairs first; nothing where no ranking has one."""
    groups = _by_name(_of_pairs(table.labeler, table), table, right, bootstrap)
    return tuple(
        Group(group.name, group.accuracy, group.small, labelers=set_of(group.name, training, heldout))
        if group.name != OTHERS
        else group
        for group in groups
    )


def by_source(table: Table, right: Floats, bootstrap: Bootstrap) -> tuple[Group, ...]:
    """By who wrote the preferred response and who the other, the most pairs first; nothing where no source is said.

    A over B and B over A are two groups: a model that likes A's answers whatever they say is right in one only.
    """
    names, numbers = table.source.names, table.source.numbers
    if names in ((), ("",)):
        return ()
    winner, loser = numbers[table.better], numbers[table.worse]
    keys, place = np.unique(winner * len(names) + loser, return_inverse=True)
    pairs = [(names[key // len(names)], names[key % len(names)]) for key in keys.tolist()]
    labels = [f"{one or '(not said)'} over {other or '(not said)'}" for one, other in pairs]
    parts = dict(zip(labels, pairs, strict=True))
    groups = _by_name(Names(place.astype(np.int64), tuple(labels)), table, right, bootstrap)
    return tuple(
        Group(group.name, group.accuracy, group.small, None, *parts.get(group.name, (None, None))) for group in groups
    )


def labeler_sets(
    table: Table, right: Floats, bootstrap: Bootstrap, training: frozenset[str], heldout: frozenset[str]
) -> Labelers | None:
    """Training labelers together against held-out ones together; None where nothing is known of them."""
    if (not training and not heldout) or not len(right):
        return None
    kinds = np.array([_SETS.index(set_of(name, training, heldout)) for name in table.labeler.names])
    of_pair = kinds[table.labeler.numbers[table.pair_ranking]]
    prompt = table.pair_prompt
    groups = []
    for number, name in enumerate(_SETS):
        chosen = of_pair == number
        if chosen.any():
            accuracy = bootstrap.accuracy(right[chosen], prompt[chosen])
            groups.append(Group(name, accuracy, accuracy.pairs < SMALL, labelers=name))
    one, other = of_pair == 0, of_pair == 1
    both = one.any() and other.any()
    apart = bootstrap.difference((right[one], prompt[one]), (right[other], prompt[other])) if both else None
    return Labelers(tuple(groups), apart)


def set_of(name: str, training: frozenset[str], heldout: frozenset[str]) -> LabelerSet:
    """Whether the model was trained on a labeler's rankings; one in both sets was.

    Where the training labelers are known, any other name is held-out: the model never saw it.
    """
    if name and name in training:
        return "training"
    return "held-out" if name and (name in heldout or training) else "unknown"


def ties_of(table: Table) -> Ties | None:
    """What the scores say of tied pairs; None where there are none, or no strict ones to compare with."""
    first, second = table.tied
    if not len(first) or not len(table.better):
        return None
    tied, strict = np.abs(table.score[first] - table.score[second]), np.sort(np.abs(table.difference))
    below, to = np.searchsorted(strict, tied, "left"), np.searchsorted(strict, tied, "right")
    farther = (len(strict) - to) + 0.5 * (to - below)
    return Ties(len(tied), float(tied.mean()), float(strict.mean()), float(farther.mean() / len(strict)))


def _of_pairs(names: Names, table: Table) -> Names:
    return Names(names.numbers[table.pair_ranking], names.names)


def _by_number(key: Ints, table: Table, right: Floats, bootstrap: Bootstrap) -> tuple[Group, ...]:
    numbers, place = np.unique(key, return_inverse=True)
    return _groups([str(number) for number in numbers.tolist()], place, table, right, bootstrap)


def _by_name(key: Names, table: Table, right: Floats, bootstrap: Bootstrap) -> tuple[Group, ...]:
    """The groups with the most pairs first; beyond the hundredth all together as `OTHERS`, at the end."""
    if key.names in ((), ("",)):
        return ()
    count = np.bincount(key.numbers, minlength=len(key.names))
    order = sorted(range(len(key.names)), key=lambda number: (-count[number], key.names[number]))
    order = [number for number in order if count[number]]
    labels = [key.names[number] for number in order[:_MOST]]
    place = np.full(len(key.names), _MOST)
    place[order[:_MOST]] = np.arange(len(labels))
    return _groups([*labels, OTHERS][: len(order)], place[key.numbers], table, right, bootstrap)


def _groups(labels: Sequence[str], place: Ints, table: Table, right: Floats, bootstrap: Bootstrap) -> tuple[Group, ...]:
    order = np.argsort(place, kind="stable")
    right, prompt = right[order], table.pair_prompt[order]
    ends = np.cumsum(np.bincount(place, minlength=len(labels)))
    groups, start = [], 0
    for label, end in zip(labels, ends.tolist(), strict=True):
        accuracy = bootstrap.accuracy(right[start:end], prompt[start:end])
        groups.append(Group(label, accuracy, accuracy.pairs < SMALL))
        start = end
    return tuple(groups)
