"""Whether the names and shapes of an adapter's tensors are those that PEFT expects on a base.

The base's configuration is enough: PEFT puts its layers on a model without memory (torch's meta device), and loads
the tensors into that.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from peft import get_peft_model
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from rlhf_kit.export.check.base import Adapter, Base, quiet
from rlhf_kit.export.check.files import FAILURES, AdapterConfig, Finding, Severity, first_line, listed
from rlhf_kit.export.check.keys import PREFIX
from rlhf_kit.export.check.weights import CLASSIFIERS, head_labels, untargeted

_MODELS: dict[str, Any] = {
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "FEATURE_EXTRACTION": AutoModel,
}
_ADAPTER = "default"
_FACTOR = re.compile(rf"\.lora_(?:embedding_)?[AB](?:\.{_ADAPTER})?(?:\.weight)?$")
_ADVICE = "name the base that the adapter was trained on"


def model_class_of(config: AdapterConfig) -> Any:
    """The class of the base by the adapter's task type; without one PEFT writes down the class itself, and others who
    write none mean a language model. None where the task is one that is not checked."""
    if config.task_type is not None:
        return _MODELS.get(config.task_type)
    named = getattr(transformers, str((config.auto_mapping or {}).get("base_model_class")), None)
    return named if isinstance(named, type) and issubclass(named, PreTrainedModel) else AutoModelForCausalLM


def skeleton_of(base: Base, adapter: Adapter) -> tuple[PreTrainedModel | None, list[Finding]]:
    """The base on the meta device, as the model class that the adapter's task needs."""
    model_class = model_class_of(adapter.config)
    if model_class is None:
        said = f"task_type is {adapter.config.task_type}: not checked against a base, which is done for"
        return None, [Finding("not-loaded", "note", f"{said} {', '.join(_MODELS)} only")]
    config = with_labels(base.config, adapter)
    place = f"{base.name} ({config.model_type})"
    automatic = model_class in _MODELS.values()
    if not automatic and model_class.config_class.model_type != config.model_type:
        said = f"{place} is no base for an adapter of {model_class.__name__}, which auto_mapping names"
        return None, [Finding("wrong-base", "error", f"{said}; {_ADVICE}")]
    try:
        with quiet(), torch.device("meta"):
            if automatic:
                return model_class.from_config(config, trust_remote_code=False).eval(), []
            return model_class(config).eval(), []
    except FAILURES as failure:
        said = f"{place}: no {model_class.__name__} of it ({first_line(failure)})"
        return None, [Finding("wrong-base", "error", f"{said}; {_ADVICE}")]


def with_labels(config: PreTrainedConfig, adapter: Adapter) -> PreTrainedConfig:
    """The base's configuration with as many labels as the adapter's head has."""
    config = copy.deepcopy(config)
    if adapter.config.task_type in CLASSIFIERS and (labels := head_labels(adapter.tensors)) is not None:
        config.num_labels = labels
    return config


def embedding_rows(model: PreTrainedModel) -> int:
    """V, the rows of the input embeddings."""
    return int(model.get_input_embeddings().weight.shape[0])


def saved_rows(model: PreTrainedModel, adapter: Adapter) -> int | None:
    """Rows of the input embeddings that stand in the adapter as a whole; None where none do."""
    embeddings = model.get_input_embeddings()
    name = next((name for name, module in model.named_modules() if module is embeddings), "")
    for ending in ("weight", "base_layer.weight"):
        if (tensor := adapter.tensors.get(f"{PREFIX}{name}.{ending}")) is not None:
            return int(tensor.shape[0])
    return None


def resize(model: PreTrainedModel, adapter: Adapter) -> None:
    """To the rows of embeddings that the adapter brings along."""
    rows = saved_rows(model, adapter)
    if rows is not None and rows != embedding_rows(model):
        model.resize_token_embeddings(rows, mean_resizing=False)


