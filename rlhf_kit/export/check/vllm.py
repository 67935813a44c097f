"""What vLLM would refuse in an adapter that PEFT loads: notes only, because not everyone serves with vLLM.

The rules are those of vLLM 0.32.0: `vllm/lora/peft_helper.py` (fields), `vllm/lora/utils.py` (names of tensors),
`vllm/lora/lora_model.py` (modules), `vllm/config/lora.py` (ranks). Whether vLLM has LoRA for the base's architecture at
all is not judged here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_kit.export.check.files import AdapterConfig, Finding, listed
from rlhf_kit.export.check.keys import PREFIX, Pair

VERSION = "0.32.0"
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that `--max-lora-rank` can have."""
DEFAULT_MAX_LORA_RANK = 16

# Initialisations after which the base is the one that was downloaded; the others take something off its weights.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_HEADS = ("score", "classifier")
_EMBEDDINGS = ("embed_tokens", "lm_head")


def vllm_findings(
    file: str, config: AdapterConfig, names: Iterable[str], pairs: dict[str, Pair], base: PreTrainedModel | None
) -> Iterator[Finding]:
    """What vLLM would refuse, and the option that a larger rank needs.

    Args:
        file: where it stands.
        names: of the tensors, as they are in the file.
        base: without PEFT's layers, where there is one.
    """
    for code, reason in (*_field_reasons(config), *_name_reasons(config, list(names)), *_module_reasons(pairs, base)):
        yield Finding(f"vllm-{code}", "note", f"{file}: vLLM {VERSION} would refuse it: {reason}")
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    if rank > MAX_LORA_RANKS[-1]:
        said = f"{file}: vLLM {VERSION} would refuse it: rank {rank} is more than {MAX_LORA_RANKS[-1]}"
        yield Finding("vllm-rank", "note", said)
    elif rank > DEFAULT_MAX_LORA_RANK:
        said = f"{file}: for rank {rank}, vLLM must be started with --max-lora-rank {max_lora_rank(rank)}"
        yield Finding("vllm-max-rank", "note", said)


def max_lora_rank(rank: int) -> int | None:
    """The least value of `--max-lora-rank` that takes a rank; None where none does."""
    return next((allowed for allowed in MAX_LORA_RANKS if allowed >= rank), None)


def _field_reasons(config: AdapterConfig) -> Iterator[tuple[str, str]]:
    if absent := sorted({"r", "lora_alpha", "target_modules"} - config.model_fields_set):
        yield "fields", f"the fields {', '.join(absent)} are not in the configuration"
    if unknown := [name for name in config.modules_to_save or () if name not in _HEADS]:
        yield "modules-to-save", f"modules_to_save may only name {' and '.join(_HEADS)}, not {listed(unknown)}"
    if config.bias != "none":
        yield "bias", f"bias is {config.bias}, not none"
    init = config.init_lora_weights
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        yield "init", f"init_lora_weights is {listed([init])}, which changes the base; save it as a plain LoRA"
    for code, used, what in (
        ("dora", config.use_dora, "DoRA (use_dora)"),
        ("lora-bias", config.lora_bias, "biases in LoRA (lora_bias)"),
        ("alora", config.alora_invocation_tokens, "activated LoRA (alora_invocation_tokens)"),
        ("layer-replication", config.layer_replication, "replicated layers (layer_replication)"),
        ("bdlora", config.use_bdlora, "block-diagonal LoRA (use_bdlora)"),
        ("qalora", config.use_qalora, "QALoRA (use_qalora)"),
    ):
        if used:
            yield code, f"it does not have {what}"


def _name_reasons(config: AdapterConfig, names: list[str]) -> Iterator[tuple[str, str]]:
    unread = [name for name in names if _module_in(name) is None]
    if unread:
        yield "names", f"it cannot read the name {listed(unread, 1)}"
    heads = sorted({head for name in names if (head := _module_in(name)) in _HEADS and not _is_factor(name)})
    if unsaved := [head for head in heads if head not in (config.modules_to_save or ())]:
        yield "head", f"there are tensors of {listed(unsaved)}, which modules_to_save does not name"
    elif len(heads) > 1 or (heads and config.task_type == "TOKEN_CLS"):
        yield "head", "it takes one head, and that of a sequence classifier only"


def _module_in(name: str) -> str | None:
    """The module in a tensor's name as `parse_fine_tuned_lora_name` reads it; None where it raises, and nothing for
    the embeddings that it skips."""
    if name.endswith(tuple(f".{embedding}.base_layer.weight" for embedding in _EMBEDDINGS)):
        return ""
    if name.startswith(PREFIX):
        name = name.replace(PREFIX, "")
    parts = name.split(".")
    if parts[-1] in ("lora_embedding_A", "lora_embedding_B"):
        return ".".join(parts[:-1])
    if len(parts) > 1 and parts[-1] == "weight" and parts[-2] in ("lora_A", "lora_B"):
        return ".".join(parts[:-2])
    if len(parts) > 1 and parts[-1] in ("weight", "bias") and parts[-2] in _HEADS:
        return parts[-2]
    return None


def _is_factor(name: str) -> bool:
    return ".lora_" in name


def _module_reasons(pairs: dict[str, Pair], base: PreTrainedModel | None) -> Iterator[tuple[str, str]]:
    """vLLM has LoRA for linear layers, and for embeddings under two names."""
    if base is None:
        return
    other = []
    for name, module in base.named_modules():
        # Experts have a class of their own in vLLM too.
        known = isinstance(module, (torch.nn.Linear, Conv1D)) or name.rpartition(".")[2] in (*_EMBEDDINGS, "experts")
        if name in pairs and not known:
            other.append(f"{name}, a {type(module).__name__}")
    if other:
        yield "modules", f"it has LoRA for linear layers, embed_tokens and lm_head, not for {listed(other)}"
