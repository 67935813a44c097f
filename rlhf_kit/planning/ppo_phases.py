"""The steps of PPO on fake tensors: sampling, scoring, and the updates of policy and value model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from rlhf_kit import rl
from rlhf_kit.batches import Sequences
from rlhf_kit.models import Backbone
from rlhf_kit.planning.meter import Meter
from rlhf_kit.planning.phases import precision, prepare
from rlhf_kit.planning.setup import Setup
from rlhf_kit.rollout import draw

__all__ = ["Continuing", "Judging", "Learning", "Probing", "Reading", "Update"]


@dataclass(frozen=True)
class Update:
    """One forward pass of PPO's training: `rows` answers of `response` tokens to prompts of `prompt` tokens.

    Attributes:
        lowered: the pass goes on from what the layers below every adapter have made.
    """

    rows: int
    prompt: int
    response: int
    lowered: bool = False

    def batch(self, backbone: Backbone) -> Sequences:
        """Its sequences."""
        ids = torch.zeros(self.rows, self.prompt + self.response, dtype=torch.long)
        lower = None
        if self.lowered:
            backbone.assume_lower_layers()
            lower = torch.zeros(*ids.shape, backbone.hidden_size, dtype=backbone.base.dtype)
        return Sequences(ids, torch.ones_like(ids, dtype=torch.bool), self.response, lower)

    def numbers(self) -> Tensor:
        """(B, R) float32, such as advantages."""
        return torch.zeros(self.rows, self.response)


def _states(backbone: Backbone, batch: Sequences) -> Tensor:
    return batch.before_response(backbone(batch.input_ids, batch.attention_mask, lower=batch.lower))


@dataclass(frozen=True)
class Learning:
    """Forward and backward pass of the policy, of the value model, or of both on one trunk.

    Attributes:
        role: the adapter that plays.
        policy: its log-probabilities learn.
        head: that reads values.
        entropy_gradient: the entropy learns too.
    """

    update: Update
    role: str
    policy: bool
    head: str | None
    entropy_gradient: bool = False

    def __call__(self, backbone: Backbone, setup: Setup, meter: Meter) -> int:
        """Runs it."""
        prepare(backbone, setup)
        batch, old = self.update.batch(backbone), self.update.numbers()
        with backbone.role(self.role):
            with precision(setup), meter.saving():
                states = _states(backbone, batch)
                loss = torch.zeros(())
                if self.policy:
                    log_probs, _ = backbone.log_probs(states, batch.responses, entropy_gradient=self.entropy_gradient)
                    loss = loss + rl.policy_loss(log_probs, old, old, batch.response_mask, cliprange=0.2)[0].sum()
                if self.head is not None:
                    values = backbone.heads[self.head](states)
                    errors, _ = rl.value_loss(values, old, old, batch.response_mask, cliprange_value=0.2)
                    loss = loss + errors.sum()
            del states
            loss.backward()
        return 0


@dataclass(frozen=True)
class Judging:
    """A pass over answers without a gradient: their log-probabilities, or their states alone."""

    update: Update
    role: str | None
    log_probs: bool = True

    def __call__(self, backbone: Backbone, setup: Setup, meter: Meter) -> int:
        """Runs it."""
        backbone.eval()
        batch = self.update.batch(backbone)
        with torch.no_grad(), backbone.role(self.role), precision(setup):
            states = _states(backbone, batch)
            if self.log_probs:
                backbone.log_probs(states, batch.responses)
        return 0


@dataclass(frozen=True)
class Probing:
    """The probe of a finished policy: all logits of (rows, width) tokens, and those of the real ones again."""

    rows: int
    width: int
    role: str

    def __call__(self, backbone: Backbone, setup: Setup, meter: Meter) -> int:
        """Runs it."""
        backbone.eval()
        ids = torch.zeros(self.rows, self.width, dtype=torch.long)
        with torch.no_grad(), backbone.role(self.role), precision(setup):
            logits = backbone.base(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True).logits
            logits.flatten(0, 1).clone()
        return 0


@dataclass(frozen=True)
class Reading:
    """The pass over prompts, which fills the KV cache, and the first draw; `rows` different ones."""

    rows: int
    prompt: int
    role: str

    def __call__(self, backbone: Backbone, setup: Setup, meter: Meter) -> int:
        """Runs it."""
        backbone.eval()
        cache = DynamicCache(config=backbone.config)
        with torch.no_grad(), backbone.role(self.role), precision(setup):
            _token(backbone, self.rows, self.prompt, self.prompt, cache)
        return _size(cache)


@dataclass(frozen=True)
class Continuing:
    """The last token of `rows` answers: the KV cache is at its largest, and each layer's is written anew."""

    rows: int
    prompt: int
    response: int
    role: str

    def __call__(self, backbone: Backbone, setup: Setup, meter: Meter) -> int:
        """Runs it."""
        backbone.eval()
        made = DynamicCache(config=backbone.config)
        width = self.prompt + self.response
        with torch.no_grad(), backbone.role(self.role), precision(setup):
            _token(backbone, 1, 1, 1, made)
            cache = DynamicCache(config=backbone.config)
            for number, layer in enumerate(made.layers):
                shape = (self.rows, layer.keys.size(1), width - 2, layer.keys.size(3))
                cache.update(layer.keys.new_zeros(shape), layer.values.new_zeros(shape), number)
            del made, layer
            meter.start()
            _token(backbone, self.rows, 1, width - 1, cache)
        return _size(cache)


def _token(backbone: Backbone, rows: int, new: int, width: int, cache: DynamicCache) -> None:
    """A pass over `new` tokens a row and a draw of the next, as `rollout.sample` makes them."""
    ids = torch.zeros(rows, new, dtype=torch.long)
    hidden = backbone.decoder(
        input_ids=ids,
        attention_mask=torch.ones(rows, width, dtype=torch.long),
        position_ids=torch.zeros_like(ids),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]
    draw(backbone.next_token_logits(hidden), 1.0, None)


def _size(cache: DynamicCache) -> int:
    return sum(t.untyped_storage().nbytes() for layer in cache.layers for t in (layer.keys, layer.values))
