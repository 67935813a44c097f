"""Verdicts on the answers to one prompt, by any number of labelers, as one score for each answer.

This is for comparisons that are no ranking: partial tournaments, cycles, labelers who disagree. Two methods:

* `bt`: the Bradley–Terry model (Biometrika 39, 1952), by choix. The difference of two scores is the log-odds that the
  first answer is preferred; scores sum to 0. A tie is half a win for each side. `ALPHA` times the sum of the squared
  scores is added to the loss, so that an answer which never loses gets a finite score. The order of verdicts is of no
  account.
* `elo`: Elo ratings, by elote, all from 1500 with K = 32. The verdicts are played one after the other in the order they
  are given, and **the result depends on that order**: later games count for more.

Scores say something only of answers that are linked by comparisons. Where the comparisons fall into several groups,
each group is scored by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from .errors import RlhfKitError
from .formats.base import Comparisons, Unusable
from .shapes import Shaped

__all__ = ["ALPHA", "Aggregate", "Method", "aggregate", "aggregated", "ranks_of"]

Method = Literal["bt", "elo"]
Verdict = tuple[int, int, int]

ALPHA = 0.01
"""Weight of the squared Bradley–Terry scores in the loss: what a hundredth of a verdict weighs, about."""
_SAME = 1e-9
_START, _K = 1500.0, 32.0


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Answers that are linked by comparisons, each with its score."""

    responses: tuple[dict[str, Any], ...]
    scores: tuple[float, ...]
    """Higher is better, one for each response."""
    verdicts: int
    """How many verdicts the scores are made of."""
    names: tuple[str, ...]
    """What each response's text was called in the source; empty where it was not said."""
    row: int
    """The row that findings are about."""


def aggregate(comparisons: Sequence[Comparisons], method: Method) -> list[Aggregate]:
    """Joins all verdicts on the answers to one prompt: one result for each group of answers that they link.

    Answers with the same text are one answer, whoever wrote it (`source` then names all), so that no text gets two
    scores; verdicts between them say nothing. An answer without a verdict is in no result.

    Raises:
        RlhfKitError: the method's library is not installed.
    """
    answers: dict[str, int] = {}
    first: list[tuple[dict[str, Any], str, int]] = []
    verdicts: list[Verdict] = []
    for one in comparisons:
        places = []
        for index, response in enumerate(one.responses):
            place = answers.setdefault(repr(response.get("text")), len(answers))
            if place == len(first):
                first.append((dict(response), one.names.get(f"responses.{index}.text", ""), one.row))
            _add_source(first[place][0], response)
            places.append(place)
        verdicts += [(places[i], places[j], verdict) for i, j, verdict in one.verdicts if places[i] != places[j]]
    return [_group(group, first, verdicts, method) for group in _linked(len(first), verdicts)]


def _add_source(answer: dict[str, Any], other: dict[str, Any]) -> None:
    source, known = other.get("source"), answer.get("source")
    if not isinstance(known, str):
        answer.update({} if source is None else {"source": source})
    elif isinstance(source, str) and source not in known.split(", "):
        answer["source"] = f"{known}, {source}"


def _group(
    group: list[int], first: list[tuple[dict[str, Any], str, int]], verdicts: Sequence[Verdict], method: Method
) -> Aggregate:
    place = {answer: index for index, answer in enumerate(group)}
    own = [(place[i], place[j], verdict) for i, j, verdict in verdicts if i in place]
    scores = _bradley_terry(len(group), own) if method == "bt" else _elo(len(group), own)
    responses, names, rows = zip(*(first[answer] for answer in group), strict=True)
    return Aggregate(responses, tuple(scores), len(own), names, rows[0])


def _linked(k: int, verdicts: Sequence[Verdict]) -> list[list[int]]:
    """The groups of at least two answers that verdicts link, directly or through others, in their order."""
    group_of = list(range(k))
    for i, j, _ in verdicts:
        old, new = sorted((group_of[i], group_of[j]), reverse=True)
        group_of = [new if group == old else group for group in group_of]
    groups = [[i for i in range(k) if group_of[i] == group] for group in sorted(set(group_of))]
    return [group for group in groups if len(group) > 1]


def _bradley_terry(k: int, verdicts: Sequence[Verdict]) -> list[float]:
    import choix

    games: list[tuple[int, int]] = []
    for i, j, verdict in verdicts:  # (winner, loser), everything twice: a tie is then a win each way
        games += [(i, j), (i, j) if verdict > 0 else (j, i)] if verdict >= 0 else [(j, i), (j, i)]
    scores = choix.opt_pairwise(k, games, alpha=2 * ALPHA, tol=1e-12)
    mean = sum(map(float, scores)) / k
    return [float(score) - mean for score in scores]