def fit_findings(base: Base, skeleton: PreTrainedModel, adapter: Adapter) -> Iterator[Finding]:
    """Whether names and shapes of the tensors are those that PEFT expects on this base.

    Args:
        skeleton: the base on the meta device; gets PEFT's layers.
    """
    place = f"{base.name} ({type(skeleton).__name__})"
    config = copy.deepcopy(adapter.peft)
    modules = {name for name, _ in skeleton.named_modules()}
    config.init_lora_weights = True  # others are computed from the base's weights, and there are none here
    rows, saved = embedding_rows(skeleton), saved_rows(skeleton, adapter)
    if saved is not None and saved != rows:
        said = f"{adapter.weights}: embeddings of {saved} rows, {place} has {rows}"
        yield Finding("resized", "note", f"{said}; call resize_token_embeddings({saved}) on the base before loading")
    try:
        with quiet():
            resize(skeleton, adapter)
            model = get_peft_model(skeleton, config, low_cpu_mem_usage=True)
            expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    except FAILURES as failure:
        said = f"{adapter.weights}: PEFT cannot put it on {place}: {first_line(failure)}"
        if modules & set(adapter.pairs):
            yield Finding("peft-refuses", "error", f"{said}; mend the configuration")
        else:
            yield Finding("wrong-base", "error", f"{said}; {_ADVICE}")
        return
    yield from _shape_findings(place, adapter, expected)
    lost = [name for name in expected if ".lora_" not in name and name not in adapter.tensors]
    # PEFT stops at these; with a stand-in it goes on to the others.
    tensors = adapter.tensors | {name: expected[name] for name in lost}
    try:
        with quiet():
            report = set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=True, ignore_mismatched_sizes=True)
    except FAILURES as failure:
        said = f"{adapter.weights}: PEFT cannot load it on {place}: {first_line(failure)}"
        yield Finding("peft-refuses", "error", f"{said}; save it again with PEFT's save_pretrained")
        return
    missing = [name for name in report.missing_keys if "lora_" in name and f".{_ADAPTER}" in name]
    yield from _report_findings(place, adapter, [*lost, *missing], report.unexpected_keys)


def _shape_findings(place: str, adapter: Adapter, expected: dict[str, Tensor]) -> Iterator[Finding]:
    """Shapes, but for the rank, which is judged without a base."""
    wrong = []
    for name, there in expected.items():
        if (tensor := adapter.tensors.get(name)) is None or not tensor.numel():
            continue
        needed, found = tuple(there.shape), tuple(tensor.shape)
        without_rank = slice(None)
        if name.endswith((".lora_A.weight", ".lora_embedding_A")):
            without_rank = slice(1, None)
        elif name.endswith((".lora_B.weight", ".lora_embedding_B")):
            without_rank = slice(0, 1)
        if needed[without_rank] != found[without_rank] or len(needed) != len(found):
            wrong.append(f"{name.removeprefix(PREFIX)} is {found}, needed is {needed}")
    if wrong:
        said = f"{adapter.weights}: {len(wrong)} of {len(adapter.tensors)} tensors do not fit {place}"
        yield Finding("wrong-base", "error", f"{said}: {listed(wrong, 2)}; {_ADVICE}")


def _report_findings(place: str, adapter: Adapter, missing: list[str], unexpected: list[str]) -> Iterator[Finding]:
    """What PEFT reports on loading, but for what is named without a base."""
    ignored = {_module(name) for name in unexpected if _FACTOR.search(name)} & set(adapter.pairs)
    if modules := sorted(ignored - set(untargeted(adapter.config, adapter.peft, adapter.pairs))):
        said = f"{adapter.weights}: {len(modules)} of {len(adapter.pairs)} modules ({listed(modules)}) are none that"
        yield Finding("wrong-base", "error", f"{said} PEFT adapts on {place}, so it ignores them; {_ADVICE}")
    if others := [name.removeprefix(PREFIX) for name in unexpected if _module(name) not in ignored]:
        said = f"{adapter.weights}: PEFT has no place on {place} for {listed(others)}"
        severity: Severity = "error" if any(".lora_" in name for name in others) else "warning"
        yield Finding("unexpected-tensors", severity, f"{said}, and ignores it: was it saved by another tool?")
    wanted = (*SEQ_CLS_HEAD_NAMES, *(adapter.config.modules_to_save or ()))
    headless = [head for head in wanted if not any(f".{head}." in name for name in adapter.tensors)]
    lost = [
        name.removeprefix(PREFIX).replace(f".{_ADAPTER}", "")
        for name in missing
        if not (_FACTOR.search(name) and _module(name) in adapter.pairs)
        and not any(f".{head}." in name for head in headless)
    ]
    if lost:
        said = f"{adapter.weights}: on {place} PEFT misses {listed(lost)}"
        advice = "is the file whole, and the base the one that the adapter was trained on?"
        yield Finding("missing-tensors", "error", f"{said}; nothing changes there, or at random: {advice}")


def _module(name: str) -> str:
    """The module of a tensor, by the tensor's name with or without the adapter's in it."""
    name = name.removeprefix(PREFIX)
    before, lora, _ = name.partition(".lora_")
    return before if lora else name.rpartition(".")[0]
