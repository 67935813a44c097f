"""4- and 8-bit bases on the CPU: what is sampled, scored and learned from is computed alike.

The oracles are the dequantised weights in a higher precision, and bitsandbytes' own formulas.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import stir
from quantized_base import model, quantization, recipe_for
from tiny import make_tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM

from rlhf_kit import ModelError, Recipe
from rlhf_kit.models import load_base, loading, lora_config
from rlhf_kit.models.backbone import Backbone
from rlhf_kit.models.quantized import settle
from rlhf_kit.rewards import autocast

__all__ = ["model", "quantization"]  # fixtures

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.slow

GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(5, 400, (4, 24), generator=GENERATOR)


def test_base_is_really_quantized(model: Path, quantization: str) -> None:
    base = load_base(recipe_for(model, quantization).model)
    if quantization == "4bit":
        layers = [module for module in base.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
        assert {layer.weight.quant_type for layer in layers} == {"nf4"}
        assert all(layer.weight.dtype == torch.uint8 and layer.weight.quant_state.nested for layer in layers)
    else:
        layers = [module for module in base.modules() if isinstance(module, bitsandbytes.nn.Linear8bitLt)]
        assert all(layer.weight.dtype == torch.int8 for layer in layers)
    assert len(layers) == 14
    assert base.get_output_embeddings().weight.dtype == torch.bfloat16, "log_probs multiplies with it as it is"


# -------------------------------------------------------------------- evaluation and training compute the same


def learning(base: nn.Module, recipe: Recipe) -> Backbone:
    """The base with an adapter that does something, the same each time."""
    backbone = Backbone(base, make_tiny_tokenizer(), "tiny/tiny")
    backbone.add_adapter("sft", lora_config(recipe.lora))
    stir(backbone, "sft", 1, size=0.05)
    backbone.train_only("sft")
    return backbone


def log_probs(backbone: Backbone, ids: Tensor = IDS) -> Tensor:
    with backbone.role("sft"), autocast(backbone):
        hidden = backbone(ids, torch.ones_like(ids, dtype=torch.bool))
        return backbone.log_probs(hidden[:, :-1], ids[:, 1:])[0]


def gradients(backbone: Backbone) -> Tensor:
    with backbone.train().role("sft"):
        (-log_probs(backbone).mean()).backward()
    flat = torch.cat([parameter.grad.flatten() for parameter in backbone.adapter_parameters("sft")])
    backbone.zero_grad()
    return flat


def evaluated(backbone: Backbone, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return log_probs(backbone.eval(), ids)


def test_gradients_after_an_evaluation_are_those_before_it_and_of_the_dequantised_base(
    model: Path, quantization: str
) -> None:
    """On CPUs with AVX-512 BF16 bitsandbytes repacks 4-bit weights when it evaluates, and would then train on those."""
    recipe = recipe_for(model, quantization)
    backbone = learning(load_base(recipe.model), recipe)
    before = gradients(backbone)
    evaluated(backbone, IDS[:1])
    evaluated(backbone)
    assert torch.equal(gradients(backbone), before) and before.norm() > 0
    plain = load_base(recipe.model).dequantize(dtype=torch.float32).float()
    assert torch.cosine_similarity(before, gradients(learning(plain, recipe)), dim=0) > 0.999


def test_evaluation_training_and_any_batch_give_the_same_log_probabilities(model: Path, quantization: str) -> None:
    recipe = recipe_for(model, quantization)
    backbone = learning(load_base(recipe.model), recipe)
    # bitsandbytes would now compute some columns of each input in another precision, for the whole batch.
    backbone.base.get_input_embeddings().weight.data[IDS[0, 3], :4] = 20.0
    found = evaluated(backbone)
    with backbone.train().role("sft"):
        assert torch.equal(log_probs(backbone).detach(), found)
        with torch.no_grad():
            assert torch.equal(log_probs(backbone), found)
    assert (torch.cat([evaluated(backbone, row[None]) for row in IDS]) - found).abs().max() < 0.05


def raw(model: Path, **options: Any) -> LlamaForCausalLM:
    """A base as somebody loads it who does not know of `settle`."""
    config = BitsAndBytesConfig(**options)
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, quantization_config=config)


@torch.no_grad()
def test_without_care_the_same_comparisons_fail(model: Path) -> None:
    """What the tests above can see: int8 as bitsandbytes leaves it gives other numbers in each mode and batch."""
    base = raw(model, load_in_8bit=True)
    base.get_input_embeddings().weight.data[IDS[0, 3], :4] = 20.0

    def said(ids: Tensor = IDS) -> Tensor:
        found: Tensor = base(input_ids=ids).logits.float().log_softmax(-1)
        return found

    base.eval()
    found, alone = said(), torch.cat([said(row[None]) for row in IDS])
    base.train()
    assert (said() - found).abs().max() > 0.05 and (alone - found).abs().max() > 0.05
    settle(base)
    trained = said()
    base.eval()
    assert torch.equal(said(), trained)


def layer_of_eight_bits(dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A layer with a bias, and its matrix by bitsandbytes' formula in float64."""
    weight, bias = torch.randn(96, 64, generator=GENERATOR), torch.randn(96, generator=GENERATOR)
    layer = bitsandbytes.nn.Linear8bitLt(64, 96, has_fp16_weights=False, threshold=6.0)
    layer.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    layer.to("cpu")
    scales = weight.half().abs().amax(1).double() / 127
    by_hand = (weight.half().double() / scales[:, None]).round() * scales[:, None]
    settle(nn.Sequential(layer))
    return layer, by_hand


