"""A base in 4 or 8 bit, by bitsandbytes, that computes the same whether it evaluates or trains.

PPO samples and scores in one mode and learns in the other, and divides the probabilities of the two. bitsandbytes has
other kernels for each, and nothing says so; `settle` leaves one for both.
"""

from __future__ import annotations

import sys
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import BitsAndBytesConfig, PreTrainedModel

from rlhf_kit.errors import ModelError
from rlhf_kit.recipe import ModelSection

_BITS = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}


def quantization_config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """bitsandbytes' settings for `model.quantization`: 4bit is QLoRA's nf4 with double quantisation (arXiv 2305.14314).

    Args:
        dtype: of the computation.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as missing:
        raise ModelError("model.quantization needs bitsandbytes: pip install 'rlhf-kit[quant]'") from missing
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def settle(base: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Gives the layers of bitsandbytes one way to compute, in place; a model without any stays as it is.

    Args:
        dtype: in which layers of 4 bit multiply; where it is left out, as they were made. Weights that were quantised
            before they were published bring another one with them.

    4 bit: on CPUs with AVX-512 BF16 the first evaluation packs the weights anew. Training then runs on the packed ones,
    with wrong gradients (their cosine with the right ones was 0.14), and there is no error.

    8 bit: evaluation also rounds what goes into a layer to 8 bit, but for the columns that are large somewhere in the
    batch, and training on a CPU does not. Measured on SmolLM2-135M, log-probabilities of the two differed by up to
    1.4 nats a token, and those of a row by up to 2.7 with the rows beside it. Here the weights alone have 8 bit, in
    both, and a row does not depend on its batch. It is also what an export is made of, and without the warning that
    bitsandbytes logs with every product.
    """
    bitsandbytes: Any = sys.modules.get("bitsandbytes")
    if bitsandbytes is None:  # then no layer can be one of its
        return
    for module in base.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype = dtype or module.compute_dtype
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt) and not module.state.has_fp16_weights:
            # Both name the matrix once more, and would keep it whole where each device has a part of it.
            module.weight.CB = module.state.CB = None
            module.forward = MethodType(_forward, module)  # bound, so that a deep copy is bound to its own layer


def leave_file(base: PreTrainedModel) -> None:
    """Gives the weights that are not quantised (embeddings, norms) memory of their own, in place.

    Loaded weights are views of a mapped file, which stays in memory as a whole as long as one of them is in use: a base
    of 0.7 billion parameters held its 1.4 GB in bfloat16 beside 0.5 GB in nf4 (measured).
    """
    for tensor in (*base.parameters(), *base.buffers()):
        if tensor.device.type == "cpu" and tensor.is_floating_point():
            tensor.data = tensor.data.clone()


def check_loaded(base: PreTrainedModel, model: ModelSection) -> None:
    """Looks whether a loaded base is quantised as the recipe says.

    Raises:
        ModelError: its weights were quantised before it was published and the recipe does not say so, or says
            otherwise; or it has no layer that bitsandbytes quantises.
    """
    if model.quantization is None:
        found = getattr(base, "quantization_method", None)
        if found is not None:
            raise ModelError(
                f"{model.name_or_path}: its weights are quantised already ({getattr(found, 'value', found)}). Set "
                "model.quantization to 4bit or 8bit if that is by bitsandbytes, or name the original weights"
            )
        return
    import bitsandbytes

    if not any(isinstance(m, getattr(bitsandbytes.nn, _BITS[model.quantization])) for m in base.modules()):
        raise ModelError(
            f"{model.name_or_path}: model.quantization: {model.quantization} has quantised nothing in it: its weights "
            "are quantised in another way already, or its layers are of a kind that bitsandbytes does not know"
        )


class _Int8Linear(torch.autograd.Function):
    """y = (x Q^T) * scale + bias of x (..., in), the int8 matrix Q (out, in) and a float32 scale (out,) for its rows.

    Integers up to 127 are exact in bfloat16, so only the product is rounded. bitsandbytes' own for training scales the
    matrix first, which rounds it too, takes up to 16 times as long (16 rows, 4096 x 2048), and keeps x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, scale)
        ctx.dtype, kind = x.dtype, x.device.type
        matrix = q.data.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype)
        if matrix.dtype == torch.float16:  # whose largest number is 65504
            matrix, scale = matrix.mul_(2**-7), scale * 2**7
        y = F.linear(x, matrix).mul_(scale)
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, scale = ctx.saved_tensors
        scaled = (grad * scale).to(grad.dtype)
        return (scaled @ q.data.to(grad.dtype)).to(ctx.dtype), None, None, None


def _forward(self: Any, x: Tensor) -> Tensor:
    scales = self.weight.SCB if self.state.SCB is None else self.state.SCB
    y: Tensor = _Int8Linear.apply(x, self.weight, scales.to(x.device) / 127, self.bias)
    return y
