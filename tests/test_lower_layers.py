"""Layers below every adapter are computed once: the plain path is the oracle, and passes are counted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import add_head, backbone_of_type, lora, stir, tiny_backbone
from ppo_trainers import PROMPTS, ROWS, config, episodes_of, gradients
from torch import nn

from rlhf_kit import PPOTrainer
from rlhf_kit.batches import Sequences
from rlhf_kit.models import Backbone

LINEARS = ("q_proj", "up_proj", "c_attn", "query_key_value", "fc1", "in_proj")


def upper_half(model_type: str, *names: str, layers: int = 4) -> Backbone:
    """A model of four layers, the upper two of them adapted."""
    backbone = backbone_of_type(model_type, **{"n_layer" if model_type == "gpt2" else "num_hidden_layers": layers})
    there = {name.rpartition(".")[2] for name, _ in backbone.base.named_modules()}
    targets = [name for name in LINEARS if name in there]
    for seed, name in enumerate(names):
        config = lora(
            target_modules=targets, layers_to_transform=[layers - 2, layers - 1], fan_in_fan_out=model_type == "gpt2"
        )
        backbone.add_adapter(name, config)
        stir(backbone, name, seed + 1, 0.3)
    return backbone.eval()


def sequences() -> Sequences:
    """Six of prompts of several lengths; three have the same prompt."""
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[2], PROMPTS[0], PROMPTS[3]]
    return Sequences.collate(prompts, [prompt[::-1] * (1 + n % 2) for n, prompt in enumerate(prompts)], 0)


def passes(layer: nn.Module) -> list[int]:
    """Grows by the rows of each pass that really computes in a layer."""
    seen: list[int] = []
    norm = next(module for module in layer.children() if "Norm" in type(module).__name__)
    norm.register_forward_hook(lambda module, given, made: seen.append(made.shape[0] * made.shape[1]))
    return seen


# ---------------------------------------------------------------- exact


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "opt"])
def test_every_role_gets_the_hidden_states_of_the_plain_pass(model_type: str) -> None:
    backbone, batch = upper_half(model_type, "policy", "sft"), sequences()
    lower = backbone.lower_layers
    assert lower.count == 2
    states = lower.states(batch.input_ids, batch.attention_mask, batch.prompt_length)
    for name in ("policy", "sft"):
        with backbone.role(name):
            plain = backbone(batch.input_ids, batch.attention_mask)
            found = backbone(batch.input_ids, batch.attention_mask, lower=states)
        difference = (found - plain)[batch.attention_mask].abs().max()
        assert difference < 1e-5 * plain[batch.attention_mask].abs().max(), (name, difference)


def test_gradients_are_those_of_the_plain_pass_with_and_without_checkpointing() -> None:
    batch, found = sequences(), []
    for kept, checkpointed in ((False, False), (True, False), (True, True)):
        backbone = upper_half("llama", "policy")
        backbone.train_only("policy")
        lower = None
        if kept:
            lower = backbone.lower_layers.states(batch.input_ids, batch.attention_mask, batch.prompt_length)
        if checkpointed:
            backbone.use_checkpointing()
            backbone.train()
        with backbone.role("policy"):
            hidden = backbone(batch.input_ids, batch.attention_mask, lower=lower)[batch.attention_mask]
            (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
        found.append([parameter.grad for parameter in backbone.adapter_parameters("policy")])
    for plain, kept, recomputed in zip(*found, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(kept, plain, atol=1e-5 * float(plain.abs().max()), rtol=1e-4)
        torch.testing.assert_close(recomputed, kept, atol=1e-6 * float(plain.abs().max()), rtol=1e-5)


def test_a_prompt_that_several_rows_share_is_read_once() -> None:
    backbone, batch = upper_half("llama", "policy"), sequences()
    assert backbone.lower_layers.count == 2
    seen = passes(backbone.lower_layers.layers[0])
    backbone.lower_layers.states(batch.input_ids, batch.attention_mask, batch.prompt_length)
    assert seen == [4 * batch.prompt_length, 6 * batch.response_length]


# ---------------------------------------------------------------- where there is nothing to keep


def test_no_layer_is_kept_that_an_adapter_changes() -> None:
    assert tiny_backbone("policy").lower_layers.count == 0  # all layers
    assert tiny_backbone().lower_layers.count == 0  # no adapter, and a base that may learn
    backbone = upper_half("llama", "policy")
    assert backbone.lower_layers.count == 2
    backbone.add_adapter("lower", lora(target_modules=["q_proj"], layers_to_transform=[1]))
    assert backbone.lower_layers.count == 1
    backbone.add_adapter("embedding", lora(target_modules=["embed_tokens"]))
    assert backbone.lower_layers.count == 0


def test_a_model_that_cannot_be_divided_is_left_alone_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    backbone = upper_half("llama", "policy")
    first = backbone.lower_layers.layers[0]
    plain = first.forward
    # A layer that hands its successor something besides the hidden states, as a state of its own would be.
    kept: list[torch.Tensor] = []
    first.forward = lambda h, *a, **k: (kept.append(h), plain(h, *a, **k))[1]
    third = backbone.lower_layers.layers[2]
    after = third.forward
    third.forward = lambda h, *a, **k: after(h + kept.pop() if kept else h, *a, **k)
    vars(backbone)["_lower"] = None
    with caplog.at_level(logging.INFO, "rlhf_kit"):
        assert backbone.lower_layers.count == 0
    assert "lower layers are computed by each role" in caplog.text


# ---------------------------------------------------------------- PPO


def trainer(directory: Path, **fields: Any) -> PPOTrainer:
    """Policy, reference, reward and value model above the first two of four layers."""
    names = ("sft", "policy", "reward", *(() if fields.get("value") == "shared" else ("value",)))
    backbone = upper_half("llama", *names)
    for seed, name in enumerate(("reward", "value")):
        add_head(backbone, name, seed)
    return PPOTrainer(model=backbone, reward_funcs="reward", args=config(directory, **fields), train_dataset=ROWS)


@pytest.mark.parametrize("value", ["shared", "adapter"])
@pytest.mark.parametrize("generations", [1, 4])
def test_an_update_is_the_plain_one(tmp_path: Path, value: str, generations: int) -> None:
    fields = {"value": value, "num_generations": generations, "num_ppo_epochs": 2, "num_mini_batches": 2}
    kept, plain = trainer(tmp_path, **fields), trainer(tmp_path, frozen_states_limit=0, **fields)
    episodes, expected = episodes_of(kept), episodes_of(plain)
    assert episodes.sequences.lower is not None and expected.sequences.lower is None
    assert torch.equal(episodes.sequences.input_ids, expected.sequences.input_ids)
    for name in ("log_probs", "values", "advantages", "returns", "kl", "score"):
        torch.testing.assert_close(getattr(episodes, name), getattr(expected, name), atol=1e-5, rtol=1e-5)
    found, wanted = gradients(kept, episodes, 4), gradients(plain, expected, 4)
    assert found.keys() == wanted.keys() and len(found) > 4
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-4)


def test_whole_runs_learn_the_same(tmp_path: Path) -> None:
    weights = []
    for limit in (1024, 0):
        made = trainer(tmp_path, num_ppo_epochs=2, num_mini_batches=2, frozen_states_limit=limit, learning_rate=1e-3)
        before = [p.detach().clone() for p in made.roles.policy.parameters()]
        made.train()
        weights.append([p.detach() - b for p, b in zip(made.roles.policy.parameters(), before, strict=True)])
    moved = max(float(change.abs().max()) for change in weights[1])
    assert moved > 1e-3
    for found, expected in zip(*weights, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-2 * moved, rtol=0)


def test_the_lower_layers_run_once_an_update_whatever_the_roles_and_epochs(tmp_path: Path) -> None:
    made = trainer(tmp_path, num_ppo_epochs=3, num_mini_batches=2, frozen_states_limit=1024)
    seen = passes(made.roles.policy.backbone.lower_layers.layers[0])
    episodes = episodes_of(made)
    sampled = seen[:-1]
    assert seen[-1] == episodes.sequences.input_ids.numel()  # once for all of scoring
    assert len(sampled) == 6 or len(sampled) == int(episodes.sequences.response_mask.sum(1).max())
    for minibatch in episodes.minibatches(4, torch.Generator().manual_seed(0)):
        made.learner.minibatch(minibatch, 0)
    assert len(seen) == len(sampled) + 1


def test_what_does_not_fit_is_computed_once_for_the_roles_of_a_part(tmp_path: Path) -> None:
    sizes = {"value": "adapter", "per_device_train_batch_size": 4, "num_mini_batches": 2, "batch_size": 8}
    made = trainer(tmp_path, frozen_states_limit=1e-6, **sizes)
    seen = passes(made.roles.policy.backbone.lower_layers.layers[0])
    episodes = episodes_of(made)
    assert episodes.sequences.lower is None
    width = episodes.sequences.input_ids.size(1)
    # Policy, reference and value model share a pass for each of the two parts; the reward model has its own.
    assert seen[-4:] == [4 * width] * 4 and seen[-5] <= 8
    plain = episodes_of(trainer(tmp_path, value="adapter", frozen_states_limit=0))
    torch.testing.assert_close(episodes.log_probs, plain.log_probs, atol=1e-5, rtol=1e-5)
