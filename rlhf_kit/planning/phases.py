"""The steps of the stages on fake tensors: the same calls as in the trainers, with sizes in the place of data."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache
from trl.trainer.utils import add_fused_lm_head

from rlhf_kit import rl
from rlhf_kit.batches import Sequences
from rlhf_kit.models import Backbone
from rlhf_kit.models.lora_linear import as_peft
from rlhf_kit.packing import PackedRows
from rlhf_kit.planning.meter import Event, Meter
from rlhf_kit.planning.setup import Setup, as_fake
from rlhf_kit.rewards import outputs_of
from rlhf_kit.rollout import draw

__all__ = [
    "TILE",
    "Continuing",
    "Judging",
    "Learning",
    "Measured",
    "Phase",
    "Probing",
    "Ranked",
    "Reading",
    "Supervised",
    "Update",
    "measure",
]

# What TRL's SFTTrainer asks its head for.
_OUTPUTS = ("log_probs", "entropy", "is_top1")
TILE = (4096, 32768)
"""Tokens and vocabulary of the logits that this head holds at a time (trl/kernels/chunked_logprob.py, SFTTrainer)."""


@dataclass(frozen=True)
class Measured:
    """A phase on a model of some layers.

    Attributes:
        parts: bytes at the worst moment, without weights, gradients and optimiser.
        flops: of the whole phase.
        events: what was taken and given back, where it was recorded.
        cache: bytes of the KV cache when the phase ends.
    """

    parts: dict[str, int]
    flops: int
    cache: int = 0
    events: tuple[Event, ...] = ()


class Phase(Protocol):
    """A step that is run on fake tensors; two that print alike are the same."""

    def __call__(self, backbone: Backbone, setup: Setup, meter: Meter) -> int:
        """Runs it; returns the bytes of the KV cache that it leaves."""
        ...


def measure(setup: Setup, layers: list[str], phase: Phase, *, record: bool = False) -> Measured:
    """Runs a phase on a model of layers of these kinds."""
    backbone = setup.build(layers)
    with _counting(backbone, setup, record) as meter:
        cache = phase(backbone, setup, meter)
    parts = {kind: size for kind, size in meter.peak.items() if kind != "held"}
    return Measured(parts, meter.flops, cache, tuple(meter.events or ()))


@contextlib.contextmanager
def _counting(backbone: Backbone, setup: Setup, record: bool) -> Iterator[Meter]:
    vocabulary = backbone.config.get_text_config().vocab_size
    widths = frozenset({vocabulary, TILE[1], vocabulary % TILE[1]} if vocabulary > TILE[1] else {vocabulary})
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # The kit's LoRA layers look at where a matrix stands; nowhere is an answer too.
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        stack.enter_context(FakeTensorMode())
        meter = stack.enter_context(Meter(widths, record=record))
        as_fake(backbone)
        if setup.quantization is not None:  # its layers are no plain ones, so that PEFT's own forward runs
            stack.enter_context(as_peft())
        for parameter in backbone.parameters():
            meter.call(parameter, "held")
            if parameter.requires_grad:  # so that a gradient takes no memory while the peak is looked for
                parameter.grad = torch.zeros_like(parameter)
                meter.call(parameter.grad, "held")
        for buffer in backbone.buffers():
            meter.call(buffer, "held")
        meter.start()
        yield meter


def precision(setup: Setup) -> torch.autocast:
    """The autocast of the trainers."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=setup.autocast)


# -------------------------------------------------------------------- SFT and the reward model


@dataclass(frozen=True)
class Supervised:
    """Forward and backward pass of TRL's SFTTrainer over (rows, width) tokens."""

    rows: int
    width: int

    def __call__(self, backbone: Backbone, setup: Setup, meter: Meter) -> int:
        """Runs it."""
        add_fused_lm_head(backbone.base, outputs=_OUTPUTS)
        _prepare(backbone, setup)
        ids = torch.zeros(self.rows, self.width, dtype=torch.long)
        with backbone.role(setup.trained[0]):
            with precision(setup), meter.saving():
                said = backbone.peft(
                    input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False, fused_lm_head=True
                )
                loss = -said.log_probs.sum() / ids.numel()
            loss.backward()
        return 0


@dataclass(frozen=True)
class Ranked:
    """Forward and backward pass of the reward model's trainer.

    Attributes:
        rows: of the batch, each `width` tokens wide.
        answers: N, whose scores are read.
        packed: the answers to a prompt share a row.
    """

    rows: int
    width: int
    answers: int
    packed: bool

    def __call__(self, backbone: Backbone, setup: Setup, meter: Meter) -> int:
        """Runs it."""
        _prepare(backbone, setup)
        ids = torch.zeros(self.rows, self.width, dtype=torch.long)
        places = torch.zeros(self.answers, dtype=torch.long)
        batch: PackedRows | Sequences
        if self.packed:
            batch = PackedRows(ids, ids.clone(), ids.clone(), ids.clone(), places, places.clone())
        else:
            batch = Sequences(ids, torch.ones_like(ids, dtype=torch.bool), max(1, self.width // 2))
        (name,) = setup.trained
        with backbone.role(name):
            with precision(setup), meter.saving():
                loss = outputs_of(backbone, batch, name).sum()
            loss.backward()
        return 0


def _prepare(backbone: Backbone, setup: Setup) -> None:
    if setup.checkpointing:
        backbone.use_checkpointing()
        if setup.inputs_learn:
            backbone.peft.enable_input_require_grads()
    backbone.train()


# -------------------------------------------------------------------- PPO


@dataclass(frozen=True)
class Update:
    """One forward pass of PPO's training: `rows` answers of `response` tokens to prompts of `prompt` tokens."""

    rows: int
    prompt: int
    response: int

    def batch(self) -> Sequences:
        """Its sequences."""
        ids = torch.zeros(self.rows, self.prompt + self.response, dtype=torch.long)
        return Sequences(ids, torch.ones_like(ids, dtype=torch.bool), self.response)

    def numbers(self) -> Tensor:
        """(B, R) float32, such as advantages."""
        return torch.zeros(self.rows, self.response)


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
        _prepare(backbone, setup)
        batch, old = self.update.batch(), self.update.numbers()
        with backbone.role(self.role):
            with precision(setup), meter.saving():
                states = batch.before_response(backbone(batch.input_ids, batch.attention_mask))
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
        batch = self.update.batch()
        with torch.no_grad(), backbone.role(self.role), precision(setup):
            states = batch.before_response(backbone(batch.input_ids, batch.attention_mask))
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
