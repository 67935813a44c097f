"""Bytes of what a stage keeps: the base, quantised or not, adapters and heads, gradients, the optimiser's state."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from rlhf_kit.errors import Problem, RecipeError
from rlhf_kit.models import Backbone
from rlhf_kit.planning.setup import Setup, parameters
from rlhf_kit.planning.sharing import FLOAT, Kept

__all__ = ["Weights", "optimizer_bytes", "weights_of"]

# bitsandbytes' nf4 with double quantisation (arXiv 2305.14314, section 3): a byte of scale for each 64 weights, and a
# float32 for each 256 of these scales.
_BLOCK, _SCALES = 64, 256
# Of its 8-bit optimisers: two moments of a byte, each with a float32 scale for 256 values.
_STATE_BLOCK = 256
_ADAM = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw_anyprecision", "paged_adamw_32bit")
_EIGHT = ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "lion_8bit", "paged_lion_8bit")


@dataclass(frozen=True)
class Weights:
    """The whole model of a stage.

    Attributes:
        parameters: by role.
        trained: how many learn.
        base: bytes of the base as it is kept.
        frozen: bytes of adapters and heads, those that learn too.
        layer: bytes of the largest decoder layer of the base.
        outside: bytes of the base outside its decoder layers.
        largest: weights of the largest linear layer, which a quantised one unpacks when it computes.
    """

    parameters: dict[str, int]
    trained: int
    base: int
    frozen: int
    layer: int
    outside: int
    largest: int


# Building the whole model takes long, and few of the changes that are tried make another one.
_KNOWN: dict[str, Weights] = {}


def weights_of(setup: Setup) -> Weights:
    """Counted on the whole model, on the meta device; once."""
    key = repr(replace(setup, autocast=False, checkpointing=False, inputs_learn=False))  # these change no weights
    if key not in _KNOWN:
        _KNOWN[key] = _counted(setup)
    return _KNOWN[key]


def _counted(setup: Setup) -> Weights:
    backbone = setup.build()
    roles = parameters(backbone)
    others = {id(p) for name in backbone.adapters for p in backbone.adapter_parameters(name)}
    layers = next((m for m in backbone.decoder.modules() if isinstance(m, nn.ModuleList)), nn.ModuleList())
    each = [_bytes(layer, others, setup) for layer in layers]
    base = _bytes(backbone.base, others, setup)
    linears = [m.weight.numel() for layer in layers for m in layer.modules() if isinstance(m, nn.Linear)]
    return Weights(
        parameters=roles,
        trained=sum(p.numel() for p in backbone.parameters() if p.requires_grad),
        base=base,
        frozen=sum(p.numel() * p.element_size() for p in _own(backbone, others)),
        layer=max(each, default=base),
        outside=base - sum(each),
        largest=max(linears, default=0),
    )


def _own(backbone: Backbone, adapters: set[int]) -> list[nn.Parameter]:
    heads = {id(p) for head in backbone.heads.values() for p in head.parameters()}
    return [p for p in backbone.parameters() if id(p) in adapters | heads]


def _bytes(module: nn.Module, others: set[int], setup: Setup) -> int:
    """Of a part of the base; bitsandbytes takes every linear layer but the output."""
    packed: set[int] = set()
    total = 0
    if setup.quantization is not None:
        for name, part in module.named_modules():
            if (
                isinstance(part, nn.Linear)
                and not name.endswith(("lm_head", "embed_out"))
                and id(part.weight) not in others
            ):
                packed.add(id(part.weight))
                total += _quantized(part.weight, setup.quantization)
    seen = {id(p): p for p in module.parameters() if id(p) not in others | packed}
    return total + sum(p.numel() * p.element_size() for p in seen.values())


def _quantized(weight: nn.Parameter, quantization: str) -> int:
    """Of a matrix (out, in): nf4 with its scales, or int8 with a float32 scale a row."""
    count = weight.numel()
    if quantization == "8bit":
        return count + FLOAT * weight.size(0)
    blocks = -(-count // _BLOCK)
    return -(-count // 2) + blocks + FLOAT * -(-blocks // _SCALES)


def optimizer_bytes(trained: int, optim: str, field: str) -> tuple[int, bool]:
    """Bytes of the optimiser's state, and whether it is paged to the machine's memory.

    Raises:
        RecipeError: an optimiser whose state is not known here.
    """
    if optim in _ADAM:
        return 2 * FLOAT * trained, optim.startswith("paged")
    if optim in _EIGHT:
        moments = 1 if "lion" in optim else 2
        return moments * (trained + FLOAT * -(-trained // _STATE_BLOCK)), optim.startswith("paged")
    if optim == "sgd":
        return 0, False
    known = ", ".join(("sgd", *_ADAM, *_EIGHT))
    raise RecipeError([Problem("recipe", field, f"{optim}: what it keeps is not known to plan; it knows {known}")])


def kept(weights: Weights, optim: str, field: str, *, learns: bool = True) -> Kept:
    """What one device alone keeps: float32 gradients and moments of what learns."""
    state, paged = optimizer_bytes(weights.trained if learns else 0, optim, field)
    return Kept(
        base=weights.base,
        adapters=weights.frozen,
        gradients=FLOAT * weights.trained if learns else 0,
        optimizer=0 if paged else state,
        gathered=0,
        host=state if paged else 0,
    )
