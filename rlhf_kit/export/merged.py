"""A whole model: the base with the adapter added to its weights, verified."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_kit.errors import ExportError
from rlhf_kit.export.comparison import POSITIONS, Limit, Reference, judge, logits_of, own_answers, refer
from rlhf_kit.export.source import Source
from rlhf_kit.export.trained import TRAINED, Mixture, load_trained
from rlhf_kit.models import Backbone
from rlhf_kit.recipe import ModelSection

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Calibrated by benchmarks/calibrate_export.py; what was measured stands in benchmarks/RESULTS.md.
LIMITS = {
    "float32": Limit(max_difference=1e-4),
    "float16": Limit(top1_agreement=0.995, mean_kl=1e-4),
    "bfloat16": Limit(top1_agreement=0.96, mean_kl=5e-3),
}

# Of the model, a file at most: a push that breaks off sends the file again in which it was.
_SHARES = 32
_SMALLEST = 100_000_000
_LARGEST = 2_000_000_000
# Of a matrix, cast at once.
_ROWS = 4096


def export_merged(
    source: Source, out: Path, *, dtype: str | None, mixture: Mixture | None = None, positions: int = POSITIONS
) -> dict[str, Any]:
    """Writes the merged model and its tokenizer to `out`, reloads it with transformers, and compares logits.

    Args:
        out: an empty directory; what is in it counts only if this function returns.
        dtype: of the weights, one of `DTYPES`; where it is left out, that of the base in training.

    Returns:
        What was measured.

    Raises:
        ExportError: the reloaded model differs from the trained one, or the adapter changes nothing.
        CheckpointError: the trained adapter is damaged.
    """
    dtype = dtype or source.model.dtype
    reference = write_merged(source, out, DTYPES[dtype], mixture, positions)
    reloaded = reload(out, source.model)
    found = reference.compare(logits_of(reloaded, reloaded, reference.answers, _computed(DTYPES[dtype])))
    return judge(out, reference, found, LIMITS[dtype], loader="transformers") | {"dtype": dtype}


def write_merged(
    source: Source, out: Path, dtype: torch.dtype, mixture: Mixture | None, positions: int = POSITIONS
) -> Reference:
    """The merged model in `out`, and what it is to be compared with. Never more than one model in memory."""
    backbone = load_trained(source, mixture)
    reference = refer(backbone, TRAINED, own_answers(backbone, TRAINED, positions), out, _computed(dtype))
    backbone.tokenizer.save_pretrained(out)
    model = merge(backbone, dtype)
    del backbone
    save(model, out)
    del model
    gc.collect()
    return reference


def _computed(dtype: torch.dtype) -> torch.dtype:
    """The precision of a comparison. In float32 the order of the sums alone, W x + B A x or (W + B A) x, moves logits
    by 1e-4 (measured)."""
    return torch.float64 if dtype == torch.float32 else torch.float32


def merge(backbone: Backbone, dtype: torch.dtype) -> PreTrainedModel:
    """The base with the adapter `TRAINED` in its weights; the backbone is of no use afterwards.

    Each layer's sum is made in float32 and rounded once. PEFT's own is rounded to the base's precision, and again to
    `dtype` where that is another one; with `safe_merge` the update is rounded by itself before.

    Raises:
        ExportError: a weight is beyond what `dtype` holds.
    """
    for layer in (m for m in backbone.base.modules() if isinstance(m, BaseTunerLayer)):
        weight = layer.get_base_layer().weight
        original = weight.data
        weight.data = original.float()
        layer.merge(adapter_names=[TRAINED])
        weight.data = _cast(weight.data, dtype, original)
    model: PreTrainedModel = backbone.peft.base_model.unload()
    for name, parameter in model.named_parameters():
        if parameter.dtype != dtype:
            parameter.data = _cast(parameter.data, dtype, parameter.data)
        if not torch.isfinite(torch.stack(parameter.data.aminmax())).all():  # isfinite alone needs half the weights
            raise ExportError(f"{name}: the merged weights are not finite in {dtype}; export in bfloat16 or float32")
    return model


def _cast(new: Tensor, dtype: torch.dtype, old: Tensor) -> Tensor:
    """`new` in `dtype` and in the memory of `old`, where it has room: a loaded model's weights are a mapped file, which
    stays mapped as a whole as long as one of them is in use, so that new tensors would be a second model in memory."""
    if old.element_size() != dtype.itemsize or not old.is_contiguous():
        return new.to(dtype)
    cast = old.view(dtype)
    for to, rows in zip(cast.split(_ROWS), new.split(_ROWS), strict=True):
        to.copy_(rows.to(dtype))
    return cast


def save(model: PreTrainedModel, out: Path) -> None:
    """Weights and configuration; a large model in several files."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(out, max_shard_size=min(max(size // _SHARES, _SMALLEST), _LARGEST))


def refuse_strays(out: Path, report: dict[str, Any]) -> None:
    """Looks at what transformers reports of a loaded model.

    Raises:
        ExportError: weights are missing, or are none of the model's.
    """
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"], *map(str, report["mismatched_keys"])})
    if wrong:
        raise ExportError(f"{out}: reloaded, weights are missing or are none of the model's: {', '.join(wrong[:3])}")


def reload(out: Path, model: ModelSection) -> PreTrainedModel:
    """The written model as anyone loads it, in the precision that it was written in.

    Raises:
        ExportError: weights are missing, or are none of the model's.
    """
    wanted = json.loads((out / "config.json").read_text(encoding="utf-8")).get("dtype")
    found, report = AutoModelForCausalLM.from_pretrained(
        out,
        dtype="auto",
        attn_implementation=model.attn_implementation,  # else another kernel's rounding is compared too
        use_safetensors=True,
        trust_remote_code=model.trust_remote_code,
        output_loading_info=True,
    )
    refuse_strays(out, report)
    if str(found.dtype) != f"torch.{wanted}":
        raise ExportError(f"{out}: written in {wanted}, but loaded in {found.dtype}")
    return found.eval()
