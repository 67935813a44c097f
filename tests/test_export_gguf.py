"""The GGUF file of an adapter holds what PEFT adds, and what has no place in one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from backbones import base_of_type, lora
from gguf_adapters import GROUPS, HEAD, HEADS, LAYERS, TYPES, tensors, updates
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb, repeat_kv

from rlhf_kit.errors import ExportError
from rlhf_kit.export.gguf_adapter import permuted, write_gguf


def base(model_type: str, **fields: Any) -> PreTrainedModel:
    if model_type.startswith(("gemma", "mistral", "qwen3")):
        fields.setdefault("head_dim", HEAD)
    return base_of_type(model_type, **fields)


def save(directory: Path, model: PreTrainedModel, **fields: Any) -> PeftModel:
    """An adapter as PEFT saves it, with weights that do something."""
    peft = get_peft_model(model, lora(**fields))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (p for p in peft.parameters() if p.requires_grad):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    peft.save_pretrained(directory, save_embedding_layers=False)  # else PEFT copies a whole head that has an adapter
    return peft


def write(directory: Path, model: PreTrainedModel, **fields: Any) -> tuple[PeftModel, Path]:
    peft = save(directory, model, **fields)
    write_gguf(directory, model.config, directory / "adapter.gguf")
    return peft, directory / "adapter.gguf"


def expected(peft: PeftModel) -> dict[str, Tensor]:
    """The updates by PEFT itself."""
    modules = peft.get_base_model().named_modules()
    return {name: m.get_delta_weight("default").detach() for name, m in modules if isinstance(m, LoraLayer)}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, update in wanted.items():
        assert torch.allclose(found[name], update, atol=1e-4, rtol=1e-5), name
        assert update.abs().max() > 1


# -------------------------------------------------------------------- the file of an adapter


def test_keys_names_and_shapes(tmp_path: Path) -> None:
    _, file = write(tmp_path, base("llama"), r=3, lora_alpha=12)
    reader = gguf.GGUFReader(file)
    for key, kind, value in (
        ("general.architecture", gguf.GGUFValueType.STRING, "llama"),
        ("general.type", gguf.GGUFValueType.STRING, "adapter"),
        ("adapter.type", gguf.GGUFValueType.STRING, "lora"),
        ("adapter.lora.alpha", gguf.GGUFValueType.FLOAT32, 12.0),
    ):
        assert (reader.fields[key].types, reader.fields[key].contents()) == ([kind], value)
    hidden, inner = 32, 64
    sizes = dict.fromkeys(("attn_q", "attn_output"), (hidden, HEADS * HEAD))
    sizes |= dict.fromkeys(("attn_k", "attn_v"), (hidden, GROUPS * HEAD))
    sizes |= {"ffn_gate": (hidden, inner), "ffn_up": (hidden, inner), "ffn_down": (inner, hidden)}
    wanted = {f"blk.{n}.{name}.weight.lora_a": [size[0], 3] for n in range(2) for name, size in sizes.items()}
    wanted |= {f"blk.{n}.{name}.weight.lora_b": [3, size[1]] for n in range(2) for name, size in sizes.items()}
    assert {t.name: list(t.shape) for t in reader.tensors} == wanted, "ne, as llama.cpp counts: the columns first"
    assert {t.tensor_type for t in reader.tensors} == {gguf.GGMLQuantizationType.F32}


def test_it_names_its_base(tmp_path: Path) -> None:
    model = base("llama")
    model.config._name_or_path = model.name_or_path = "someone/tiny"
    _, file = write(tmp_path, model)
    fields = gguf.GGUFReader(file).fields
    assert fields["general.base_model.count"].contents() == 1
    assert fields["general.base_model.0.name"].contents() == "someone/tiny"


@pytest.mark.parametrize("model_type", TYPES)
def test_every_architecture_holds_what_peft_adds(tmp_path: Path, model_type: str) -> None:
    architecture, neighbours = TYPES[model_type]
    peft, file = write(tmp_path, base(model_type))
    assert gguf.GGUFReader(file).fields["general.architecture"].contents() == architecture
    wanted = expected(peft)
    assert len(wanted) == 2 * len(LAYERS)
    assert_same(updates(file, neighbours), wanted)
    # Read in the other order, queries and keys are wrong: the test would see it.
    name = "model.layers.0.self_attn.k_proj"
    assert not torch.allclose(updates(file, not neighbours)[name], wanted[name], atol=0.1)


@pytest.mark.parametrize(
    "fields",
    [
        {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 7}},
        {"alpha_pattern": {"v_proj": 1, "model.layers.0.mlp.up_proj": 32}},
        {"use_rslora": True},
        {"use_rslora": True, "rank_pattern": {"k_proj": 9}, "alpha_pattern": {"k_proj": 3}},
        {"target_modules": ["k_proj", "up_proj"], "layers_to_transform": [1]},
        {"lora_alpha": 3, "target_modules": ["q_proj"]},
    ],
)
def test_ranks_and_alphas_by_layer(tmp_path: Path, fields: dict[str, Any]) -> None:
    peft, file = write(tmp_path, base("llama"), **fields)
    assert_same(updates(file, True), expected(peft))


def test_the_head_of_its_own(tmp_path: Path) -> None:
    peft, file = write(tmp_path, base("llama", tie_word_embeddings=False), target_modules=["lm_head"])
    held = tensors(file)
    assert set(held) == {"output.weight.lora_a", "output.weight.lora_b"}
    update = 2 * held["output.weight.lora_b"] @ held["output.weight.lora_a"]
    assert torch.allclose(update, peft.get_base_model().lm_head.get_delta_weight("default"), atol=1e-4)


def test_queries_and_keys_meet_as_in_transformers() -> None:
    """Rotated in neighbouring pairs as llama.cpp does, the permuted queries and keys have the scores that transformers
    gets by rotating halves; others have not."""
    config = AutoConfig.for_model(
        "llama", hidden_size=32, num_attention_heads=HEADS, num_key_value_heads=GROUPS, head_dim=HEAD
    )
    generator, length = torch.Generator().manual_seed(0), 6
    x = torch.randn(length, 32, generator=generator)
    q, k = (torch.randn(n * HEAD, 32, generator=generator) for n in (HEADS, GROUPS))

    def heads(weight: Tensor) -> Tensor:
        return (x @ weight.T).view(1, length, -1, HEAD).transpose(1, 2)

    cos, sin = LlamaRotaryEmbedding(config)(x, torch.arange(length)[None])
    ours_q, ours_k = apply_rotary_pos_emb(heads(q), heads(k), cos, sin)
    wanted = ours_q @ repeat_kv(ours_k, HEADS // GROUPS).transpose(2, 3)

    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, HEAD, 2) / HEAD)
    turn = torch.polar(torch.ones_like(angles), angles)

    def scores(q: Tensor, k: Tensor) -> Tensor:
        q, k = (torch.view_as_complex(heads(w).unflatten(-1, (-1, 2)).contiguous()) * turn for w in (q, k))
        k = k.repeat_interleave(HEADS // GROUPS, dim=1)
        return (q[:, :, :, None] * k[:, :, None].conj()).real.sum(-1)

    found = scores(permuted("self_attn.q_proj", q, config), permuted("self_attn.k_proj", k, config))
    assert torch.allclose(found, wanted, atol=1e-3), (found - wanted).abs().max()
    assert (scores(q, k) - wanted).abs().max() > 10
    assert permuted("self_attn.q_proj", torch.arange(32.0)[:, None], config)[:HEAD, 0].tolist() == [
        *(0, 4, 1, 5, 2, 6, 3, 7),
    ]


# -------------------------------------------------------------------- what has no place in it


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_dora": True}, "an adapter with DoRA has no place in a GGUF file; use --to gguf"),
        ({"bias": "lora_only", "target_modules": ["q_proj"]}, r"an adapter with a bias \(lora_only\) has no place"),
        ({"modules_to_save": ["lm_head"]}, "an adapter with modules_to_save has no place"),
        ({"lora_alpha": 0}, "an adapter with an alpha of 0 has no place"),
        ({"use_dora": True, "lora_alpha": 0}, "with DoRA and an alpha of 0 has"),
        ({"alora_invocation_tokens": [5, 6]}, "with invocation tokens has no place"),
        ({"lora_bias": True}, r"lora_B\.bias is no part of a LoRA of linear layers; use --to gguf"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens.lora_embedding_A is no part of a LoRA of linear layers"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [1]}, "trainable_tokens_delta is no part"),
        ({"target_modules": ["lm_head"]}, "lm_head: llama.cpp's llama has no such layer, so an adapter for it is lost"),
    ],
)
def test_adapters_that_are_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportError, match=words) as refusal:
        write(tmp_path, base("llama", tie_word_embeddings=True), **fields)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "adapter.gguf").exists()


@pytest.mark.parametrize(("model_type", "target"), [("gpt2", "c_attn"), ("phi3", "o_proj")])
def test_other_architectures_are_refused(tmp_path: Path, model_type: str, target: str) -> None:
    with pytest.raises(
        ExportError, match=f"{model_type}: an adapter of this architecture is not written .*qwen3"
    ) as no:
        write(tmp_path, base_of_type(model_type), target_modules=[target])
    assert "--to gguf writes a merged model" in str(no.value) and "\n" not in str(no.value)


def test_a_layer_that_the_base_has_not_is_refused(tmp_path: Path) -> None:
    save(tmp_path, base("qwen2", num_hidden_layers=3))
    words = r"model\.layers\.2\.mlp\.down_proj: llama\.cpp's qwen2 has no such layer"
    with pytest.raises(ExportError, match=words):
        write_gguf(tmp_path, base("qwen2").config, tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()
