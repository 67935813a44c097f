"""A model that bitsandbytes can quantise, for the tests of quantised bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_kit import Recipe


def write_model(directory: Path, *, tied: bool = True) -> Path:
    """A Llama whose layers nf4 can pack: hidden sizes are multiples of its blocks of 64."""
    tokenizer = make_tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of them for a whole file of tests."""
    return write_model(tmp_path_factory.mktemp("quantized") / "model")


@pytest.fixture(params=["4bit", "8bit"])
def quantization(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def recipe_for(model: Path, quantization: str = "4bit", dtype: str = "bfloat16", **trainer: Any) -> Recipe:
    return Recipe(
        model={"name_or_path": str(model), "base_id": "tiny/tiny", "quantization": quantization, "dtype": dtype},
        lora={"r": 8, "lora_alpha": 16},
        sft={"learning_rate": 1e-2, "trainer": {"max_steps": 1, **trainer}},
    )
