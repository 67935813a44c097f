"""From a recipe's `model` section to a base model, a tokenizer and a `Backbone`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_kit import launch
from rlhf_kit.errors import ModelError
from rlhf_kit.models.backbone import Backbone
from rlhf_kit.models.quantized import check_loaded, leave_file, quantization_config, settle
from rlhf_kit.models.sources import resolve
from rlhf_kit.recipe import LoraSection, ModelSection

log = logging.getLogger(__name__)

# Tokens that vocabularies hold for this purpose or have no other use in a conversation, the best first.
_PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|endoftext|>", "<unk>", "<|unk|>")


def has_fast_bf16() -> bool:
    """Whether the accelerator, or else this CPU, multiplies bfloat16 in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.mps.is_available():
        return False
    # Older torch does not tell; float32 is the safe answer then.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def resolve_dtype(name: str) -> torch.dtype:
    """`auto` is bfloat16 where the hardware has it, else float32."""
    if name == "auto":
        return torch.bfloat16 if has_fast_bf16() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer, with a pad token that is not EOS and the recipe's chat template where it names one.

    Raises:
        ModelError: it cannot be read, has no EOS, or no token that can pad.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            resolve(model.name_or_path, model.sha256),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
        )
    except (OSError, ValueError, KeyError) as failure:
        raise ModelError(f"{_place(model)}: no tokenizer: {_first_line(failure)}") from failure
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{model.name_or_path}: the tokenizer has no EOS token, so a response can never end")
    tokenizer.pad_token = _pad_token(tokenizer, model)
    if model.chat_template is not None:
        try:
            tokenizer.chat_template = Path(model.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as failure:
            raise ModelError(f"model.chat_template: {model.chat_template} cannot be read: {failure}") from failure
    return tokenizer


def _pad_token(tokenizer: PreTrainedTokenizerBase, model: ModelSection) -> str:
    vocabulary = tokenizer.get_vocab()
    if model.pad_token is not None:
        if model.pad_token not in vocabulary or model.pad_token == tokenizer.eos_token:
            raise ModelError(f"model.pad_token: {model.pad_token!r} must be in the vocabulary and differ from EOS")
        return model.pad_token
    mine = (tokenizer.pad_token, *_PAD_CANDIDATES, tokenizer.unk_token, tokenizer.bos_token)
    for token in mine:
        if token is not None and token in vocabulary and token != tokenizer.eos_token:
            return str(token)
    raise ModelError(
        f"{model.name_or_path}: pad and EOS are the same token ({tokenizer.eos_token!r}) and no other can pad; "
        "if EOS were padding, the model would never learn to end. Name one in model.pad_token"
    )


def load_base(model: ModelSection) -> PreTrainedModel:
    """The pretrained model, in safetensors or from GGUF only, on the CPU or where accelerate will move it; a quantised
    one on its device already.

    Raises:
        ModelError: it cannot be read, or is quantised otherwise than the recipe says.
    """
    options: dict[str, Any] = {"dtype": resolve_dtype(model.dtype)}
    if model.attn_implementation is not None:
        options["attn_implementation"] = model.attn_implementation
    if model.quantization is not None:
        options["quantization_config"] = quantization_config(model.quantization, resolve_dtype(model.dtype))
        if torch.cuda.is_available():  # what is quantised is not moved afterwards: each process loads to its own device
            options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    try:
        base = _loaded(model, options)
    except ImportError as failure:
        if "attn_implementation" not in options:
            raise
        log.warning(
            "model.attn_implementation: %s cannot be used here, the model's own is: %s",
            options.pop("attn_implementation"),
            _first_line(failure),
        )
        base = _loaded(model, options)
    check_loaded(base, model)
    settle(base, resolve_dtype(model.dtype))
    if model.quantization is not None:
        leave_file(base)
    return base


def _loaded(model: ModelSection, options: dict[str, Any]) -> PreTrainedModel:
    try:
        with launch.loaded_whole():
            return AutoModelForCausalLM.from_pretrained(
                resolve(model.name_or_path, model.sha256),
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
                use_safetensors=True,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as failure:
        raise ModelError(f"{_place(model)}: cannot be loaded: {_first_line(failure)}") from failure


def lora_config(lora: LoraSection) -> LoraConfig:
    """PEFT's configuration for a recipe's `lora` section."""
    return LoraConfig(**lora.model_dump(), task_type="CAUSAL_LM")


def save_lora_config(config: LoraConfig, directory: Path, base: str, revision: str | None) -> None:
    """Writes an adapter's configuration for others, with the base that they are to load."""
    config.base_model_name_or_path, config.revision = base, revision
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # else in another order each time
    config.save_pretrained(str(directory))


def load_backbone(model: ModelSection) -> Backbone:
    """Base and tokenizer as a `Backbone` without adapters."""
    return Backbone(load_base(model), load_tokenizer(model), base_id(model))


def to_device(backbone: Backbone, model: ModelSection, device: torch.device | str) -> None:
    """Moves a backbone with all that it has been given; bitsandbytes has put a quantised one where it belongs."""
    if model.quantization is None:
        backbone.to(device)


def base_id(model: ModelSection) -> str:
    """What adapters declare as `base_model_name_or_path`: the Hub id, never a path of this machine."""
    path = Path(model.name_or_path)
    if model.base_id is not None or not path.exists():
        return model.base_id or model.name_or_path
    return path.stem if path.is_file() else path.resolve().name  # a directory may have a dot in its name


def _place(model: ModelSection) -> str:
    """Its name, and that it was taken for one of the Hub: a mistyped directory looks like one."""
    name = model.name_or_path
    return name if Path(name).exists() or ":" in name else f"{name} (no such directory, so the Hub was asked)"


def _first_line(failure: BaseException) -> str:
    lines = str(failure).strip().splitlines()
    return lines[0] if lines else type(failure).__name__
