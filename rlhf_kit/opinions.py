"""What several labelers said of the same answers to one prompt: kept as it is, or made one ranking.

Answers are the same where their texts are, and whether the model ended them. Two methods make one ranking:

* `mean`: answers are ordered by the mean of their ranks. The ranks of each opinion are made fractional first (tied ones
  share the mean of the places that they take up), so that opinions with and without ties can be added up. The order is
  that of Borda's count, and that of the Bradley–Terry model where everybody has ranked all answers.
* `majority`: each pair of answers goes by the majority of those who order it. An answer's place follows from the pairs
  that it wins less those that it loses (Copeland, 1951), so that a cycle makes a tie.

An opinion counts by its `weight`, and what comes out has the mean of the weights, not their sum: a prompt shall not
count for more because more people looked at it. All arithmetic is exact: what is equal ties.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from statistics import fmean
from typing import Literal, TypeAlias, TypeVar

from .errors import DataError, Problem
from .records import Flags, Ranking, Response, prompt_name

__all__ = ["Merging", "folds", "merge"]

Merging: TypeAlias = Literal["keep", "mean", "majority"]
"""What becomes of several opinions."""

_T = TypeVar("_T")


def merge(rankings: Sequence[Ranking], how: Merging) -> list[Ranking]:
    """The rankings, or one for all opinions on the same answers to a prompt; in the order of their first appearance.

    A ranking whose answers nobody else has ranked stays what it is, also where others have ranked some of them. One
    that is made of several has the prompt and the order of answers of the first, no `labeler`, no `id`, and in `meta`
    the names of the `labelers` and the number of `opinions`; its `margin` is the mean of those that were given. Axes
    are merged as the ranks are, where every opinion has them for every answer. `source`, `overall`, each flag,
    `category` and `user_id` are kept where all who say one say the same.

    Each ranking is one opinion, whoever gave it. All answers may come out tied.
    """
    if how == "keep":
        return list(rankings)
    groups: dict[object, list[Ranking]] = {}
    for record in rankings:
        answers = tuple(sorted((response.text, response.ended) for response in record.responses))
        groups.setdefault((prompt_name(record.prompt), answers), []).append(record)
    return [group[0] if len(group) == 1 else _merged(group, how) for group in groups.values()]


def _merged(group: Sequence[Ranking], how: Literal["mean", "majority"]) -> Ranking:
    orders = [_order(record) for record in group]
    aligned = [[record.responses[i] for i in order] for record, order in zip(group, orders, strict=True)]
    answers = list(zip(*aligned, strict=True))  # of each answer, what every opinion says of it
    counts = _counts(group)
    ranks = _ranks([[response.rank for response in one] for one in aligned], counts, how)
    axes = _axes(aligned, counts, how)
    responses: dict[int, Response] = {}
    for place, (said, rank) in enumerate(zip(answers, ranks, strict=True)):
        responses[orders[0][place]] = Response(
            text=said[0].text,
            rank=rank,
            source=_agreed(one.source for one in said),
            ended=said[0].ended,
            overall=_agreed(one.overall for one in said),
            flags=_flags(said),
            axes={axis: of[place] for axis, of in axes.items()} or None,
        )
    weights = [record.weight for record in group]
    margins = [record.margin for record in group if record.margin is not None]
    return Ranking(
        prompt=group[0].prompt,
        responses=tuple(responses[i] for i in range(len(responses))),
        weight=None if weights == [None] * len(weights) else fmean(1.0 if w is None else w for w in weights),
        margin=fmean(margins) if margins else None,
        category=_agreed(record.category for record in group),
        user_id=_agreed(record.user_id for record in group),
        meta={"labelers": sorted({r.labeler for r in group if r.labeler is not None}), "opinions": len(group)},
    )


def _order(record: Ranking) -> list[int]:
    """The indices of the answers in an order that all opinions share."""
    responses = record.responses
    return sorted(range(len(responses)), key=lambda i: (responses[i].text, responses[i].ended, responses[i].rank))


def _counts(group: Sequence[Ranking]) -> list[int]:
    """The weights as whole numbers, in their proportion; as they were written, so that 0.1 and 0.2 are 0.3."""
    weights = [Fraction(1) if record.weight is None else Fraction(repr(record.weight)) for record in group]
    scale = math.lcm(*(weight.denominator for weight in weights))
    return [int(weight * scale) for weight in weights]


def _ranks(opinions: Sequence[Sequence[int]], counts: Sequence[int], how: Literal["mean", "majority"]) -> list[int]:
    """The ranks 1, 2, … of the answers, from those that each opinion gives them."""
    keys = _mean_keys(opinions, counts) if how == "mean" else _majority_keys(opinions, counts)
    distinct = sorted(set(keys))
    return [bisect_left(distinct, key) + 1 for key in keys]


def _mean_keys(opinions: Sequence[Sequence[int]], counts: Sequence[int]) -> list[int]:
    """Twice the sum of each answer's fractional ranks; lower is better."""
    keys = [0] * len(opinions[0])
    for ranks, count in zip(opinions, counts, strict=True):
        ordered = sorted(ranks)
        for i, rank in enumerate(ranks):
            keys[i] += count * (bisect_left(ordered, rank) + 1 + bisect_right(ordered, rank))
    return keys


