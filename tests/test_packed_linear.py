"""Packed matrices: `F.linear` is the oracle, to the bit in bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch
from backbones import tiny_backbone
from torch import nn
from torch.nn import functional as F

from rlhf_kit.models.packed_linear import packed
from rlhf_kit.rewards import autocast
from rlhf_kit.rollout import sample, sample_in_batches

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [5, 6, 7], [13]]


def layer_of(dtype: torch.dtype, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 80, bias=bias).to(dtype).requires_grad_(False)


def in_bfloat16(*names: str):  # type: ignore[no-untyped-def]
    backbone = tiny_backbone(*names)
    backbone.base.to(torch.bfloat16)
    for name in names:
        for parameter in backbone.adapter_parameters(name):
            parameter.data = parameter.data.float()
    return backbone


def is_packed(layer: nn.Module) -> bool:
    return "_rlhf_kit_packed" in vars(layer)


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_products_are_those_of_the_plain_layer(dtype: torch.dtype, bias: bool) -> None:
    model = nn.Sequential(layer_of(dtype, bias))
    # oneDNN refuses bfloat16 on a processor without its instructions: then the plain layer multiplies.
    supported = dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for rows in (1, 3, 16, 200):
        x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)).to(dtype)
        expected = F.linear(x, model[0].weight, model[0].bias)
        with packed(model), torch.no_grad():
            assert is_packed(model[0]) == supported
            found, several = model(x), model(x.view(rows, 1, 96))
        if dtype == torch.bfloat16:
            assert torch.equal(found, expected)
        torch.testing.assert_close(found, expected, atol=1e-5 if dtype == torch.float32 else 1e-2, rtol=1e-4)
        assert torch.equal(several[:, 0], found)
    assert not is_packed(model[0]) and "forward" not in vars(model[0])


@needs_onednn
def test_gradients_and_other_dtypes_go_through_the_plain_matrix() -> None:
    layer = layer_of(torch.float32)
    with packed(layer):
        x = torch.randn(4, 96, requires_grad=True)
        (gradient,) = torch.autograd.grad(layer(x).sum(), x)
        torch.testing.assert_close(gradient, layer.weight.sum(0).expand(4, -1))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


@needs_onednn
def test_only_plain_layers_of_the_base_are_packed_and_all_is_undone() -> None:
    backbone = tiny_backbone("policy")
    hooked = backbone.decoder.layers[0].mlp.down_proj.base_layer
    hook = hooked.register_forward_hook(lambda module, given, made: made * 0)
    with pytest.raises(ZeroDivisionError), backbone.packed():
        names = {name for name, layer in backbone.base.named_modules() if is_packed(layer)}
        assert names and all(name.endswith("base_layer") for name in names)
        assert not is_packed(hooked) and not any("lora_" in name for name in names)
        with backbone.packed():
            pass
        assert {name for name, layer in backbone.base.named_modules() if is_packed(layer)} == names
        raise ZeroDivisionError
    hook.remove()
    assert not any(is_packed(layer) for layer in backbone.base.modules())
    assert {*vars(copy.deepcopy(backbone.base).model.layers[0].mlp.down_proj.base_layer)} == {*vars(hooked)}


@needs_onednn
@pytest.mark.parametrize("role", ["policy", None])
def test_samples_and_hidden_states_are_the_same_to_the_bit(role: str | None) -> None:
    backbone = in_bfloat16("policy", "sft")
    ids, mask = torch.tensor([[4, 5, 6, 7], [7, 8, 9, 10]]), torch.ones(2, 4, dtype=torch.bool)
    drawn, states = [], []
    for way in (True, False):
        with torch.no_grad(), backbone.role(role), autocast(backbone), pytest.MonkeyPatch.context() as patch:
            if not way:
                patch.setattr("rlhf_kit.models.packed_linear._packs", lambda dtype: False)
            options = {"max_new_tokens": 12, "generator": torch.Generator().manual_seed(1)}
            drawn.append(sample_in_batches(backbone, PROMPTS, batch_size=2, **options))
            with backbone.packed():
                states.append(backbone(ids, mask))
    assert drawn[0] == drawn[1] and len({len(response) for response in drawn[0]}) >= 1
    assert torch.equal(states[0], states[1])


@needs_onednn
def test_sampling_packs_and_training_finds_nothing_of_it() -> None:
    backbone = tiny_backbone("policy")
    seen = []
    layer = backbone.decoder.layers[1].mlp.up_proj.base_layer
    handle = backbone.decoder.layers[0].register_forward_hook(lambda *_: seen.append(is_packed(layer)))
    with backbone.role("policy"):
        sample(backbone, PROMPTS, max_new_tokens=2)
    assert seen == [True, True] and not is_packed(layer)
    handle.remove()
