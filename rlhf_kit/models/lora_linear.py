"""PEFT's LoRA linear layers with fewer passes over memory: the same function, module tree and parameters.

PEFT's own forward casts the input and both matrices, multiplies, scales and adds, each into a tensor of its own that
the backward pass keeps. Here the low-rank product is added by the matrix multiplication itself, and only x and x A^T
are kept. Whatever is not the plain case (dropout, variants, several adapters at once, merged or quantised weights,
hooks) is left to PEFT.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from types import MethodType
from typing import Any

import torch
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rlhf_kit.models.packed_linear import is_plain, product

_shorter: ContextVar[bool] = ContextVar("shorter", default=True)

# The attribute of a PEFT layer that holds its matrices in the dtype of the computation: no module, no parameter.
_COPIES = "_rlhf_kit_copies"


class _LoraLinear(torch.autograd.Function):
    """y = x W^T + bias + s (x A^T) B^T of rows x (N, in); A (r, in) and B (out, r) may be wider than x and W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float) -> Tensor:
        a_copy, b_copy = a.to(x.dtype), b.to(x.dtype)
        low = x @ a_copy.T
        ctx.save_for_backward(x, low, weight, a_copy, b_copy)
        ctx.scaling, ctx.dtypes = s, (a.dtype, b.dtype)
        return F.linear(x, weight, bias).addmm_(low, b_copy.T, alpha=s)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, a, b = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        grad_x = grad_a = grad_b = None
        if needs_x or needs_a:
            grad_low = grad @ b
            if needs_x:
                grad_x = (grad @ weight).addmm_(grad_low, a, alpha=ctx.scaling)
            if needs_a:
                grad_a = (grad_low.T @ x).to(ctx.dtypes[0]).mul_(ctx.scaling)
        if needs_b:
            grad_b = (grad.T @ low).to(ctx.dtypes[1]).mul_(ctx.scaling)
        return grad_x, None, None, grad_a, grad_b, None


def fuse(layer: BaseTunerLayer) -> None:
    """Gives a layer of PEFT the shorter forward, where it is a LoRA layer over a plain linear one."""
    if type(layer) is lora.Linear and type(layer.base_layer) is nn.Linear and _COPIES not in vars(layer):
        setattr(layer, _COPIES, {})
        layer.forward = MethodType(_forward, layer)  # bound, so that a deep copy is bound to its own layer


@contextlib.contextmanager
def as_peft() -> Iterator[None]:
    """PEFT's own forward inside: for what is compared with a model that PEFT alone has loaded.

    In bfloat16 the two round differently (logits of SmolLM2 by up to 0.6), each about as far from float32 as the other.
    """
    token = _shorter.set(False)
    try:
        yield
    finally:
        _shorter.reset(token)


def _forward(self: lora.Linear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    # Fused optimisers (torch's AdamW, all of bitsandbytes) write parameters without counting up their version. What
    # they may change has been through a forward with gradients, so such a forward forgets the copies.
    grad = torch.is_grad_enabled()
    copies = vars(self)[_COPIES]
    if grad:
        copies.clear()
    plain = _plain_matrices(self, x) if _shorter.get() and not (args or kwargs) else None
    if plain is None:
        return lora.Linear.forward(self, x, *args, **kwargs)
    name, base, a, b = plain
    if not grad:
        a, b = _copy(copies, name + "/A", a, x.dtype), _copy(copies, name + "/B", b, x.dtype)
        return _without_gradient(base, a.T, b.T, self.scaling[name], x)
    y: Tensor = _LoraLinear.apply(x.reshape(-1, x.size(-1)), base.weight, base.bias, a, b, self.scaling[name])
    return y.view(*x.shape[:-1], y.size(-1))


def _without_gradient(base: nn.Linear, a: Tensor, b: Tensor, s: float, x: Tensor) -> Tensor:
    """x W^T + bias + s (x a) b of x (..., in), with the transposed matrices a (in, r) and b (r, out)."""
    rows = x.reshape(-1, x.size(-1))
    y = product(base, rows).addmm_(rows @ a, b, alpha=s)
    return y.view(*x.shape[:-1], y.size(-1))


@contextlib.contextmanager
def settled(layers: Iterable[BaseTunerLayer], dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Within, passes without gradients under one role, which nobody changes: which forward a layer takes, and its
    matrices in `dtype`, are found out once and not for each token."""
    probe, own = torch.empty(0, dtype=dtype, device=device), dict[int, tuple[BaseTunerLayer, Any]]()
    for layer in layers:
        if _COPIES not in vars(layer) or not _shorter.get() or (plain := _plain_matrices(layer, probe)) is None:
            continue
        name, base, a, b = plain
        own[id(layer)] = layer, vars(layer)["forward"]
        layer.forward = partial(_settled, layer, base, a.to(dtype).T, b.to(dtype).T, layer.scaling[name])
    try:
        yield
    finally:
        for layer, forward in own.values():
            layer.forward = forward


def _settled(layer: lora.Linear, base: nn.Linear, a: Tensor, b: Tensor, s: float, x: Tensor, **kwargs: Any) -> Tensor:
    if x.dtype != a.dtype or kwargs:
        return _forward(layer, x, **kwargs)
    return _without_gradient(base, a, b, s, x)


def _plain_matrices(layer: lora.Linear, x: Tensor) -> tuple[str, nn.Linear, Tensor, Tensor] | None:
    """The one active adapter, the base layer, A and B where the shorter forward is PEFT's own up to rounding; None
    where it may not be."""
    # By the attributes behind PEFT's properties, and by `vars`: a decoding step asks hundreds of times, and modules
    # look their children up slowly.
    own, parts = vars(layer), vars(layer)["_modules"]
    active = own["_active_adapter"]
    name = active[0] if type(active) is list and len(active) == 1 else active
    if own["_disable_adapters"] or own["merged_adapters"] or type(name) is not str:
        return None
    if (a := parts["lora_A"]._modules.get(name)) is None:
        return None
    base, b, dropout = parts["base_layer"], parts["lora_B"]._modules[name], parts["lora_dropout"]._modules[name]
    if not (is_plain(base) and is_plain(a) and is_plain(b)):
        return None
    weight, bias, kind, dtype = base.weight, base.bias, x.device.type, x.dtype
    autocast = torch.is_autocast_enabled(kind)
    plain = (
        dtype == weight.dtype
        and (torch.get_autocast_dtype(kind) == dtype if autocast else a.weight.dtype == b.weight.dtype == dtype)
        and not weight.requires_grad
        and (bias is None or (bias.dtype == dtype and not bias.requires_grad))
        and (type(dropout) is nn.Identity or not dropout.training or dropout.p == 0.0)
        and name not in own["lora_variant"]
        and not own["lora_bias"][name]
        and not torch.compiler.is_compiling()
    )
    return (name, base, a.weight, b.weight) if plain else None


def _copy(copies: dict[str, Any], key: str, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix in this dtype, the one of last time where nothing has been written to it since."""
    if matrix.dtype == dtype:
        return matrix
    state = (matrix._version, matrix.data_ptr(), dtype)
    kept = copies.get(key)
    if kept is None or kept[0] is not matrix or kept[1] != state:
        kept = copies[key] = (matrix, state, matrix.detach().to(dtype))
    copy: Tensor = kept[2]
    return copy