def _elo(k: int, verdicts: Sequence[Verdict]) -> list[float]:
    try:
        from elote import EloCompetitor
    except ImportError:
        words = "--aggregate elo needs a library that is not installed: pip install 'rlhf-kit[data]'"
        raise RlhfKitError(words) from None
    players = [EloCompetitor(initial_rating=_START, k_factor=_K) for _ in range(k)]
    for i, j, verdict in verdicts:
        if verdict == 0:
            players[i].tied(players[j])
        else:
            winner, loser = (i, j) if verdict > 0 else (j, i)
            players[winner].beat(players[loser])
    return [float(player.rating) for player in players]


def ranks_of(scores: Sequence[float]) -> list[int]:
    """Ranks of scores, 1 = the highest; scores within 1e-9 of the next one tie, since they are no exact numbers."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    ranks = [1] * len(scores)
    for better, worse in pairwise(order):
        ranks[worse] = ranks[better] + (scores[better] - scores[worse] > _SAME)
    return ranks


def aggregated(
    comparisons: Sequence[Comparisons], kind: Literal["ranking", "rating"], method: Method
) -> Iterator[Shaped | Unusable]:
    """The verdicts on the answers to one prompt as rows: one ranking for each group of linked answers, or its ratings.

    How a score came about is in `meta.aggregate`, whose verdicts they were in `meta.labelers`. Ratings have no scale,
    and say something beside those with the same prompt and the same `meta.aggregate.group` only.
    """
    if not comparisons:
        return
    groups = aggregate(comparisons, method)
    if not groups:
        yield Unusable("no-verdict", "", "no verdict on two different answers", comparisons[0].row)
    elif len(groups) > 1:
        reason = f"its verdicts link no more than parts of the answers; each of the {len(groups)} is scored by itself"
        yield Unusable("partial-order", comparisons[0].names.get("verdicts", ""), reason, comparisons[0].row)
    fields = _fields(comparisons)
    prompt_names = {ours: name for ours, name in comparisons[0].names.items() if ours.split(".")[0] == "prompt"}
    for number, group in enumerate(groups, 1):
        how = {"method": method, "verdicts": group.verdicts, "group": number, "groups": len(groups)}
        if kind == "ranking":
            yield _ranking(group, {**fields, "meta": {**fields["meta"], "aggregate": how}}, prompt_names)
        else:
            yield from _ratings(group, {**fields, "meta": {**fields["meta"], "aggregate": how}}, prompt_names)


def _fields(comparisons: Sequence[Comparisons]) -> dict[str, Any]:
    """The prompt, the fields on which all labelers' comparisons agree, and in `meta` whatever else they have."""
    fields: dict[str, Any] = {"prompt": comparisons[0].prompt}
    for name in ("labeler", "category", "user_id"):
        values = [one.fields.get(name) for one in comparisons]
        if values[0] is not None and values.count(values[0]) == len(values):
            fields[name] = values[0]
    metas = [one.fields.get("meta", {}) for one in comparisons]
    same = metas.count(metas[0]) == len(metas)
    meta = dict(metas[0]) if same else {"comparisons": metas}
    rest = {
        name: [one.fields.get(name) for one in comparisons]
        for name in dict.fromkeys(name for one in comparisons for name in one.fields)
        if name != "meta" and name not in fields
    }
    meta |= {f"{name}s": values for name, values in rest.items()}
    return {**fields, "meta": meta}


def _ranking(group: Aggregate, fields: dict[str, Any], names: dict[str, str]) -> Shaped:
    ranks = ranks_of(group.scores)
    responses = [{**response, "rank": rank} for response, rank in zip(group.responses, ranks, strict=True)]
    meta = {**fields["meta"], "aggregate": {**fields["meta"]["aggregate"], "scores": list(group.scores)}}
    names = names | {f"responses.{i}.text": name for i, name in enumerate(group.names) if name}
    return Shaped({**fields, "responses": responses, "meta": meta}, names, group.row)


def _ratings(group: Aggregate, fields: dict[str, Any], names: dict[str, str]) -> Iterator[Shaped]:
    for response, score, name in zip(group.responses, group.scores, group.names, strict=True):
        rest = {key: value for key, value in response.items() if key not in ("text", "source")}
        meta = fields["meta"] | ({"response": rest} if rest else {})
        source = {"source": response["source"]} if "source" in response else {}
        row = {**fields, "response": response.get("text"), **source, "score": score, "meta": meta}
        yield Shaped(row, names | ({"response": name} if name else {}), group.row)
