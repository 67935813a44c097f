"""Backbones on tiny models of several architectures, for the tests of everything that runs a model."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig
from tiny import make_tiny_model, make_tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rlhf_kit.models import Backbone, ScalarHead

BASE_ID = "someone/tiny-llama"
_kept: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def tiny_directory() -> Path:
    """The tiny Llama on disk, made once a test run."""
    _kept.append(tempfile.TemporaryDirectory(prefix="rlhf-kit-tiny-"))
    return make_tiny_model(Path(_kept[-1].name) / "model")


def tiny_base() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_directory(), dtype=torch.float32).eval()


def lora(**fields: object) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **fields})


def stir(backbone: Backbone, name: str, seed: int, size: float = 0.1) -> None:
    """Gives an adapter weights that do something: a new one changes nothing, because its B matrices are zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.adapter_parameters(name):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)


def tiny_backbone(*names: str) -> Backbone:
    """The tiny Llama with adapters of these names, all different."""
    backbone = Backbone(tiny_base(), AutoTokenizer.from_pretrained(tiny_directory()), BASE_ID)
    for seed, name in enumerate(names):
        backbone.add_adapter(name, lora())
        stir(backbone, name, seed + 1)
    return backbone.eval()


def add_head(backbone: Backbone, name: str, seed: int = 0) -> ScalarHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = ScalarHead(backbone.hidden_size)
        torch.nn.init.normal_(head.linear.bias)
    backbone.add_head(name, head)
    return head


def base_of_type(model_type: str, **fields: object) -> PreTrainedModel:
    """A model of another architecture over the tiny tokenizer, its logits a few units wide as a trained model's are."""
    tokenizer = make_tiny_tokenizer()
    common = dict(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.3,
    )
    if model_type == "gpt2":
        sizes: dict[str, object] = dict(n_embd=32, n_layer=2, n_head=4, n_positions=256)
    else:
        sizes = dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
        )
        if model_type in ("qwen3", "gemma2"):
            sizes["head_dim"] = 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **{**common, **sizes, **fields})
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def backbone_of_type(model_type: str, **fields: object) -> Backbone:
    return Backbone(base_of_type(model_type, **fields), make_tiny_tokenizer(), f"someone/tiny-{model_type}").eval()
