"""What the reward stage says of its own model: figures on held-out prompts beside those of rules that read nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_kit.data import Encoder, RankedIds
from rlhf_kit.measures import bootstrap_mean, pair_accuracy, pooled_pair_accuracy
from rlhf_kit.models import Backbone
from rlhf_kit.ranking import ranking_loss
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Ranking
from rlhf_kit.rewards import REWARD, outputs


def measure(backbone: Backbone, encoder: Encoder, heldout: Sequence[Ranking], recipe: Recipe) -> dict[str, Any]:
    """Held-out pair accuracy beside what knows nothing of content: length, and whether the response has ended."""
    paired = [i for i, record in enumerate(heldout) if record.pairs]
    if not paired:
        return {}
    items, flat, said = _scored(backbone, encoder, heldout)
    scores = [part.tolist() for part in flat.split([len(item.responses) for item in items])]
    ranks = [item.ranks for item in items]
    per_prompt = [right / pairs for right, pairs in (pair_accuracy(scores[i], ranks[i]) for i in paired)]
    evaluate = recipe.evaluate
    interval = bootstrap_mean(
        per_prompt, resamples=evaluate.bootstrap, confidence=evaluate.confidence, seed=recipe.seed
    )
    return {
        "heldout_prompts": len(items),
        "heldout_pairs": sum(len(record.pairs) for record in heldout),
        "heldout_loss": _loss(items, said, backbone.heads[REWARD].axes),
        "heldout_pair_accuracy": pooled_pair_accuracy(scores, ranks),
        "heldout_accuracy_by_prompt": interval.as_dict(),
        "baseline_accuracy": baselines(items, ranks, heldout),
        "score_mean": float(flat.mean()),
        "score_std": float(flat.std()),
    }


def _loss(items: Sequence[RankedIds], said: torch.Tensor, axes: Sequence[str]) -> float:
    """InstructGPT's loss, the mean over the axes, on the scale that was trained: there a difference is a log-odds."""
    group = torch.tensor([g for g, item in enumerate(items) for _ in item.responses])
    losses = []
    for axis, name in enumerate(axes):
        ranks = [rank for item in items for rank in item.ranks_on(name)]
        ranked = torch.tensor([rank is not None for rank in ranks])
        rank = torch.tensor([rank or 0 for rank in ranks])
        losses.append(float(ranking_loss(said[:, axis], group, rank, ranked=ranked)))
    return sum(losses) / len(losses)


def accuracy_of(backbone: Backbone, encoder: Encoder, records: Sequence[Ranking]) -> tuple[float | None, int]:
    """Pair accuracy on some rankings, and their number of pairs; None and 0 where there is none."""
    pairs = sum(len(record.pairs) for record in records)
    if not pairs:
        return None, 0
    items, flat, _ = _scored(backbone, encoder, records)
    scores = [part.tolist() for part in flat.split([len(item.responses) for item in items])]
    return pooled_pair_accuracy(scores, [item.ranks for item in items]), pairs


def _scored(
    backbone: Backbone, encoder: Encoder, records: Sequence[Ranking]
) -> tuple[list[RankedIds], torch.Tensor, torch.Tensor]:
    """Token ids, (N,) scores, and (N, A) what the axes say, of all responses one after another."""
    items = [encoder.ranking(record) for record in records]
    prompts = [item.prompt for item in items for _ in item.responses]
    said = outputs(backbone, prompts, [r for item in items for r in item.responses])
    scores: torch.Tensor = backbone.heads[REWARD].score(said.to(backbone.device)).detach().cpu()
    return items, scores, said


def baselines(items: Sequence[RankedIds], ranks: list[list[int]], records: Sequence[Ranking]) -> dict[str, float]:
    """Pair accuracy of rules that read nothing; what they reach is not to a reward model's credit."""
    lengths = [[float(len(r)) for r in item.responses] for item in items]
    ended = [[float(r.ended) for r in record.responses] for record in records]
    return {
        "shorter": pooled_pair_accuracy([[-n for n in row] for row in lengths], ranks),
        "longer": pooled_pair_accuracy(lengths, ranks),
        "ended": pooled_pair_accuracy(ended, ranks),
    }
