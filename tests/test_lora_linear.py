"""The shorter forward of LoRA layers, with PEFT's own on the same layer as the oracle."""

import copy

import pytest
import torch
from backbones import backbone_of_type, lora, stir, tiny_backbone, tiny_base
from peft import get_peft_model
from peft.tuners.lora import Linear
from torch import nn

from rlhf_kit.models.lora_linear import as_peft, fuse

BF16 = torch.bfloat16
IDS = torch.tensor([[10, 20, 30, 40, 50, 60], [70, 80, 90, 100, 110, 120]])
MASK = torch.ones_like(IDS, dtype=torch.bool)


def autocast(dtype):
    return torch.autocast("cpu", dtype=BF16, enabled=dtype == BF16)


def layer_of(dtype=torch.float32, bias=False, names=("a",), **fields):
    """A fused LoRA layer with adapters that do something, their matrices in float32."""
    torch.manual_seed(0)
    base = nn.Linear(24, 40, bias=bias).to(dtype).requires_grad_(False)
    config = lora(**fields)
    layer = Linear(base, names[0], config, r=4, lora_alpha=8)
    for name in names[1:]:
        layer.update_layer(name, 4, 8, config)
    for parameter in [*layer.lora_A.parameters(), *layer.lora_B.parameters()]:
        parameter.data = torch.randn(parameter.shape)
    layer.set_adapter([names[0]])
    fuse(layer)
    return layer.train()


def in_dtype(backbone, dtype):
    """The base in a dtype, its adapters in float32, as PEFT loads them."""
    backbone.base.to(dtype)
    for name in backbone.adapters:
        for parameter in backbone.adapter_parameters(name):
            parameter.data = parameter.data.float()


def inputs(dtype):
    return torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1)).to(dtype)


def is_fused(y):
    """Whether an output came from the shorter forward, by the graph that it left."""
    return any(node is not None and node.name() == "_LoraLinearBackward" for node, _ in y.grad_fn.next_functions)


def output_and_gradients(layer, forward, dtype):
    x = inputs(dtype).requires_grad_()
    parameters = [*layer.lora_A.parameters(), *layer.lora_B.parameters()]
    with autocast(dtype):
        y = forward(x)
    push = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return [y, *torch.autograd.grad(y, [x, *parameters], push)]


# ---------------------------------------------------------------- the same as PEFT


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"bias": True}, {"lora_dropout": 0.0}], ids=str)
def test_one_layer_is_pefts_in_float32(fields):
    layer = layer_of(**fields)
    ours = output_and_gradients(layer, layer, torch.float32)
    theirs = output_and_gradients(layer, lambda x: Linear.forward(layer, x), torch.float32)
    assert is_fused(ours[0]) and not is_fused(theirs[0])
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_one_layer_under_autocast_is_no_further_from_the_truth_than_pefts(bias):
    layer = layer_of(BF16, bias)
    ours = output_and_gradients(layer, layer, BF16)
    theirs = output_and_gradients(layer, lambda x: Linear.forward(layer, x), BF16)
    exact = output_and_gradients(wide := copy.deepcopy(layer).double(), wide, torch.float64)
    assert is_fused(ours[0])
    for mine, its, truth in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == its.dtype
        error, allowed = (mine - truth).norm() / truth.norm(), (its - truth).norm() / truth.norm()
        assert error < 1.1 * allowed < 0.02


