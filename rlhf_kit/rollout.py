"""The only place that generates text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from rlhf_kit.models import Backbone


@torch.no_grad()
def sample(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    on_token: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """One response to each prompt under the active role, EOS included where the model gave it.

    A row that has ended leaves the batch, so that mixed lengths cost what they are worth. Tokens are drawn from the
    whole
    softmax in float32: PPO needs samples of the policy itself, and what top-k or top-p would cut changes the policy.

    Args:
        backbone: whoever plays (`with backbone.role(...)`).
        prompts: token ids; any lengths.
        temperature: 0 takes the likeliest token.
        on_token: called with the token of the first prompt as soon as it is drawn (for chat).
    """
    tokenizer, device = backbone.tokenizer, backbone.device
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    was_training = backbone.training
    backbone.eval()
    try:
        return _decode(backbone, ids, mask, max_new_tokens, temperature, generator, on_token)
    finally:
        backbone.train(was_training)


def _decode(
    backbone: Backbone,
    ids: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
    on_token: Callable[[int], None] | None,
) -> list[list[int]]:
    eos = backbone.tokenizer.eos_token_id
    cache = DynamicCache(config=backbone.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    alive = torch.arange(ids.size(0), device=ids.device)
    responses: list[list[int]] = [[] for _ in range(ids.size(0))]
    for step in range(max_new_tokens):
        hidden = backbone.decoder(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        token = draw(backbone.next_token_logits(hidden), temperature, generator)
        for row, value in zip(alive.tolist(), token.tolist(), strict=True):
            responses[row].append(value)
        if on_token is not None and alive[0] == 0:
            on_token(int(token[0]))
        going_on = (token != eos).nonzero().squeeze(1)
        if going_on.numel() == 0 or step + 1 == max_new_tokens:
            break
        if going_on.numel() < token.numel():
            cache.batch_select_indices(going_on)
            token, mask, positions, alive = token[going_on], mask[going_on], positions[going_on], alive[going_on]
        ids = token[:, None]
        mask = torch.cat([mask, mask.new_ones(mask.size(0), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return responses


def draw(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One token a row (B,) from logits (B, V); the likeliest where the temperature is 0."""
    if temperature == 0:
        return logits.argmax(-1)
    # By the inverse of the cumulative distribution: `torch.multinomial` draws a random number for every token of the
    # vocabulary, which took a quarter of the time of a decoding step on a CPU.
    cumulative = torch.softmax(logits.float() / temperature, dim=-1).cumsum(-1)
    total = cumulative[:, -1:]
    uniform = torch.rand(total.shape, generator=generator, device=None if generator is None else generator.device)
    chosen = torch.searchsorted(cumulative, uniform.to(total.device) * total, right=True)
    return chosen.squeeze(1).clamp(max=logits.size(-1) - 1)


def sample_in_batches(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
    **options: object,
) -> list[list[int]]:
    """`sample` for any number of prompts: batches of like length, the answers in the order of the prompts."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    responses: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        for row, response in zip(rows, sample(backbone, [prompts[i] for i in rows], **options), strict=True):  # type: ignore[arg-type]
            responses[row] = response
        progress(len(rows))
    return responses