@pytest.mark.parametrize(
    ("dtype", "size", "limit"),
    [(torch.float32, 1.0, 1e-5), (torch.bfloat16, 1.0, 1e-2), (torch.float16, 100.0, 2e-3)],
)
def test_a_layer_of_eight_bits_is_its_matrix(dtype: torch.dtype, size: float, limit: float) -> None:
    """Half precision with inputs whose products with the integers are far beyond 65504."""
    layer, matrix = layer_of_eight_bits(dtype)
    x = (torch.randn(2, 5, 64, generator=GENERATOR) * size).to(dtype).requires_grad_()
    y = layer(x)
    expected = x.detach().double() @ matrix.T + layer.bias.double()
    assert y.dtype == dtype and (y.double() - expected).norm() < limit * expected.norm()
    grad = torch.randn(y.shape, generator=GENERATOR).to(dtype)
    y.backward(grad)
    assert x.grad is not None and x.grad.dtype == dtype
    expected = grad.double() @ matrix
    assert (x.grad.double() - expected).norm() < limit * expected.norm()


def test_a_layer_of_eight_bits_under_autocast_is_as_a_plain_one() -> None:
    layer, matrix = layer_of_eight_bits(torch.bfloat16)
    x = torch.randn(3, 64, generator=GENERATOR).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.float32
    assert torch.cosine_similarity(x.grad[0].double(), matrix.sum(0), dim=0) > 0.999


# -------------------------------------------------------------------- what is refused, and where it is loaded


def test_weights_that_are_quantised_already_are_used_where_the_recipe_says_so(model: Path, tmp_path: Path) -> None:
    half = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float16}
    raw(model, load_in_4bit=True, **half).save_pretrained(tmp_path / "nf4")
    make_tiny_tokenizer().save_pretrained(tmp_path / "nf4")
    plain = Recipe(model={"name_or_path": str(tmp_path / "nf4"), "dtype": "bfloat16"}).model
    with pytest.raises(ModelError, match=r"quantised already \(bitsandbytes\)\. Set model\.quantization"):
        load_base(plain)
    with pytest.raises(ModelError, match=r"model\.quantization: 8bit has quantised nothing in it"):
        load_base(plain.model_copy(update={"quantization": "8bit"}))
    base = load_base(plain.model_copy(update={"quantization": "4bit"}))
    layers = [module for module in base.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14 and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}, "as the recipe says, not as the file does"


def test_only_what_is_used_stays_in_memory(model: Path, quantization: str) -> None:
    """No weight is a view of the mapped file, and int8 matrices have no second name that outlives their sharding."""
    base = load_base(recipe_for(model, quantization, "float32").model)  # as the file has it, so that nothing is cast
    gc.collect()
    assert str(model) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    for layer in base.modules():
        if isinstance(layer, bitsandbytes.nn.Linear8bitLt):
            assert layer.state.CB is None and layer.weight.CB is None and layer.weight.SCB.dtype == torch.float32
    assert base.get_output_embeddings().weight is base.get_input_embeddings().weight, "still tied"


def test_each_process_loads_a_quantised_base_onto_its_own_device(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class Stop(ValueError):
        pass

    def from_pretrained(*_: Any, **options: Any) -> None:
        asked.append(options)
        raise Stop("far enough")

    monkeypatch.setattr(loading.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setenv("LOCAL_RANK", "3")
    for section in (recipe_for(model).model, recipe_for(model).model.model_copy(update={"quantization": None})):
        with pytest.raises(ModelError, match="far enough"):
            load_base(section)
    assert asked[0]["device_map"] == {"": 3} and "device_map" not in asked[1]
