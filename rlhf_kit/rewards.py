"""Everything that scores a prompt with its response."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlhf_kit.batches import Sequences
from rlhf_kit.checkpoint import MANIFEST
from rlhf_kit.models import Backbone, ScalarHead
from rlhf_kit.models.heads import HEAD_FILE
from rlhf_kit.packing import PackedRows

log = logging.getLogger(__name__)

REWARD = "reward"

# The largest relative difference of hidden states that rounding explains. Measured on SmolLM2-135M: 6e-7 in float32,
# 8e-3 (sdpa) and 2e-2 (eager) in bfloat16. A sliding window that ends one token too early gives 6e-2, a shorter one
# 0.5 and more.
_PACKING_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}

# Responses behind one copy of a prompt: attention costs the square of a row.
_MOST_OF_A_PROMPT = 16


def save(backbone: Backbone, directory: Path) -> None:
    """Adapter and head of the reward model, side by side."""
    backbone.save_adapter(REWARD, directory)
    backbone.heads[REWARD].save(directory)


def load(backbone: Backbone, run: Path, name: str = REWARD) -> None:
    """Puts the reward model of a run directory into a backbone, frozen, under the name that its adapter and head
    shall have."""
    backbone.load_adapter(name, run)
    backbone.add_head(name, ScalarHead.load(run, backbone.hidden_size))


def stage_of(run: str | Path) -> Path | None:
    """The directory of a run's finished reward stage, or that directory itself; None where there is none."""
    places = (Path(run) / REWARD, Path(run))
    return next((p for p in places if (p / MANIFEST).is_file() and (p / HEAD_FILE).is_file()), None)


def states_of(backbone: Backbone, batch: Sequences | PackedRows, name: str = REWARD) -> Tensor:
    """(N, H) the hidden states at the last real token of each response: EOS where the response has ended."""
    with backbone.role(name):
        if isinstance(batch, PackedRows):
            hidden: Tensor = backbone(batch.input_ids, batch.attention_mask, batch.position_ids)
        else:
            hidden = backbone(batch.input_ids, batch.attention_mask, lower=batch.lower)
        return hidden[batch.ends]


def outputs_of(backbone: Backbone, batch: Sequences | PackedRows, name: str = REWARD) -> Tensor:
    """(N, A) float32: what each axis of the head says at the last token of each response, not normalised."""
    said: Tensor = backbone.heads[name].outputs(states_of(backbone, batch, name))
    return said


def score_batch(backbone: Backbone, batch: Sequences | PackedRows, name: str = REWARD) -> Tensor:
    """(N,) float32 scores by an adapter and its head."""
    scores: Tensor = backbone.heads[name].score(outputs_of(backbone, batch, name))
    return scores


@torch.no_grad()
def score(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    batch_size: int = 16,
    name: str = REWARD,
    packed: bool | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """(N,) scores of N responses, each to its prompt, in the order given. See `outputs`."""
    said = outputs(backbone, prompts, responses, batch_size=batch_size, name=name, packed=packed, progress=progress)
    scores: Tensor = backbone.heads[name].score(said.to(backbone.device)).cpu()
    return scores


@torch.no_grad()
def outputs(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    batch_size: int = 16,
    name: str = REWARD,
    packed: bool | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """(N, A) what each axis of the head says of N responses, each to its prompt, in the order given.

    Responses to the same prompt are packed behind one copy of it; batches are made of prompts of like length.

    Args:
        batch_size: responses of one forward pass; more where a single prompt has more.
        packed: False gives each response a row of its own; None finds out whether the model can be packed.
        progress: called with the number of responses of each batch when it is done.
    """
    said = torch.empty(len(prompts), len(backbone.heads[name].axes), dtype=torch.float32)
    backbone.eval()
    if packed is None:
        shared = len({tuple(prompt) for prompt in prompts}) < len(prompts)
        packed = shared and can_pack(backbone, prompts, responses, name)
    for rows in _batches(prompts, responses, batch_size, packed):
        batch = _collate(prompts, responses, rows, backbone.tokenizer.pad_token_id, packed)
        with autocast(backbone):
            said[[i for group in rows for i in group]] = outputs_of(backbone, batch.to(backbone.device), name).cpu()
        progress(sum(map(len, rows)))
    return said


@torch.no_grad()
def can_pack(
    backbone: Backbone, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], name: str = REWARD
) -> bool:
    """Whether the model gives packed responses the hidden states that it gives them alone, tried on the longest ones.

    Not all can: layers that carry a state from token to token see the response before, a sliding window is measured
    in columns, positions may come from the mask. A model that was found able on sequences as long is not tried again.
    """
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]) + len(responses[i]))
    length = len(prompts[longest]) + len(responses[longest])
    if backbone.packs_up_to is not None and (backbone.packs_up_to == 0 or backbone.packs_up_to >= length):
        return backbone.packs_up_to > 0
    shortest = min(range(len(prompts)), key=lambda i: len(prompts[i]) + len(responses[i]))
    # The other response must come first: what a packed response sees wrongly is what stands before it.
    pair = [responses[shortest], responses[longest]]
    together = PackedRows.collate(
        [prompts[shortest], prompts[longest]], [pair, pair], pad := backbone.tokenizer.pad_token_id
    )
    alone = Sequences.collate([prompts[i] for i in (shortest, shortest, longest, longest)], pair + pair, pad)
    was_training = backbone.training
    backbone.eval()
    try:
        with autocast(backbone):
            expected = states_of(backbone, alone.to(backbone.device), name).float()
            found = states_of(backbone, together.to(backbone.device), name).float()
        error = float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())
    except (RuntimeError, ValueError, TypeError, IndexError) as failure:
        log.info("responses are not packed: %s takes no mask of its own: %s", backbone.config.model_type, failure)
        error = float("inf")
    finally:
        backbone.train(was_training)
    able = error < _PACKING_ERROR[backbone.base.dtype]
    backbone.packs_up_to = length if able else 0
    log.info(
        "%s: hidden states of packed and of single responses differ by %.1e (relative): %s",
        backbone.config.model_type,
        error,
        "responses to a prompt share one copy of it" if able else "each response gets a row of its own",
    )
    return able


def _batches(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], batch_size: int, packed: bool
) -> Iterator[list[list[int]]]:
    """Batches of groups of indices: what shares a row stands in one group."""
    groups: dict[object, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt) if packed else i, []).append(i)
    parts = [g[at : at + _MOST_OF_A_PROMPT] for g in groups.values() for at in range(0, len(g), _MOST_OF_A_PROMPT)]
    parts.sort(key=lambda part: len(prompts[part[0]]) + sum(len(responses[i]) for i in part))
    batch: list[list[int]] = []
    for part in parts:
        if batch and sum(map(len, batch)) + len(part) > batch_size:
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch


def _collate(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    groups: list[list[int]],
    pad: int,
    packed: bool,
) -> Sequences | PackedRows:
    if packed:
        return PackedRows.collate(
            [prompts[group[0]] for group in groups], [[responses[i] for i in group] for group in groups], pad
        )
    flat = [i for group in groups for i in group]
    return Sequences.collate([prompts[i] for i in flat], [responses[i] for i in flat], pad)


def autocast(backbone: Backbone) -> torch.autocast:
    """Scoring runs in the precision that training ran in: float32 adapters on a bfloat16 base under autocast."""
    dtype = backbone.base.dtype
    return torch.autocast(backbone.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
