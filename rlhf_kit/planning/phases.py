"""Steps on fake tensors, the same calls as in the trainers with sizes in the place of data: how they are measured, and
those of SFT and the reward model."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from trl.trainer.utils import add_fused_lm_head

from rlhf_kit.batches import Sequences
from rlhf_kit.models import Backbone
from rlhf_kit.models.lora_linear import as_peft
from rlhf_kit.packing import PackedRows
from rlhf_kit.planning.meter import Event, Meter
from rlhf_kit.planning.setup import Setup, as_fake
from rlhf_kit.rewards import outputs_of

__all__ = ["TILE", "Measured", "Phase", "Ranked", "Supervised", "measure", "precision", "prepare"]

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
        prepare(backbone, setup)
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
        prepare(backbone, setup)
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


def prepare(backbone: Backbone, setup: Setup) -> None:
    """As the trainers have it before a step."""
    if setup.checkpointing:
        backbone.use_checkpointing()
        if setup.inputs_learn:
            backbone.peft.enable_input_require_grads()
    backbone.train()
