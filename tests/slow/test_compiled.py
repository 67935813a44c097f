"""`torch_compile` in PPO: the run without it is the oracle."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from backbones import tiny_backbone
from ppo_trainers import trainer
from test_packed_linear import in_bfloat16

from rlhf_kit.rewards import autocast

pytestmark = pytest.mark.slow


def test_a_compiled_run_learns_what_the_plain_one_does(tmp_path: Path) -> None:
    logs, weights = [], []
    for compiled in (True, False):
        made = trainer(tmp_path, torch_compile=compiled, num_ppo_epochs=2, learning_rate=1e-3)
        layer = made.roles.policy.backbone.decoder.layers[0]
        seen: list[bool] = []
        step = made.training_step

        def watched(*given: object, step=step, layer=layer, seen=seen) -> torch.Tensor:  # type: ignore[no-untyped-def]
            seen.append(layer._compiled_call_impl is not None)
            return step(*given)  # type: ignore[no-any-return]

        made.training_step = watched
        made.train()
        assert seen == [compiled] * 2 and layer._compiled_call_impl is None
        logs.append([row for row in made.state.log_history if "kl" in row])
        weights.append([parameter.detach().clone() for parameter in made.roles.policy.parameters()])
    for found, expected in zip(*logs, strict=True):
        for name in ("score", "kl", "policy_loss", "value_loss", "approx_kl", "policy_grad_norm"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
    for found, expected in zip(*weights, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_the_first_ratio_is_one_in_bfloat16_too() -> None:
    """What is compiled for scoring and for training rounds in the same places."""
    backbone = in_bfloat16("policy")
    backbone.train_only("policy")
    ids = torch.arange(3, 51).view(4, 12)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with backbone.compiled(), backbone.role("policy"), autocast(backbone):
        backbone.train()
        learned = backbone(ids, mask)
        assert learned.requires_grad
        backbone.eval()
        with torch.no_grad():
            scored = backbone(ids, mask)
    assert torch.equal(learned.detach(), scored)
    with torch.no_grad(), backbone.role("policy"), autocast(backbone):
        torch.testing.assert_close(scored.float(), backbone(ids, mask).float(), atol=0.1, rtol=0.05)


def test_roles_keep_their_own_weights_when_compiled() -> None:
    backbone = tiny_backbone("policy", "sft")
    ids = torch.arange(3, 27).view(2, 12)
    mask = torch.ones_like(ids, dtype=torch.bool)
    roles = ("policy", "sft", None, "policy")
    with torch.no_grad():
        plain = [_states(backbone, role, ids, mask) for role in roles]
        with backbone.compiled():
            found = [_states(backbone, role, ids, mask) for role in roles]
    for one, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(one, expected, atol=1e-4, rtol=1e-4)
    assert (plain[0] - plain[1]).abs().max() > 0.01 and torch.equal(found[0], found[3])


def _states(backbone, role, ids, mask) -> torch.Tensor:  # type: ignore[no-untyped-def]
    with backbone.role(role):
        states: torch.Tensor = backbone(ids, mask)
    return states
