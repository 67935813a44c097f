"""A LoRA adapter as a GGUF file for llama.cpp and Ollama, verified by llama.cpp."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig

from rlhf_kit.errors import ExportError
from rlhf_kit.export.adapter import write_adapter
from rlhf_kit.export.comparison import POSITIONS, Limit, judge, own_answers, refer
from rlhf_kit.export.gguf_model import convert
from rlhf_kit.export.llama import logits_of_gguf
from rlhf_kit.export.merged import save
from rlhf_kit.export.source import Source
from rlhf_kit.export.trained import TRAINED, Mixture, load_plain_base, load_trained
from rlhf_kit.models import load_tokenizer
from rlhf_kit.models.adapters import WEIGHTS_FILE

FILE = "adapter.gguf"
LIMIT = Limit(top1_agreement=0.995, mean_kl=1e-4)

# transformers' model types whose layers llama.cpp holds under the same names, and its name of the architecture.
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}
# Those whose queries and keys llama.cpp rotates in neighbouring pairs, where transformers rotates halves.
_PERMUTED = ("llama", "mistral")
_PREFIX = "base_model.model."


def export_gguf_adapter(
    source: Source, out: Path, *, mixture: Mixture | None = None, positions: int = POSITIONS
) -> dict[str, Any]:
    """Writes `out/adapter.gguf`, has llama.cpp load it onto the base (in float16, made for this and thrown away), and
    compares logits.

    Args:
        out: an empty directory; what is in it counts only if this function returns. It needs room for two models.

    Returns:
        What was measured.

    Raises:
        ExportError: the architecture or the adapter is of a kind that llama.cpp cannot hold, or what it computes
            differs from the trained model.
        CheckpointError: the trained adapter is damaged.
    """
    scratch = out / ".scratch"
    adapter, base = scratch / "adapter", scratch / "base"
    adapter.mkdir(parents=True)
    base.mkdir()
    try:
        backbone = load_trained(source, mixture)
        write_adapter(backbone, source, adapter, mixture)
        write_gguf(adapter, backbone.config, out / FILE)
        reference = refer(backbone, TRAINED, own_answers(backbone, TRAINED, positions), out)
        backbone.tokenizer.save_pretrained(base)
        del backbone
        gc.collect()
        plain = load_plain_base(source.model)
        save(plain, base)
        del plain
        gc.collect()
        convert(base, scratch / "base.gguf", "f16", source.model)
        shutil.rmtree(base)
        others = logits_of_gguf(
            scratch / "base.gguf", reference.answers, load_tokenizer(source.model), adapter=out / FILE
        )
        found = reference.compare(others)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    figures = judge(out, reference, found, LIMIT, loader="llama.cpp")
    return figures | {"dtype": "float32", "bytes": (out / FILE).stat().st_size}


def write_gguf(adapter: Path, base: PreTrainedConfig, file: Path) -> None:
    """An adapter directory in PEFT's layout as a GGUF file.

    llama.cpp adds alpha / rank B A x to what a layer gives, with one alpha for all layers; whatever PEFT scales
    otherwise (rank and alpha by layer, rsLoRA) is put into B.

    Args:
        base: the configuration of the base.

    Raises:
        ExportError: the architecture, a layer, or the kind of adapter has no place in such a file.
    """
    config = LoraConfig.from_pretrained(str(adapter))
    text = base.get_text_config()
    _refuse(config, text.model_type)
    names = gguf.get_tensor_name_map(ARCHITECTURES[text.model_type], text.num_hidden_layers)
    architecture = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[text.model_type]]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config.lora_alpha))
    if config.base_model_name_or_path:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, config.base_model_name_or_path)
    for module, a, b in pairs(load_file(adapter / WEIGHTS_FILE), file):
        name = names.get_name(module)
        if name is None or (module == "lm_head" and text.tie_word_embeddings):  # tied, only the embedding is there
            raise ExportError(f"{module}: llama.cpp's {architecture} has no such layer, so an adapter for it is lost")
        b = b * (_scaling(config, module) * a.size(0) / config.lora_alpha)
        if text.model_type in _PERMUTED:
            b = permuted(module, b, text)
        writer.add_tensor(f"{name}.weight.lora_a", a.float().numpy())
        writer.add_tensor(f"{name}.weight.lora_b", b.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _refuse(config: LoraConfig, model_type: str) -> None:
    if model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ExportError(
            f"{model_type}: an adapter of this architecture is not written as GGUF (only of {known}); "
            "--to gguf writes a merged model of every architecture that llama.cpp knows"
        )
    wrong = [
        *(["DoRA"] if config.use_dora else []),
        *([f"a bias ({config.bias})"] if config.bias != "none" else []),
        *(["modules_to_save"] if config.modules_to_save else []),
        *(["invocation tokens"] if config.alora_invocation_tokens else []),
        *(["an alpha of 0"] if not config.lora_alpha else []),
    ]
    if wrong:
        raise ExportError(f"an adapter with {' and '.join(wrong)} has no place in a GGUF file; use --to gguf")


def pairs(weights: dict[str, Tensor], file: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each layer's name in the base with A (r, in) and B (out, r).

    Raises:
        ExportError: a weight that is neither.
    """
    for key in sorted(weights):
        module = key.removeprefix(_PREFIX)
        if module.endswith(".lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            yield module.removesuffix(".lora_A.weight"), weights[key], weights[f"{stem}.lora_B.weight"]
        elif not module.endswith(".lora_B.weight"):
            raise ExportError(f"{file.name}: {key} is no part of a LoRA of linear layers; use --to gguf")


def _scaling(config: LoraConfig, module: str) -> float:
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, module), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, module), config.lora_alpha)
    return float(alpha / (rank**0.5 if config.use_rslora else rank))


def permuted(module: str, b: Tensor, config: PreTrainedConfig) -> Tensor:
    """The rows of B for queries and keys in llama.cpp's order: of each head, first and second half interleaved."""
    if module.endswith("q_proj"):
        heads = config.num_attention_heads
    elif module.endswith("k_proj"):
        heads = config.num_key_value_heads
    else:
        return b
    return b.view(heads, 2, -1, b.size(1)).transpose(1, 2).reshape(b.shape)
