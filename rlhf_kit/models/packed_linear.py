"""Linear layers whose matrices stand in the order in which a CPU multiplies few rows by them quickest.

`F.linear` has oneDNN put the matrix in order for each product anew, on one core: with the few rows of a decoding step
that is most of its time. Here it is put in order once for many products, by the operators that `torch.compile` uses for
models that do not learn. In bfloat16 the results are the same to the bit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The attribute of a layer that holds its matrix in order: no module, no parameter, nothing that is saved.
_PACKED = "_rlhf_kit_packed"
_ROWS = 16  # what the order is chosen for; it was found to be the same from 1 to 1,024 rows


def product(layer: nn.Linear, x: Tensor) -> Tensor:
    """What the layer makes of x (..., in): (..., out)."""
    packed = vars(layer).get(_PACKED)
    if packed is None or x.dtype != packed.dtype or torch.is_grad_enabled() or _casts(x):
        return F.linear(x, layer.weight, layer.bias)
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, layer.bias, "none", [], "")
    return made


def _casts(x: Tensor) -> bool:
    """Whether autocast would compute with something else."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != x.dtype


@contextlib.contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Within, passes without gradients use packed copies of the matrices of plain linear layers: as much memory again
    as these have. Nobody may write to them meanwhile. LoRA's own matrices are left out, and so is whatever is not on
    a CPU, quantised, sharded or hooked; within another `packed` nothing more is done.
    """
    layers = [layer for name, layer in model.named_modules() if "lora_" not in name and _can_be_packed(layer)]
    for layer in layers:
        vars(layer)[_PACKED] = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
        layer.forward = MethodType(product, layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)[_PACKED], vars(layer)["forward"]


def is_plain(layer: nn.Module) -> bool:
    """Whether calling the layer does what a linear layer does and no more (no offloading, sharding, quantisation)."""
    own = vars(layer)
    return type(layer) is nn.Linear and not (
        ("forward" in own and _PACKED not in own)
        or own["_forward_pre_hooks"]
        or own["_forward_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )


def _can_be_packed(layer: nn.Module) -> bool:
    if not is_plain(layer) or _PACKED in vars(layer):
        return False
    weight = layer.weight
    on_cpu = type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.numel() > 0
    return on_cpu and _packs(weight.dtype)


@functools.cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this machine, multiplies packed matrices of the dtype rightly."""
    if dtype not in (torch.bfloat16, torch.float32) or not torch.backends.mkldnn.is_available():
        return False
    matrix = torch.linspace(-1, 1, 48 * 32).view(48, 32).to(dtype)
    x = torch.linspace(1, -1, 3 * 32).view(3, 32).to(dtype)
    try:
        with torch.no_grad():
            ordered = torch.ops.mkldnn._reorder_linear_weight(matrix, _ROWS)
            found = torch.ops.mkldnn._linear_pointwise(x, ordered, None, "none", [], "")
    except (AttributeError, RuntimeError):  # not compiled in, or refused on this CPU
        return False
    return torch.allclose(found.float(), F.linear(x, matrix).float(), rtol=1e-2, atol=1e-3)