def _majority_keys(opinions: Sequence[Sequence[int]], counts: Sequence[int]) -> list[int]:
    """Pairs lost less pairs won of each answer; lower is better."""
    keys = [0] * len(opinions[0])
    for j in range(len(keys)):
        for i in range(j):
            votes = zip(opinions, counts, strict=True)
            lead = sum(count * ((ranks[i] < ranks[j]) - (ranks[i] > ranks[j])) for ranks, count in votes)
            won = (lead > 0) - (lead < 0)
            keys[i] -= won
            keys[j] += won
    return keys


def _axes(
    aligned: Sequence[Sequence[Response]], counts: Sequence[int], how: Literal["mean", "majority"]
) -> dict[str, list[int]]:
    """The ranks of the answers on each axis that all opinions have for all of them."""
    given = [response.axes or {} for one in aligned for response in one]
    names = [axis for axis in given[0] if all(axis in axes for axes in given)]
    return {axis: _ranks([[(r.axes or {})[axis] for r in one] for one in aligned], counts, how) for axis in names}


def _flags(said: Sequence[Response]) -> Flags | None:
    flags = [response.flags for response in said if response.flags is not None]
    agreed = {name: _agreed(getattr(one, name) for one in flags) for name in Flags.model_fields}
    return None if all(value is None for value in agreed.values()) else Flags(**agreed)


def _agreed(values: Iterable[_T | None]) -> _T | None:
    """The value that all have who have one; None where they differ."""
    found = {value for value in values if value is not None}
    return found.pop() if len(found) == 1 else None


def folds(rankings: Sequence[Ranking], k: int, seed: int) -> list[frozenset[str]]:
    """The labelers in `k` parts with about equally many rankings, each to be held out once (arXiv 2203.02155, 4.1).

    The largest labelers are given away first, each to the part that has the fewest rankings. Rankings that name no
    labeler belong to none of the parts, and so are never held out.

    Args:
        k: at least 2.
        seed: decides between labelers with equally many rankings; the order of the rankings is of no account.

    Raises:
        DataError: fewer than `k` labelers are named.
    """
    sizes = Counter(record.labeler for record in rankings if record.labeler is not None)
    if len(sizes) < k:
        reason = f"{len(sizes)} named in {len(rankings)} rankings, which is too few for {k} parts"
        advice = "name the labelers, or lower reward.labeler_folds"
        raise DataError([Problem("data.rankings", "labeler", f"{reason}; {advice}")])
    names = sorted(sizes)
    random.Random(seed).shuffle(names)
    parts: list[list[str]] = [[] for _ in range(k)]
    totals = [0] * k
    for name in sorted(names, key=lambda name: -sizes[name]):
        part = min(range(k), key=lambda i: (totals[i], len(parts[i])))
        parts[part].append(name)
        totals[part] += sizes[name]
    return [frozenset(part) for part in parts]
