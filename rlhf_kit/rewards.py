"""Everything that scores a prompt with its response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlhf_kit.batches import Sequences
from rlhf_kit.models import Backbone, ScalarHead

REWARD = "reward"


def save(backbone: Backbone, directory: Path) -> None:
    """Adapter and head of the reward model, side by side."""
    backbone.save_adapter(REWARD, directory)
    backbone.heads[REWARD].save(directory)


def load(backbone: Backbone, run: Path, name: str = REWARD) -> None:
    """Puts the reward model of a run directory into a backbone, frozen, under the name that its adapter and head
    shall have."""
    backbone.load_adapter(name, run)
    backbone.add_head(name, ScalarHead.load(run, backbone.hidden_size))


def score_batch(backbone: Backbone, sequences: Sequences, name: str = REWARD) -> Tensor:
    """(B,) float32 scores by an adapter and its head, read at the last real token: EOS where the response has ended."""
    with backbone.role(name):
        hidden = backbone(sequences.input_ids, sequences.attention_mask)
        rows = torch.arange(hidden.size(0), device=hidden.device)
        scores: Tensor = backbone.heads[name](hidden[rows, sequences.last])
    return scores


@torch.no_grad()
def score(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    batch_size: int = 16,
    name: str = REWARD,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """(N,) scores of N responses, each to its prompt, in batches of like length; in the order given."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(responses[i]))
    scores = torch.empty(len(prompts), dtype=torch.float32)
    backbone.eval()
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = Sequences.collate(
            [prompts[i] for i in rows], [responses[i] for i in rows], backbone.tokenizer.pad_token_id
        )
        with autocast(backbone):
            scores[rows] = score_batch(backbone, batch.to(backbone.device), name).cpu()
        progress(len(rows))
    return scores


def autocast(backbone: Backbone) -> torch.autocast:
    """Scoring runs in the precision that training ran in: float32 adapters on a bfloat16 base under autocast."""
    dtype = backbone.base.dtype
    return torch.autocast(backbone.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
