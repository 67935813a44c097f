"""A model computed in a higher precision than its weights have, in the memory that it has plus one layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

# Rows of the output matrix that are cast at once: of a large vocabulary the whole is a good part of the model.
_ROWS = 2048


@contextlib.contextmanager
def computed_in(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Inside, each layer's weights are cast up to `dtype` as they are reached and put back behind it.

    A comparison of weights must not be blurred by the rounding of the computation, which at bfloat16 moves logits by
    up to 0.6 and at float32 by 1e-4 (measured on SmolLM2-135M); and a whole copy in float32 is twice a model in
    bfloat16. Casting up and putting the old tensor back loses nothing. Without gradients, and not by several threads
    of Python at once.

    Args:
        model: the causal language model itself, with PEFT's layers in it or not; a quantised one is dequantised first.
        dtype: float32 or float64.
    """
    head = model.get_output_embeddings()
    plain_head = type(head) is nn.Linear and _is_lower(head.weight, dtype)
    handles, kept = [], dict[nn.Module, dict[str, Tensor]]()
    casting = [m for m in model.modules() if isinstance(m, BaseTunerLayer) and m.cast_input_dtype_enabled]
    for layer in casting:
        layer.cast_input_dtype_enabled = False  # PEFT would cast down to what the adapter's weights have at rest
    for module in model.modules():
        if type(module) is nn.Embedding or _scale(module) is not None:
            handles.append(module.register_forward_hook(_looked_up(dtype)))
        elif any(_is_lower(p, dtype) for p in module.parameters(recurse=False)) and not (module is head and plain_head):
            handles.append(module.register_forward_pre_hook(_up(kept, dtype)))
            handles.append(module.register_forward_hook(_back(kept)))
    if plain_head:
        head.forward = lambda hidden: _linear(head, hidden, dtype)
    try:
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module in list(kept):  # after a forward that was cut off
            _put_back(kept, module)
        for layer in casting:
            layer.cast_input_dtype_enabled = True
        if plain_head:
            del head.forward


def cast_to_float32(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, as if it had been loaded in float32: its weights as they are, and nothing else rounded."""
    for module in model.float().modules():
        if (scale := _scale(module)) is not None:
            module.get_buffer("embed_scale").fill_(scale)
    return model


def _is_lower(parameter: nn.Parameter, dtype: torch.dtype) -> bool:
    return parameter.is_floating_point() and parameter.element_size() < dtype.itemsize


def _scale(module: nn.Module) -> float | None:
    """What Gemma multiplies its embeddings with. transformers rounds it with the weights: 33.94 is 34 in bfloat16."""
    return getattr(module, "scalar_embed_scale", None)


def _looked_up(dtype: torch.dtype) -> Any:
    """The rows that an embedding gives, cast up; the whole is a good part of the model."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        scale = _scale(module)
        return output.to(dtype) if scale is None else F.embedding(*inputs, module.weight).to(dtype) * scale

    return hook


def _up(kept: dict[nn.Module, dict[str, Tensor]], dtype: torch.dtype) -> Any:
    def hook(module: nn.Module, inputs: Any) -> None:
        kept[module] = {name: p.data for name, p in module.named_parameters(recurse=False) if _is_lower(p, dtype)}
        for name, data in kept[module].items():
            module.get_parameter(name).data = data.to(dtype)

    return hook


def _back(kept: dict[nn.Module, dict[str, Tensor]]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        _put_back(kept, module)

    return hook


def _put_back(kept: dict[nn.Module, dict[str, Tensor]], module: nn.Module) -> None:
    for name, data in kept.pop(module, {}).items():
        module.get_parameter(name).data = data


def _linear(head: nn.Linear, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """The head's logits, some rows of its matrix at a time."""
    logits = hidden.new_empty((*hidden.shape[:-1], head.out_features), dtype=dtype)
    for part, rows in zip(logits.split(_ROWS, -1), head.weight.split(_ROWS), strict=True):
        part.copy_(F.linear(hidden.to(dtype), rows.to(dtype)))
    return logits if head.bias is None else logits.add_(head.bias.to(dtype))