def states_and_gradients(backbone, dtype):
    """Hidden states (B, T, H) and the gradients of all matrices of the adapter, each flat."""
    push = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(2))
    backbone.zero_grad()
    with backbone.role("policy"), autocast(dtype):
        hidden = backbone(IDS, MASK)
        # Not the sum of squares: behind the last RMSNorm that is the same whatever the weights.
        (hidden * push).sum().backward()
    assert hidden.dtype == dtype
    return hidden.detach().flatten(), torch.cat([p.grad.flatten() for p in backbone.adapter_parameters("policy")])


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize(("kind", "fused"), [("llama", 14), ("qwen3", 14), ("gpt2", 0)])  # GPT-2 has no nn.Linear
def test_whole_models_are_pefts(kind, fused, dtype):
    backbone = backbone_of_type(kind)
    backbone.add_adapter("policy", lora())
    stir(backbone, "policy", 1)
    backbone.train_only("policy")
    in_dtype(backbone, dtype)
    assert sum("forward" in vars(m) for m in backbone.modules() if isinstance(m, Linear)) == fused
    ours = states_and_gradients(backbone, dtype)
    for module in backbone.modules():
        if isinstance(module, Linear):
            vars(module).pop("forward", None)
    theirs = states_and_gradients(backbone, dtype)
    backbone.base.float()
    exact = states_and_gradients(backbone, torch.float32)
    for mine, its, truth in zip(ours, theirs, exact, strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(mine, its, atol=1e-4 * float(its.abs().max()), rtol=1e-5)
        else:
            error, allowed = (mine - truth).norm() / truth.norm(), (its - truth).norm() / truth.norm()
            assert error < 1.2 * allowed < 0.1


def test_only_what_asks_for_a_gradient_gets_one():
    layer = layer_of()
    layer.lora_A.requires_grad_(False)
    y = layer(inputs(torch.float32))
    assert is_fused(y)
    y.sum().backward()
    gradient = layer.lora_B["a"].weight.grad.clone()
    assert layer.lora_A["a"].weight.grad is None and layer.base_layer.weight.grad is None
    layer.zero_grad()
    Linear.forward(layer, inputs(torch.float32)).sum().backward()
    torch.testing.assert_close(layer.lora_B["a"].weight.grad, gradient, rtol=1e-5, atol=1e-5)


def test_parameter_names_are_pefts():
    assert list(tiny_backbone("policy").base.state_dict()) == list(
        get_peft_model(tiny_base(), lora(), adapter_name="policy").base_model.model.state_dict()
    )


def test_a_deep_copy_runs_on_its_own_weights():
    layer = layer_of()
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.lora_B["a"].weight.mul_(2)
        assert torch.equal(layer(inputs(torch.float32)), layer_of()(inputs(torch.float32)))
        assert not torch.equal(other(inputs(torch.float32)), layer(inputs(torch.float32)))


# ---------------------------------------------------------------- copies in bfloat16


def close_to_pefts(layer):
    """Whether the forward without gradients uses the weights of now; rounding stays far below a step of 0.5."""
    with torch.no_grad(), autocast(BF16):
        ours, theirs = layer(inputs(BF16)), Linear.forward(layer, inputs(BF16))
    return (ours - theirs).abs().max() < 0.02 * theirs.abs().max()


OPTIMISERS = {
    "fused": lambda p: torch.optim.AdamW(p, lr=0.5, fused=True),  # writes without a new version: the Trainer's own
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.5, foreach=True),
    "loop": lambda p: torch.optim.SGD(p, lr=0.5, foreach=False),
}


@pytest.mark.parametrize("dropout", [0.0, 0.5])  # with dropout the training forward is PEFT's
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_copies_follow_an_optimiser(optimiser, dropout):
    layer = layer_of(BF16, lora_dropout=dropout)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    step = OPTIMISERS[optimiser](parameters)
    for _ in range(2):
        layer.eval()
        assert close_to_pefts(layer)
        layer.train()
        before = [p.detach().clone() for p in parameters]
        with autocast(BF16):
            y = layer(inputs(BF16))
        assert is_fused(y) == (dropout == 0.0)
        y.float().pow(2).mean().backward()
        step.step()
        assert all((p - b).abs().max() > 0.1 for p, b in zip(parameters, before, strict=True))
    layer.eval()
    assert close_to_pefts(layer)


@pytest.mark.parametrize("assign", [False, True])
def test_copies_follow_a_reload(assign):
    layer = layer_of(BF16)
    assert close_to_pefts(layer)
    state = {k: v * -3 if "lora_" in k else v for k, v in layer.state_dict().items()}
    layer.load_state_dict(state, assign=assign)
    assert close_to_pefts(layer)
    layer.lora_B["a"].weight.data = torch.randn(40, 4)
    assert close_to_pefts(layer)


def test_copies_are_kept_between_forwards_without_gradients_and_belong_to_an_adapter():
    layer = layer_of(BF16, names=("a", "b"))
    assert close_to_pefts(layer)
    kept = [entry[2] for entry in layer._rlhf_kit_copies.values()]
    assert close_to_pefts(layer)
    assert all(entry[2] is old for entry, old in zip(layer._rlhf_kit_copies.values(), kept, strict=True))
    layer.set_adapter(["b"])
    assert close_to_pefts(layer)
    layer.set_adapter(["a"])
    assert close_to_pefts(layer)
    assert all(any(entry[2] is old for entry in layer._rlhf_kit_copies.values()) for old in kept)


# ---------------------------------------------------------------- what is left to PEFT


def two_at_once(layer):
    layer.set_adapter(["a", "b"])


def hooked(layer):
    layer.base_layer.register_forward_hook(lambda module, args, output: output + 1)


def learning_base(layer):
    layer.base_layer.requires_grad_(True)


