"""The trained model as it stands in its run directory, or several adapters weighted into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from rlhf_kit.errors import ExportError
from rlhf_kit.export.source import SCORED, Source
from rlhf_kit.models import Backbone, load_base, load_tokenizer
from rlhf_kit.models.loading import base_id, resolve_dtype
from rlhf_kit.models.probe import PROBE_FILE, Probe
from rlhf_kit.recipe import ModelSection

TRAINED = "trained"

# Largest difference of a logit between the model at the end of its training and the adapter read from its directory.
# The same kernels on the same numbers agree to the last bit; another thread count or batch shape may not.
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}


@dataclass(frozen=True)
class Mixture:
    """Adapters weighted into one by PEFT's `add_weighted_adapter`.

    Attributes:
        others: directories of adapters, each in PEFT's layout.
        weights: of the run's own adapter, then of the others.
        method: PEFT's `combination_type`. `cat` is the weighted sum of the updates itself, of any ranks; `linear` and
            what builds on it sum the factors, which is another update.
        density: the share of values that the ties, dare and magnitude_prune methods keep.
    """

    others: tuple[Path, ...]
    weights: tuple[float, ...]
    method: str = "cat"
    density: float | None = None


def load_trained(source: Source, mixture: Mixture | None = None) -> Backbone:
    """The base with the adapter `TRAINED`, and no other.

    The base is in the precision of the training; a quantised one is dequantised to it, which is what its layers
    multiplied with.

    Raises:
        CheckpointError: an adapter is damaged or does not fit.
        ExportError: PEFT cannot weight these adapters together.
    """
    backbone = Backbone(load_plain_base(source.model), load_tokenizer(source.model), base_id(source.model))
    if mixture is None:
        backbone.load_adapter(TRAINED, source.adapter)
        return backbone
    names = []
    for number, directory in enumerate((source.adapter, *mixture.others)):
        names.append(f"part_{number}")
        backbone.load_adapter(names[-1], directory)
    try:
        backbone.weight_adapters(TRAINED, names, mixture.weights, mixture.method, density=mixture.density)
    except (ValueError, KeyError, RuntimeError) as failure:
        raise ExportError(
            f"--merge-with: PEFT cannot weight these adapters by {mixture.method}: {failure}"
        ) from failure
    return backbone


def load_plain_base(model: ModelSection) -> PreTrainedModel:
    """The base with weights that can be added to: in the precision of the training, never quantised.

    Merging into quantised weights loses half of an adapter: dequantised first, it is exact.
    """
    base = load_base(model)
    if model.quantization is None:
        return base
    dequantised: PreTrainedModel = base.dequantize(dtype=resolve_dtype(model.dtype))
    return dequantised.to(resolve_dtype(model.dtype))


def check_probe(source: Source, model: torch.nn.Module) -> None:
    """Compares an adapter read from the run's directory with what was kept of the model at the end of its training.

    Raises:
        ExportError: they differ, so that the run's own adapter is not what was trained.
    """
    if source.role in SCORED or source.role == "ema" or not (source.run / PROBE_FILE).is_file():
        return
    probe = Probe.load(source.run)
    difference = (probe.repeat(model) - probe.logits).abs().max().item()
    limit = PROBE_TOLERANCE[resolve_dtype(source.model.dtype)]
    if not difference <= limit:
        raise ExportError(
            f"{source.adapter}: this adapter is not the model that was trained: its logits differ by up to "
            f"{difference:.3g} from those at the end of the training (limit {limit:g})"
        )


def of_mixture(others: Sequence[str], weights: Sequence[float], method: str, density: float | None) -> Mixture | None:
    """None without others. Weights left out are 1 / the number of adapters.

    Raises:
        ExportError: another number of weights than of adapters, or a directory without an adapter.
    """
    if not others:
        return None
    count = len(others) + 1
    if weights and len(weights) != count:
        raise ExportError(f"--weights: {len(weights)} given for {count} adapters: the run's own, then --merge-with's")
    return Mixture(tuple(map(Path, others)), tuple(weights) if weights else (1 / count,) * count, method, density)
