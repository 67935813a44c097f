"""The trained model as it stands in its run directory, or several adapters weighted into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from rlhf_kit.errors import ExportError
from rlhf_kit.export.lineage import is_repo_id
from rlhf_kit.export.source import EMA, SCORED, Source
from rlhf_kit.models import Backbone, load_base, load_tokenizer
from rlhf_kit.models.loading import base_id, resolve_dtype
from rlhf_kit.models.lora_linear import as_peft
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
        density: the share of values that the ties, dare and magnitude_prune methods keep. What dare leaves out is
            drawn by the run's seed.
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
        ExportError: the run's own adapter is not what was trained, or the adapters cannot be weighted together.
    """
    backbone = Backbone(load_plain_base(source.model), load_tokenizer(source.model), base_id(source.model))
    if mixture is None:
        backbone.load_adapter(TRAINED, source.adapter)
        check_probe(source, backbone)
        return backbone
    names = []
    for number, directory in enumerate((source.adapter, *mixture.others)):
        names.append(f"part_{number}")
        backbone.load_adapter(names[-1], directory)
        _check_part(directory, backbone.peft.peft_config[names[-1]], backbone.base_id)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(source.recipe.seed)
            backbone.weight_adapters(TRAINED, names, mixture.weights, mixture.method, density=mixture.density)
    except (ValueError, LookupError, RuntimeError) as failure:
        raise ExportError(
            f"--merge-with: PEFT cannot weight these adapters by {mixture.method}: {failure}"
        ) from failure
    return backbone


def _check_part(directory: Path, config: LoraConfig, base: str) -> None:
    """Refuses what PEFT's weighting would leave out without a word, and an adapter of another base of the same size."""
    lost = [
        *(["DoRA"] if config.use_dora else []),
        *(["biases"] if config.bias != "none" or config.lora_bias else []),
        *(["modules_to_save"] if config.modules_to_save else []),
    ]
    if lost:
        raise ExportError(f"--merge-with: {directory}: {' and '.join(lost)} cannot be weighted, only plain LoRA")
    named = LoraConfig.from_pretrained(str(directory)).base_model_name_or_path or base
    if named != base and is_repo_id(named) and is_repo_id(base):
        raise ExportError(f"--merge-with: {directory}: was trained on {named}, not on {base}")


def load_plain_base(model: ModelSection) -> PreTrainedModel:
    """The base with weights that can be added to: in the precision of the training, never quantised.

    Merging into quantised weights loses half of an adapter: dequantised first, it is exact.
    """
    base = load_base(model)
    if model.quantization is None:
        return base
    dequantised: PreTrainedModel = base.dequantize(dtype=resolve_dtype(model.dtype))
    return dequantised.to(resolve_dtype(model.dtype))


def check_probe(source: Source, backbone: Backbone) -> None:
    """Compares the adapter in the run's directory with what was kept of the model at the end of its training.

    Args:
        backbone: with the adapter `TRAINED`, in the precision of the training. A quantised base is loaded once more as
            it was trained on: some of its kernels compute otherwise than its dequantised weights.

    Raises:
        ExportError: they differ, so that the run's own adapter is not what was trained.
    """
    if source.role in SCORED or source.role == EMA or not (source.run / PROBE_FILE).is_file():
        return
    if source.model.quantization is not None:
        backbone = Backbone(load_base(source.model), backbone.tokenizer, backbone.base_id)
        backbone.load_adapter(TRAINED, source.adapter)
    probe = Probe.load(source.run)
    with as_peft(), backbone.role(TRAINED):
        difference = (probe.repeat(backbone.base) - probe.logits).abs().max().item()
    limit = PROBE_TOLERANCE[resolve_dtype(source.model.dtype)]
    if not difference <= limit:
        raise ExportError(
            f"{source.adapter}: this adapter is not the model that was trained: its logits differ by up to "
            f"{difference:.3g} from those at the end of the training (limit {limit:g})"
        )


def of_mixture(others: Sequence[str], weights: Sequence[float], method: str, density: float | None) -> Mixture | None:
    """None without others. Weights left out are 1 / the number of adapters.

    Raises:
        ExportError: another number of weights than of adapters, or a density that the method does not take or needs.
    """
    if not others:
        return None
    prunes = method.startswith(("ties", "dare", "magnitude_prune"))
    if prunes and (density is None or not 0 < density <= 1):
        raise ExportError(f"--density: --method {method} needs the share of values that it keeps, above 0 and up to 1")
    if density is not None and not prunes:
        raise ExportError(f"--density: --method {method} keeps all values; it is for ties, dare and magnitude_prune")
    count = len(others) + 1
    if weights and len(weights) != count:
        raise ExportError(f"--weights: {len(weights)} given for {count} adapters: the run's own, then --merge-with's")
    return Mixture(tuple(map(Path, others)), tuple(weights) if weights else (1 / count,) * count, method, density)
