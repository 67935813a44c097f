"""How far labelers agree with each other, as what a model could reach; and a model on what it was trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from ..checks.ledger import content_of
from ..stats.agreement import agreement
from ..stats.names import Names
from ..stats.ranking_table import RankingTable
from .figures import Accuracy, Ceiling, Memorised, Scored
from .resampling import Bootstrap, by_cluster, ratio
from .table import Floats, Table, table_of, wins

__all__ = ["ceiling_of", "memorised_of"]


def ceiling_of(scored: Sequence[Scored], table: Table, right: Floats, bootstrap: Bootstrap) -> Ceiling | None:
    """The agreement of `rlhf-kit stats` on these rankings, and the model on the rankings that it is of.

    A model is one opinion, so it is compared with how often one labeler agrees with ONE other; the majority of several
    labelers would be a higher mark than a labeler reaches. None where no answers were ranked by two labelers.
    """
    groups: defaultdict[Hashable, set[str]] = defaultdict(set)
    contents = [content_of(one.record) for one in scored]
    for content, one in zip(contents, scored, strict=True):
        if one.record.labeler is not None:
            groups[content].add(one.record.labeler)
    takes_part = [
        one.record.labeler is not None and len(groups[content]) > 1
        for content, one in zip(contents, scored, strict=True)
    ]
    if not any(takes_part):
        return None
    names, rankings = Names(), RankingTable()
    for one, part in zip(scored, takes_part, strict=True):
        if part:
            rankings.add(one.record, names.apart(one.record.labeler), [0] * len(one.scores), False)
    found, _ = agreement(list(rankings.columns()), bootstrap.seed)
    if found is None:
        return None
    chosen = np.array(takes_part)[table.pair_ranking]
    model = bootstrap.accuracy(right[chosen], table.pair_prompt[chosen])
    share = found.pairs
    prompts = len(np.unique(table.prompt[np.array(takes_part)]))
    return Ceiling(
        Accuracy(share.value, share.low, share.high, share.total, prompts), model, found.sets, found.labelers
    )


def memorised_of(training: Sequence[Scored], table: Table, right: Floats, bootstrap: Bootstrap) -> Memorised | None:
    """Accuracy on rankings of the training data against held-out; None where there is nothing to compare."""
    trained = table_of(training, "training ranking")
    known = wins(trained.score[trained.better], trained.score[trained.worse])
    if not len(known) or not len(right):
        return None
    one, other = bootstrap.accuracy(known, trained.pair_prompt), bootstrap.accuracy(right, table.pair_prompt)
    low = high = None
    if one.low is not None and other.low is not None:
        # Two samples of different prompts: drawn independently of each other.
        columns = [
            by_cluster(prompt, [values, np.ones(len(values))])
            for values, prompt in ((known, trained.pair_prompt), (right, table.pair_prompt))
        ]
        draws = [ratio(bootstrap.sums(sums, stream)) for stream, sums in enumerate(columns)]
        low, high = bootstrap.percentiles(draws[0] - draws[1])
    apart = float(known.mean() - right.mean())
    difference = Accuracy(apart, low, high, one.pairs + other.pairs, one.prompts + other.prompts)
    return Memorised(one, other, difference)
