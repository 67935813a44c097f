"""A 4-bit base on the CPU: it trains, its adapter reloads, and an evaluation does not spoil the gradients after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import make_tiny_tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_kit import Demonstration, Recipe, load_backbone
from rlhf_kit.models import load_base, lora_config
from rlhf_kit.models.backbone import Backbone
from rlhf_kit.stages import sft

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.slow

DEMONSTRATIONS = [
    Demonstration(prompt="Why is the sky blue?", completion="Air scatters blue light more than red light."),
    Demonstration(prompt="Is a whale a fish?", completion="No, a whale is a mammal."),
    Demonstration(prompt="Name three colours.", completion="Red, green and blue."),
    Demonstration(prompt="Say hello.", completion="Hello!"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose layers nf4 can pack: hidden sizes are multiples of its blocks of 64."""
    directory = tmp_path_factory.mktemp("quantized") / "model"
    tokenizer = make_tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
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


def recipe_for(model: Path, dtype: str = "bfloat16") -> Recipe:
    return Recipe(
        model={"name_or_path": str(model), "base_id": "tiny/tiny", "quantization": "4bit", "dtype": dtype},
        lora={"r": 8, "lora_alpha": 16},
        sft={"learning_rate": 1e-2, "trainer": {"max_steps": 1}},
    )


def test_base_is_really_quantized(model: Path) -> None:
    base = load_base(recipe_for(model).model)
    layers = [module for module in base.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14 and {layer.weight.quant_type for layer in layers} == {"nf4"}
    assert all(layer.weight.dtype == torch.uint8 for layer in layers)


def test_one_sft_step_and_a_reload_on_a_fresh_base(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(model)
    trained: list[Backbone] = []

    def kept(section: object) -> Backbone:
        trained.append(load_backbone(section))  # type: ignore[arg-type]
        return trained[-1]

    monkeypatch.setattr(sft, "load_backbone", kept)
    figures = sft.train(recipe, DEMONSTRATIONS, tmp_path)
    assert figures["processes"] == 1 and figures["loss_first"] > 0
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "loss" in entry] == [1]

    ids = torch.arange(5, 30)[None]
    base = load_base(recipe.model).eval()
    with torch.no_grad():
        with trained[0].eval().role("sft"):
            expected = trained[0].base(input_ids=ids).logits.float()
        before = base(input_ids=ids).logits.float()
        after = PeftModel.from_pretrained(base, str(tmp_path)).eval()(input_ids=ids).logits.float()
    effect = (before - expected).abs().mean()
    assert effect > 0.01, "one step changes something"
    assert (after - expected).abs().mean() < 0.02 * effect


def gradients(backbone: Backbone, ids: Tensor) -> Tensor:
    backbone.train()
    with backbone.role("sft"), torch.autocast("cpu", torch.bfloat16):
        hidden = backbone(ids, torch.ones_like(ids, dtype=torch.bool))
        log_probs, _ = backbone.log_probs(hidden[:, :-1], ids[:, 1:])
        (-log_probs.mean()).backward()
    flat = torch.cat([parameter.grad.flatten() for parameter in backbone.adapter_parameters("sft")])
    backbone.zero_grad()
    return flat


def test_gradients_are_the_same_after_an_evaluation(model: Path) -> None:
    """On CPUs with AVX-512 BF16 bitsandbytes repacks the weights when it evaluates, and would then train on those."""
    torch.manual_seed(0)
    recipe = recipe_for(model)
    backbone = load_backbone(recipe.model)
    backbone.add_adapter("sft", lora_config(recipe.lora))
    for parameter in backbone.adapter_parameters("sft"):
        torch.nn.init.normal_(parameter, std=0.05)
    backbone.train_only("sft")
    ids = torch.randint(5, 400, (4, 24))
    before = gradients(backbone, ids)
    with torch.no_grad(), backbone.eval().role("sft"):
        backbone(ids[:1], torch.ones_like(ids[:1], dtype=torch.bool))
        backbone(ids, torch.ones_like(ids, dtype=torch.bool))
    after = gradients(backbone, ids)
    assert before.norm() > 0
    assert torch.cosine_similarity(before, after, dim=0) > 0.99