@pytest.mark.parametrize("change", [two_at_once, hooked, learning_base])
def test_whatever_is_not_the_plain_case_is_pefts(change):
    layer = layer_of(names=("a", "b"))
    assert is_fused(layer(inputs(torch.float32)))
    change(layer)
    y = layer(inputs(torch.float32))
    assert not is_fused(y)
    assert torch.equal(y, Linear.forward(layer, inputs(torch.float32)))


@pytest.mark.parametrize("fields", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_variants_and_dropout_are_pefts(fields):
    layer = layer_of(bias=True, **fields)
    runs = []
    for forward in (layer, lambda x: Linear.forward(layer, x)):
        torch.manual_seed(3)
        runs.append(forward(inputs(torch.float32)))
    assert not is_fused(runs[0])
    assert torch.equal(*runs)
    layer.eval()
    assert is_fused(layer(inputs(torch.float32))) == ("lora_dropout" in fields)


def test_float32_adapters_without_autocast_keep_pefts_float32():
    layer = layer_of(BF16)
    y = layer(inputs(BF16))
    assert not is_fused(y) and torch.equal(y, Linear.forward(layer, inputs(BF16)))


def test_adapters_switched_off_or_merged_are_the_base():
    layer, x = layer_of(bias=True), inputs(torch.float32)
    expected = layer(x).detach()
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.base_layer(x))
    layer.enable_adapters(True)
    layer.merge()
    assert torch.equal(layer(x), layer.base_layer(x))
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    backbone = tiny_backbone("policy")
    with torch.no_grad(), backbone.role(None):
        assert torch.equal(backbone(IDS, MASK), tiny_base().model(IDS).last_hidden_state)


def test_rows_with_adapters_of_their_own_are_pefts():
    layer = layer_of(names=("a", "b")).eval()
    x = inputs(torch.float32)
    mixed = layer(x, adapter_names=["a", "b", "__base__"])
    layer.set_adapter(["b"])
    torch.testing.assert_close(mixed[1], layer(x)[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[2], layer.base_layer(x)[2])


# ---------------------------------------------------------------- roles and checkpointing


def gradients(checkpointing=False, others_between=False):
    backbone = tiny_backbone("sft", "policy", "value")
    in_dtype(backbone, BF16)
    backbone.train_only("policy", "value")
    if checkpointing:
        backbone.use_checkpointing()
    backbone.train()
    with backbone.role("policy"):
        with autocast(BF16):
            loss = backbone(IDS, MASK).float().pow(2).sum()
            if others_between:
                with torch.no_grad(), backbone.role("sft"):
                    backbone(IDS, MASK)
                with backbone.role("value"):
                    backbone(IDS, MASK).float().sum().backward()
        loss.backward()
    return [p.grad for p in backbone.adapter_parameters("policy")]


@pytest.mark.parametrize("way", [{"checkpointing": True}, {"others_between": True}], ids=str)
def test_neither_checkpointing_nor_other_roles_between_change_a_gradient(way):
    for changed, plain in zip(gradients(**way), gradients(), strict=True):
        assert plain.abs().max() > 0
        assert torch.equal(changed, plain)


def test_as_peft_is_pefts_own_to_the_bit():
    """An export is reloaded by PEFT alone, and its logits are compared with those of the trained model."""
    layer = layer_of(BF16)
    x = inputs(BF16)
    with torch.no_grad(), autocast(BF16):
        expected = type(layer).forward(layer, x)
        with as_peft():
            assert torch.equal(layer(x), expected)
        assert not torch.equal(layer(x), expected)  # else this test would show nothing


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_settled_layers_give_the_same_to_the_bit_and_are_as_before_afterwards(dtype):
    backbone = tiny_backbone("policy", "sft")
    in_dtype(backbone, dtype)
    with torch.no_grad(), autocast(dtype):
        for role in ("policy", "sft", None):
            with backbone.role(role):
                plain = backbone(IDS, MASK)
                layer = backbone.decoder.layers[0].mlp.up_proj
                before = layer.forward
                with backbone.settled():
                    # In float32 without autocast too: adapters and base are of one dtype, which is the plain case.
                    assert (layer.forward != before) == (role is not None)
                    assert torch.equal(backbone(IDS, MASK), plain)
                assert layer.forward == before


def test_settled_layers_follow_what_was_learned_before():
    backbone = tiny_backbone("policy")
    with torch.no_grad(), backbone.role("policy"):
        with backbone.settled():
            first = backbone(IDS, MASK)
        for parameter in backbone.adapter_parameters("policy"):
            parameter.data.mul_(1.5)  # as fused optimisers write: without a word to autograd
        with backbone.settled():
            assert not torch.equal(backbone(IDS, MASK), first)
            with as_peft():
                expected = backbone(IDS, MASK)
            torch.testing.assert_close(backbone(IDS, MASK), expected, atol=1e-5, rtol=1e-5)
