"""A model computed in a higher precision is the model cast to it, and is as before afterwards."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import base_of_type, lora
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_kit.models import exact
from rlhf_kit.models.exact import cast_to_float32, computed_in

IDS = torch.stack([torch.arange(5, 45), torch.arange(200, 240)])
# GPT-2: Conv1D, biases, LayerNorm, learnt positions, a tied head. Gemma: scaled embeddings, soft caps. Phi: a head with
# a bias. Qwen 2: biases of queries, keys and values. Qwen 3: here with a head of its own.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "gemma2": {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"head_dim": 8},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": False},
    "phi": {},
}


def model_of(kind: str) -> PreTrainedModel:
    """In bfloat16, with its rotary frequencies in float32, as transformers loads it."""
    model = base_of_type(kind, **KINDS[kind])
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # a bias of 0 and a norm of 1 would be the same in every precision
        noise = 0.1 * torch.randn(parameter.shape, generator=generator)
        parameter.data = (parameter.data + noise).to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    return model.eval()


def with_adapter(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PeftModel:
    peft = get_peft_model(model, lora())
    generator = torch.Generator().manual_seed(2)
    for parameter in (p for p in peft.parameters() if p.requires_grad):
        parameter.data = (0.1 * torch.randn(parameter.shape, generator=generator)).to(dtype)
    return peft.eval()


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    whole = copy.deepcopy(model)
    for parameter in whole.parameters():
        parameter.data = parameter.data.to(dtype)
    return whole


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def state(model: nn.Module) -> dict[str, tuple[int, torch.dtype, bytes]]:
    """Where each weight is, and all of its bytes."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (p.data_ptr(), p.dtype, bytes(p.detach().untyped_storage())) for name, p in named.items()}


def changes(model: nn.Module) -> list[str]:
    """The modules that do more than their class says, or less."""
    return [
        name
        for name, module in model.named_modules()
        if module._forward_hooks
        or module._forward_pre_hooks
        or "forward" in vars(module)
        or not getattr(module, "cast_input_dtype_enabled", True)
    ]


# -------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_as_the_model_loaded_in_float32_and_cast_whole(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    whole = cast(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), dtype)
    if kind.startswith("gemma"):
        whole.get_input_embeddings().embed_scale = torch.tensor(model.config.hidden_size**0.5, dtype=dtype)
    before, rounded = state(model), logits(model)
    with computed_in(model, dtype):
        found = logits(model)
    expected = logits(whole)
    assert found.dtype == expected.dtype == dtype
    if kind == "phi":  # there the bias comes to the sum, here the sum begins with it
        assert (found - expected).abs().max() < (1e-5 if dtype == torch.float32 else 1e-13)
    else:
        assert torch.equal(found, expected)
    assert (expected - rounded).abs().max() > 1e-2, "or else there is nothing to see"
    assert state(model) == before and not changes(model)
    assert torch.equal(logits(model), rounded)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text"])
def test_cast_to_float32_as_the_model_loaded_in_float32(kind: str, tmp_path: Path) -> None:
    model_of(kind).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(logits(cast_to_float32(model)), logits(loaded))


def test_float32_in_float64() -> None:
    """As a merged model in float32 is compared."""
    model = base_of_type("llama")
    whole = cast(model, torch.float64)
    with computed_in(model, torch.float64):
        found = logits(model)
    assert torch.equal(found, logits(whole))
    assert 0 < (found - logits(model)).abs().max() < 1e-3


def test_what_is_there_already_is_left_alone() -> None:
    model = base_of_type("llama")
    with computed_in(model, torch.float32):
        found = logits(model)
        assert sum(map(bool, changes(model))) == 1, "the embedding, whose rows are what they are"
    assert torch.equal(found, logits(model))


@pytest.mark.parametrize("rest", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_with_the_layers_of_peft(kind: str, dtype: torch.dtype, rest: torch.dtype) -> None:
    """An adapter in the precision of its base, too: PEFT would cast what comes into it down to that."""
    peft = with_adapter(model_of(kind), rest)
    whole = cast(peft, dtype)
    before, rounded = state(peft), logits(peft)
    with computed_in(peft.get_base_model(), dtype):
        found = logits(peft)
    assert torch.equal(found, logits(whole))
    assert (found - rounded).abs().max() > 1e-2
    with computed_in(peft.get_base_model(), dtype), peft.disable_adapter():
        assert (logits(peft) - found).abs().max() > 0.1
    assert state(peft) == before and not changes(peft)
    assert torch.equal(logits(peft), rounded)


def test_an_adapter_of_the_head_itself() -> None:
    peft = get_peft_model(model_of("qwen3"), lora(target_modules=["lm_head", "embed_tokens"]))
    for parameter in (p for p in peft.parameters() if p.requires_grad):
        parameter.data.normal_(generator=torch.Generator().manual_seed(2))
    whole = cast(peft, torch.float32)
    with computed_in(peft.get_base_model(), torch.float32):
        found = logits(peft)
    assert torch.equal(found, logits(whole))
    with computed_in(peft.get_base_model(), torch.float32), peft.disable_adapter():
        assert (logits(peft) - found).abs().max() > 1


def test_autocast_around_it_does_not_count() -> None:
    model = model_of("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16), computed_in(model, torch.float32):
        found = logits(model)
    assert torch.equal(found, logits(cast(model, torch.float32)))


def test_the_head_is_cast_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    linear = nn.functional.linear
    monkeypatch.setattr(exact, "_ROWS", 100)
    monkeypatch.setattr(exact.F, "linear", lambda x, w, *rest: seen.append(len(w)) or linear(x, w, *rest))
    model = model_of("gpt2")
    with computed_in(model, torch.float32):
        found = logits(model)
    assert seen == [100] * (model.config.vocab_size // 100) + [model.config.vocab_size % 100]
    assert torch.allclose(found, logits(cast(model, torch.float32)), atol=1e-5)


def test_one_layer_is_large_at_a_time() -> None:
    """While a layer computes, no other one's weights are cast up."""
    model, most = model_of("llama"), []
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    with computed_in(model, torch.float32):
        for layer in layers:
            layer.register_forward_hook(
                lambda *_: most.append([layer.weight.dtype for layer in layers].count(torch.float32)), prepend=True
            )
        logits(model)
    assert most == [1] * (len(layers) - 1) + [0], "all but the head, which is cast some rows at a time"


# -------------------------------------------------------------------- an end before its time


class Trouble(Exception):
    pass


@pytest.mark.parametrize("error", [Trouble, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["around", "layer", "head"])
def test_everything_is_put_back_after(error: type[BaseException], where: str) -> None:
    peft = with_adapter(model_of("llama"))
    model = peft.get_base_model()
    before, rounded = state(peft), logits(peft)

    def stop(*_: Any) -> None:
        raise error

    inside = {"layer": model.model.layers[1].mlp.down_proj.base_layer, "head": model.lm_head, "around": None}[where]
    with pytest.raises(error), computed_in(model, torch.float32):
        logits(peft)
        if inside is None:
            stop()
        handle = inside.register_forward_hook(stop, prepend=True)
        try:
            logits(peft)
        finally:
            handle.remove()
    assert state(peft) == before and not changes(peft)
    assert torch.equal(logits(peft), rounded)


def test_gradients_are_off_inside_and_as_before_behind() -> None:
    model = base_of_type("llama")
    with computed_in(model, torch.float64):
        assert not model(input_ids=IDS).logits.requires_grad
    assert model(input_ids=IDS).logits.requires_grad
