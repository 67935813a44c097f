"""The only place that generates text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from rlhf_kit.models import Backbone


@dataclass(frozen=True)
class Ending:
    """What ends a response.

    Attributes:
        tokens: ids, each of which ends a response and is its last token.
        texts: that end it as soon as they stand in it; they stay in it.
        least: tokens that a response has at least.
        most: tokens that it has at most.
    """

    tokens: tuple[int, ...]
    most: int
    texts: tuple[str, ...] = ()
    least: int = 0

    def ended(self, response: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether a response ended by itself, and was not cut at the most tokens."""
        if response[-1] in self.tokens:
            return True
        if not self.texts:
            return False
        # A token holds at least one byte; the last one may bring some that belong to the next character.
        window = max(len(text.encode()) for text in self.texts) + 4
        tail = str(tokenizer.decode(list(response[-window:])))
        return any(text in tail for text in self.texts)


@torch.no_grad()
def sample(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    stop_token_ids: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    on_token: Callable[[int], None] | None = None,
    in_step: Callable[[bool], bool] | None = None,
) -> list[list[int]]:
    """One response to each prompt under the active role, EOS included where the model gave it.

    A row that has ended leaves the batch, so that mixed lengths cost what they are worth, and a prompt that comes
    several times is read once. By default tokens are drawn from the whole softmax in float32: PPO needs samples of the
    policy itself, and what top-k, top-p or a least length cut off changes the policy.

    Args:
        backbone: whoever plays (`with backbone.role(...)`).
        prompts: token ids; any lengths.
        min_new_tokens: no response ends before.
        temperature: 0 takes the likeliest token.
        top_k: draws from the likeliest tokens only; 0 is all.
        top_p: draws from the likeliest tokens that make up this share; 1 is all.
        stop: texts that end a response.
        stop_token_ids: tokens that end a response; EOS where they are left out.
        on_token: called with the token of the first prompt as soon as it is drawn (for chat).
        in_step: told after each token whether there is more to do here; says whether there is somewhere. As long as
            that holds forward passes go on: processes that share the layers of one model must make the same ones.
    """
    tokens = (backbone.tokenizer.eos_token_id,) if stop_token_ids is None else tuple(stop_token_ids)
    ending = Ending(tokens, max_new_tokens, tuple(stop), min_new_tokens)
    was_training = backbone.training
    backbone.eval()
    try:
        drawing = Drawing(temperature, top_k, top_p, generator)
        with backbone.packed(), backbone.settled():
            return _decode(backbone, prompts, ending, drawing, on_token, in_step or bool)
    finally:
        backbone.train(was_training)


@torch.no_grad()
def beam_search(backbone: Backbone, prompt: Sequence[int], *, beams: int, max_new_tokens: int) -> list[int]:
    """The likeliest response that beam search finds under the active role, EOS included where it came; by transformers.

    Of finished and unfinished responses the one with the highest mean log-probability a token wins. Nothing is drawn.
    What the model's own `generation_config` asks for beside that (a repetition penalty, forbidden or forced tokens)
    does not count, as it does not in `sample`.
    """
    was_training = backbone.training
    backbone.eval()
    ids = torch.tensor([list(prompt)], device=backbone.device)
    config = GenerationConfig(
        num_beams=beams,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=backbone.tokenizer.eos_token_id,
        pad_token_id=backbone.padding_id,
    )
    its_own = backbone.base.generation_config
    backbone.base.generation_config = GenerationConfig()  # `generate` fills from it whatever ours leaves open
    try:
        found = backbone.base.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    finally:
        backbone.base.generation_config = its_own
        backbone.train(was_training)
    response: list[int] = found[0, len(prompt) :].tolist()
    eos = backbone.tokenizer.eos_token_id
    return response[: response.index(eos) + 1] if eos in response else response


@dataclass(frozen=True)
class Drawing:
    """How a token is drawn from logits; see `sample`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    generator: torch.Generator | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """One token a row (B,) from logits (B, V)."""
        if self.temperature != 0 and (self.top_k or self.top_p < 1):
            logits = logits.float() / self.temperature
            if self.top_k:
                logits = TopKLogitsWarper(self.top_k)(None, logits)
            if self.top_p < 1:
                logits = TopPLogitsWarper(self.top_p)(None, logits)
            return draw(logits, 1.0, self.generator)
        return draw(logits, self.temperature, self.generator)


def _decode(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    ending: Ending,
    drawing: Drawing,
    on_token: Callable[[int], None] | None,
    in_step: Callable[[bool], bool],
) -> list[list[int]]:
    tokenizer, device = backbone.tokenizer, backbone.device
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    place = {prompt: row for row, prompt in enumerate(distinct)}
    copies = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=device)
    ids, mask = _left_padded(distinct, backbone.padding_id, device)
    cache = DynamicCache(config=backbone.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    alive = torch.arange(len(prompts), device=device)
    nobody = len(prompts)  # whose row goes on where only other processes have something to do
    responses: list[list[int]] = [[] for _ in range(nobody + 1)]
    for step in range(ending.most):
        hidden = backbone.decoder(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        if step == 0 and len(distinct) < len(prompts):  # from here on each copy goes its own way
            cache.batch_select_indices(copies)
            hidden, mask, positions = hidden[copies], mask[copies], positions[copies]
        logits = backbone.next_token_logits(hidden)
        if step < ending.least - 1 and ending.tokens:
            logits[:, list(ending.tokens)] = -torch.inf
        token = drawing(logits)
        for row, value in zip(alive.tolist(), token.tolist(), strict=True):
            responses[row].append(value)
        if on_token is not None and alive[0] == 0:
            on_token(int(token[0]))
        done = [step + 1 >= ending.least and ending.ended(responses[row], tokenizer) for row in alive.tolist()]
        going_on = torch.tensor([i for i, over in enumerate(done) if not over], dtype=torch.long, device=device)
        if step + 1 == ending.most or not in_step(going_on.numel() > 0):
            break
        if going_on.numel() == 0:
            going_on, alive = going_on.new_zeros(1), torch.full_like(alive, nobody)
        if going_on.numel() < token.numel():
            cache.batch_select_indices(going_on)
            token, mask, positions, alive = token[going_on], mask[going_on], positions[going_on], alive[going_on]
        ids = token[:, None]
        mask = torch.cat([mask, mask.new_ones(mask.size(0), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return responses[:nobody]


def _left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


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
    with backbone.packed():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            for row, response in zip(rows, sample(backbone, [prompts[i] for i in rows], **options), strict=True):  # type: ignore[arg-type]
                responses[row] = response
            progress(len(rows))
    return responses
