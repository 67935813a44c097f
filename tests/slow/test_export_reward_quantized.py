"""A reward model on a quantised base keeps its scores through save, load, export and merge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from backbones import lora, stir
from peft import PeftModel
from quantized_base import write_model
from safetensors.torch import load_file
from tiny import make_tiny_tokenizer
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaForCausalLM,
)

from rlhf_kit import Recipe, load_backbone, rewards
from rlhf_kit.checkpoint import Manifest
from rlhf_kit.export.reward import export_reward
from rlhf_kit.export.source import Source
from rlhf_kit.models import ScalarHead
from rlhf_kit.models.heads import HEAD_FILE

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.slow

END = make_tiny_tokenizer().eos_token_id
PROMPTS = [[*range(5 + 3 * n, 12 + 5 * n)] for n in range(6)]
RESPONSES = [[*range(90 + n, 94 + 4 * n), END] for n in range(6)]
WHOLE = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]


def source_of(recipe: Recipe, stage: Path, manifest: Manifest) -> Source:
    return Source(stage, "reward", stage, stage, manifest, recipe)


def make_stage(directory: Path, quantization: str, dtype: str) -> tuple[Recipe, Manifest, Tensor]:
    """A reward stage on a quantised base, and its scores before it was saved."""
    write_model(directory / "base", tied=False)
    recipe = Recipe(
        model={
            "name_or_path": str(directory / "base"),
            "base_id": "tiny/tiny",
            "quantization": quantization,
            "dtype": dtype,
        }
    )
    backbone = load_backbone(recipe.model)
    backbone.add_adapter("reward", lora())
    stir(backbone, "reward", 3)
    torch.manual_seed(1)
    head = ScalarHead(backbone.hidden_size)
    nn.init.normal_(head.linear.bias)
    head.std.fill_(0.5)
    head.mean.fill_(2.5)
    backbone.add_head("reward", head)
    (directory / "reward").mkdir()
    rewards.save(backbone, directory / "reward")
    described = {"id": "tiny/tiny", "name_or_path": "base", "revision": None, "sha256": None}
    described |= {"dtype": dtype, "quantization": quantization}
    manifest = Manifest("reward", {"data": {}}, {}, 1.0, described, {}, recipe.model_dump())
    return recipe, manifest, rewards.score(backbone.eval(), PROMPTS, RESPONSES)


def dequantised_by_hand(directory: Path, recipe: Recipe) -> LlamaForCausalLM:
    """The base with each quantised weight unpacked by its own formula, in float32."""
    quantised = load_backbone(recipe.model).base
    plain = AutoModelForCausalLM.from_pretrained(directory / "base", dtype=torch.float32)
    unpacked = 0
    for name, layer in quantised.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        elif isinstance(layer, bitsandbytes.nn.Linear8bitLt):
            weight = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
        else:
            continue
        assert not torch.equal(weight, plain.get_submodule(name).weight)
        plain.get_submodule(name).weight.data.copy_(weight)
        unpacked += 1
    assert unpacked == 14
    return plain


@torch.no_grad()
def scores_by_hand(base: nn.Module, stage: Path) -> Tensor:
    model = PeftModel.from_pretrained(base, str(stage)).eval()
    head = load_file(stage / HEAD_FILE)
    states = [model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1] for ids in WHOLE]
    raw = torch.stack(states).double() @ head["linear.weight"][0].double() + head["linear.bias"].double()
    return (raw - head["mean"]) / head["std"]


@torch.no_grad()
def batch_scores(model: nn.Module, out: Path) -> Tensor:
    batch = AutoTokenizer.from_pretrained(out).pad({"input_ids": WHOLE}, return_tensors="pt")
    return model.eval()(**batch).logits[:, 0].float()


def test_the_stage_scores_after_a_reload_as_before(tmp_path: Path) -> None:
    recipe, _, before = make_stage(tmp_path, "4bit", "bfloat16")
    backbone = load_backbone(recipe.model)
    rewards.load(backbone, tmp_path / "reward")
    after = rewards.score(backbone, PROMPTS, RESPONSES)
    assert before.std() > 0.1 and torch.equal(after, before)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_merged_is_the_dequantised_base_with_adapter_and_head(quantization: str, tmp_path: Path) -> None:
    recipe, manifest, trained = make_stage(tmp_path, quantization, "float32")
    out = tmp_path / "out"
    out.mkdir()
    figures = export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=True)
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.dtype == torch.float32 and "quantization_config" not in model.config.to_dict()
    found = batch_scores(model, out) + figures["offset"]
    expected = scores_by_hand(dequantised_by_hand(tmp_path, recipe), tmp_path / "reward")
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-4
    # Against the quantised kernels; those of 8 bits round the activations too.
    assert (found - trained).abs().max() < (1e-3 if quantization == "4bit" else 0.2 * trained.std())
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    assert (scores_by_hand(original, tmp_path / "reward") - expected).abs().max() > 1e-2, "the quantisation shows"
    assert f"{quantization} weights, dequantised before the adapter was merged" in (out / "README.md").read_text()


def test_adapter_on_a_4bit_base_scores_as_the_stage(tmp_path: Path) -> None:
    recipe, manifest, trained = make_stage(tmp_path, "4bit", "float32")
    out = tmp_path / "out"
    out.mkdir()
    figures = export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=False)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=1, dtype=torch.float32, quantization_config=quantization
    )
    model = PeftModel.from_pretrained(base, str(out))
    packed = [layer for layer in model.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    assert len(packed) == 14
    for layer in packed:
        layer.support_avx512bf16_for_cpu = False  # else computed in bfloat16 on such CPUs, whatever is asked for
    found = batch_scores(model, out) + figures["offset"]
    assert trained.std() > 0.1 and (found - trained).abs().max() < 1e-3
