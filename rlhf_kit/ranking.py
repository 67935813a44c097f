"""What a reward model learns from: ranked answers, and answers with a rating. Pure functions of flat tensors.

Axes: N scored responses, M pairs. A batch is flat: `group` says which prompt a response belongs to, so K may differ
from prompt to prompt, and responses may come in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Ties = Literal["drop", "half"]


@dataclass(frozen=True)
class Pairs:
    """The comparisons that ranks say.

    Attributes:
        better: (M,) index of the preferred response.
        worse: (M,) index of the other.
        tied: (M,) bool; neither is preferred.
        share: (M,) float32; one over the pairs of the same prompt.
        prompts: how many prompts have a pair.
    """

    better: Tensor
    worse: Tensor
    tied: Tensor
    share: Tensor
    prompts: int


def pairs_of(group: Tensor, rank: Tensor, ranked: Tensor | None = None, *, ties: Ties = "drop") -> Pairs:
    """All C(K,2) pairs of each prompt: those with different ranks, and with `half` also the tied ones.

    Args:
        group: (N,) which prompt a response belongs to; any integers.
        rank: (N,) its rank among the responses of its prompt, 1 = best, equal = tie.
        ranked: (N,) bool; responses that take part. All where it is left out.
        ties: `drop` as InstructGPT did, or `half`.
    """
    takes_part = torch.ones_like(group, dtype=torch.bool) if ranked is None else ranked
    same = (group[:, None] == group[None, :]) & takes_part[:, None] & takes_part[None, :]
    chosen = same & (rank[:, None] < rank[None, :])
    if ties == "half":
        chosen |= (same & (rank[:, None] == rank[None, :])).triu(1)
    better, worse = chosen.nonzero(as_tuple=True)
    _, prompt, count = torch.unique(group[better], return_inverse=True, return_counts=True)
    return Pairs(better, worse, rank[better] == rank[worse], 1.0 / count[prompt].float(), count.numel())


def ranking_loss(
    scores: Tensor,
    group: Tensor,
    rank: Tensor,
    *,
    ranked: Tensor | None = None,
    ties: Ties = "drop",
    margin: Tensor | None = None,
    rank_margin: float = 0.0,
    label_smoothing: float = 0.0,
    centering: float = 0.0,
    weight: Tensor | None = None,
    prompts: Tensor | float | None = None,
) -> Tensor:
    """InstructGPT's reward loss (arXiv 2203.02155, eq. 1), for any K in one batch.

    For each prompt the mean over its ordered pairs of -log sigmoid(s_w - s_l); then the mean over the prompts that
    have a pair.

    Args:
        scores: (N,) scores of all responses of the batch.
        group: (N,) which prompt a response belongs to; any integers.
        rank: (N,) its rank among the responses of its prompt, 1 = best.
        ranked: (N,) bool; responses that take part. All where it is left out.
        ties: `drop`, or `half`: a tied pair is half a win of each, -(log sigmoid(d) + log sigmoid(-d)) / 2.
        margin: (N,) what s_w - s_l of a prompt's ordered pairs must exceed (Llama 2, arXiv 2307.09288, eq. 2).
        rank_margin: the same by rank: this much for the widest gap of ranks within a prompt, less in proportion.
        label_smoothing: the probability that a pair is labelled the wrong way round (arXiv 2307.09288 has none;
            conservative labels as in arXiv 2305.18290's code).
        centering: times the mean of (s_w + s_l)^2, averaged as the loss is, so that scores stay around 0
            (arXiv 2312.09244).
        weight: (N,) what the prompt of a response counts; 2 is as if it stood twice in the data.
        prompts: how many prompts with a pair the mean is over, where these responses are a part of a larger batch.

    Returns:
        A scalar; 0 (with a gradient of 0) when no prompt of the batch has a pair.
    """
    pairs = pairs_of(group, rank, ranked, ties=ties)
    difference = scores[pairs.better] - scores[pairs.worse]
    asked = torch.zeros_like(difference)
    if margin is not None:
        asked = asked + margin[pairs.better]
    if rank_margin:
        asked = asked + rank_margin * _relative_gap(group, rank, pairs)
    difference = difference - torch.where(pairs.tied, 0.0, asked)
    wrong = torch.where(pairs.tied, 0.5, label_smoothing)
    losses = -(1 - wrong) * F.logsigmoid(difference) - wrong * F.logsigmoid(-difference)
    if centering:
        losses = losses + centering * (scores[pairs.better] + scores[pairs.worse]) ** 2
    share = pairs.share if weight is None else pairs.share * weight[pairs.better]
    return (losses * share).sum() / max(pairs.prompts if prompts is None else prompts, 1)


def _relative_gap(group: Tensor, rank: Tensor, pairs: Pairs) -> Tensor:
    """(M,) the gap of a pair's ranks, as a part of the widest gap among the pairs of its prompt."""
    gap = (rank[pairs.worse] - rank[pairs.better]).float()
    names, prompt = torch.unique(group[pairs.better], return_inverse=True)
    widest = gap.new_zeros(names.numel()).scatter_reduce(0, prompt, gap, "amax", include_self=False)
    return gap / widest.clamp(min=1.0)[prompt]


def rating_loss(
    scores: Tensor,
    target: Tensor,
    rated: Tensor,
    group: Tensor,
    *,
    weight: Tensor | None = None,
    prompts: Tensor | float | None = None,
) -> Tensor:
    """Regression on rated answers: the cross-entropy of sigmoid(score) to the rating.

    A rating is the share of the way from the lowest to the highest that could be given, a thumb 0 or 1; the score is
    its log-odds, on the scale on which differences of ranked answers are log-odds too. For each prompt the mean over
    its rated responses; then the mean over the prompts that have one.

    Args:
        scores: (N,).
        target: (N,) between 0 and 1; anything where nothing was rated.
        rated: (N,) bool.
        group: (N,) which prompt a response belongs to; any integers.
        weight: (N,) what the prompt of a response counts.
        prompts: how many prompts with a rated response the mean is over, where these are a part of a larger batch.

    Returns:
        A scalar; 0 (with a gradient of 0) when nothing of the batch was rated.
    """
    chosen = rated.nonzero().squeeze(1)
    losses = F.binary_cross_entropy_with_logits(scores[chosen], target[chosen], reduction="none")
    _, prompt, count = torch.unique(group[chosen], return_inverse=True, return_counts=True)
    share = 1.0 / count[prompt].float()
    if weight is not None:
        share = share * weight[chosen]
    loss: Tensor = (losses * share).sum() / max(count.numel() if prompts is None else prompts, 1)
    return loss
