"""The GGUF file of an adapter, read as llama.cpp reads it, for the tests of exports.

What llama.cpp reads of it (src/llama-adapter.cpp): general.type, general.architecture, adapter.type and
adapter.lora.alpha; tensors in pairs, NAME.lora_a with the input first in `ne`, NAME.lora_b with the rank first. It adds
alpha / rank * B (A x), and with an alpha of 0 B (A x) itself. Which architectures it rotates in neighbouring pairs
stands in `llama_model_rope_type` (src/llama-model.cpp).
"""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from torch import Tensor

# transformers' type, llama.cpp's architecture, whether that rotates neighbouring pairs (LLAMA_ROPE_TYPE_NORM).
TYPES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
    "gemma": ("gemma", False),
    "gemma2": ("gemma2", False),
    "gemma3_text": ("gemma3", False),
}
LAYERS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEADS, GROUPS, HEAD = 4, 2, 8


def tensors(file: Path) -> dict[str, Tensor]:
    return {t.name: torch.from_numpy(t.data.copy()) for t in gguf.GGUFReader(file).tensors}


def rows_of_transformers(rows: Tensor, heads: int) -> Tensor:
    """From llama.cpp's order of rows to transformers', one by one: pair j of a head stands in rows j and half + j."""
    back, size = torch.empty_like(rows), rows.size(0) // heads
    for head in range(heads):
        for pair in range(size // 2):
            for side in range(2):
                back[head * size + side * size // 2 + pair] = rows[head * size + 2 * pair + side]
    return back


def updates(file: Path, neighbours: bool) -> dict[str, Tensor]:
    """What llama.cpp adds to each weight, with the rows as transformers has them."""
    held, found = tensors(file), {}
    alpha = gguf.GGUFReader(file).fields["adapter.lora.alpha"].contents()
    names = {f"model.layers.{n}.{ours}": f"blk.{n}.{theirs}" for n in range(2) for ours, theirs in LAYERS.items()}
    for ours, theirs in names.items():
        if (a := held.pop(f"{theirs}.weight.lora_a", None)) is not None:
            update = alpha / a.size(0) * held.pop(f"{theirs}.weight.lora_b") @ a
            heads = {"q_proj": HEADS, "k_proj": GROUPS}.get(ours.rsplit(".", 1)[1])
            found[ours] = rows_of_transformers(update, heads) if neighbours and heads else update
    assert held == {}, "nothing else is in the file"
    return found
