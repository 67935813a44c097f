"""How much of the scores could be length alone (Singhal et al. 2023, arXiv 2310.03716), and what simple rules reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..checks.ledger import prompt_of
from .figures import Accuracy, Length, Scored
from .resampling import Bootstrap, Interval, by_cluster
from .table import Floats, Ints, Table, wins

__all__ = ["MATCHED", "distinct_responses", "length_of", "pearson", "spearman"]

MATCHED = 0.1
"""Lengths that differ by at most this part of the longer one are taken as the same."""
_DIGITS = 12


def length_of(table: Table, distinct: Ints, right: Floats, bootstrap: Bootstrap) -> Length | None:
    """All that concerns length; None where there is no strict pair.

    Args:
        table: responses and pairs.
        distinct: numbers of the responses without repetitions, from `distinct_responses`; of them correlations are.
        right: (M,) how right the model is on each strict pair.
        bootstrap: for the intervals.
    """
    if not len(right):
        return None
    prompt = table.pair_prompt
    winner, loser = table.length[table.better], table.length[table.worse]
    within, ends, within_ranks = _within(table, distinct, bootstrap)
    prefers: Literal["shorter", "longer", "neither"]
    prefers = "neither" if not within else "longer" if within > 0 else "shorter"

    def on(chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Accuracy:
        return bootstrap.accuracy(right[chosen], prompt[chosen])

    shorter, longer = on(winner < loser), on(winner > loser)
    rules = {
        "shorter": wins(loser, winner),
        "longer": wins(winner, loser),
        "ended": wins(table.ended[table.better], table.ended[table.worse]),
    }
    best = max(rules, key=lambda name: float(rules[name].mean()))
    none = Accuracy(None, None, None, 0, 0)
    return Length(
        pearson_within=within,
        pearson_within_low=ends[0],
        pearson_within_high=ends[1],
        spearman_within=within_ranks,
        pearson=pearson(table.score[distinct], table.length[distinct]),
        spearman=spearman(table.score[distinct], table.length[distinct]),
        shorter_preferred=shorter,
        longer_preferred=longer,
        equally_long=on(winner == loser),
        matched=on(np.abs(winner - loser) <= MATCHED * np.maximum(winner, loser)),
        against={"shorter": longer, "longer": shorter, "neither": none}[prefers],
        model_prefers=prefers,
        baselines={name: bootstrap.accuracy(rule, prompt) for name, rule in rules.items()},
        best_baseline=best,
        gain=bootstrap.accuracy(right - rules[best], prompt),
    )


def distinct_responses(scored: Sequence[Scored]) -> Ints:
    """Numbers of the responses, in the order of the table, that no earlier one repeats for the same prompt.

    Several labelers rank the same responses; those must not count several times in a correlation.
    """
    seen: dict[tuple[object, str, bool], int] = {}
    number = 0
    for one in scored:
        prompt = prompt_of(one.record)
        for response in one.record.responses:
            seen.setdefault((prompt, response.text, response.ended), number)
            number += 1
    return np.array(list(seen.values()), dtype=np.int64)


def pearson(one: Floats, other: Floats) -> float | None:
    """Pearson's correlation of two (N,); None where either is all the same."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    one, other = (values / np.abs(values).max() for values in (one, other))  # squares of huge scores overflow
    one, other = one - one.mean(), other - other.mean()
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def spearman(one: Floats, other: Floats) -> float | None:
    """Spearman's correlation: Pearson's of the ranks, where equal values share the mean of their ranks."""
    return pearson(_ranks(one), _ranks(other))


def _ranks(values: Floats) -> Floats:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    result: Floats = (np.cumsum(count) - (count - 1) / 2)[place]
    return result


def _within(table: Table, distinct: Ints, bootstrap: Bootstrap) -> tuple[float | None, Interval, float | None]:
    """Pearson's correlation within prompts with its interval, and Spearman's."""
    prompt = table.prompt[table.ranking[distinct]]
    score, length = (_centred(values[distinct], prompt) for values in (table.score, table.length))
    whole = pearson(score, length)
    if whole is None:
        return None, (None, None), None
    # The mean of what remains is 0 in every prompt, so three sums a prompt are all that the correlation needs.
    columns = by_cluster(prompt, [score * length, score * score, length * length])

    def correlation(sums: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            result: Floats = sums[:, 0] / np.sqrt(sums[:, 1] * sums[:, 2])
        return result

    return whole, bootstrap.interval(columns[columns[:, 1] + columns[:, 2] > 0], correlation), spearman(score, length)


def _centred(values: Floats, prompt: Ints) -> Floats:
    """The values minus the mean of their prompt, in units of the largest value.

    Rounded, so that what is equal but for the last bits of a mean is equal.
    """
    _, place = np.unique(prompt, return_inverse=True)
    means = np.bincount(place, weights=values) / np.bincount(place)
    scale = float(np.abs(values).max()) or 1.0
    return np.round((values - means[place]) / scale, _DIGITS)
