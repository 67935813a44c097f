"""The mathematics of PPO on the tensors that TRL 1.12.0's `PPOTrainer` recorded (`benchmarks/record_trl_ppo.py`).

TRL's conventions differ from the kit's in three places; here they stand openly, so that everything else must be equal:

* A response that ends before the last position has one more position in TRL: the score is paid there, it has a value
  of its own, and it counts in rewards, returns and the value loss, not in advantages and the policy loss. Its mask is
  `padding_mask_p1`, True where there is nothing. The kit pays the score on the last token. Given that longer mask,
  the kit's functions must give what TRL has. Responses that fill all positions need no such thing.
* TRL whitens with the variance over n - 1 positions, the kit with that over n: `bessel` is the factor between them.
* What lies under a mask is never compared: TRL leaves 1.0 in log-probabilities and zeros in the rest. The kit's
  functions get NaN there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlhf_kit import rl

FIXTURES = Path(__file__).parent / "fixtures" / "trl_ppo"
ABOUT = json.loads((FIXTURES / "settings.json").read_text())
EVERY_CASE = sorted(ABOUT["cases"])
TOLERANCE = 1e-6  # absolute, and relative where numbers are larger than 1: sums of a hundred in another order


@dataclass(frozen=True)
class Recording:
    """One case: its settings, its tensors, and TRL's two masks the kit's way round (True = real)."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def mask(self) -> Tensor:
        return ~self["padding_mask"]

    @property
    def longer_mask(self) -> Tensor:
        return ~self["padding_mask_p1"]

    def micro_batches(self) -> list[dict[str, Tensor]]:
        """The tensors of each micro-batch, with its rows of the rollout's."""
        found = []
        for i in range(ABOUT["micro_batches"]):
            own = {name.removeprefix(f"{i}."): x for name, x in self.tensors.items() if name.startswith(f"{i}.")}
            rows = own["micro_batch_inds"]
            rollout = {name: x[rows] for name, x in self.tensors.items() if not name[0].isdigit()}
            found.append({**rollout, **own})
        return found


@pytest.fixture(params=EVERY_CASE)
def recording(request: pytest.FixtureRequest) -> Recording:
    return Recording(ABOUT["cases"][request.param], load_file(FIXTURES / f"{request.param}.safetensors"))


def same(found: Tensor, expected: Tensor, mask: Tensor | None = None) -> None:
    if mask is not None:
        found, expected = found[mask], expected[mask]
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def real(x: Tensor, mask: Tensor) -> Tensor:
    """NaN under the mask."""
    return torch.where(mask, x, torch.nan)


def bessel(mask: Tensor) -> Tensor:
    n = mask.sum()
    return ((n - 1) / n).sqrt()


def rewards_of(recording: Recording) -> Tensor:
    """What the kit pays each position, with TRL's longer episodes."""
    settings, mask = recording.settings, recording.longer_mask
    kl = rl.kl_penalty(recording["logprobs"], recording["ref_logprobs"], settings["kl_estimator"])
    rewards = rl.token_rewards(recording["scores"], real(kl, mask), mask, settings["kl_coef"])
    if settings["whiten_rewards"]:
        mean = rl.masked_mean(rewards, mask)
        whitened = rl.masked_whiten(real(rewards, mask), mask, shift_mean=False)
        rewards = torch.where(mask, (whitened - mean) * bessel(mask) + mean, 0.0)
    return rewards


def test_the_recordings_are_of_the_last_trl_with_ppo_and_of_what_they_claim():
    assert ABOUT["versions"]["trl"].startswith("1.12.")
    seen = {name: {case[name] for case in ABOUT["cases"].values()} for name in ABOUT["cases"][EVERY_CASE[0]]}
    assert seen["kl_estimator"] == {"k1", "k3"} and seen["whiten_rewards"] == {True, False}
    assert seen["stop_token"] == {"eos", None} and None in seen["missing_eos_penalty"]
    assert len(seen["gamma"]) > 1 and len(seen["lam"]) > 1


def test_masks_are_those_of_the_responses(recording):
    """TRL's masks, from its tokens: up to EOS where it stops there, and one position more where there is room."""
    ids, width = recording["responses"], recording["responses"].size(1)
    ends = (ids == 2).int() if recording.settings["stop_token"] else torch.zeros_like(ids)
    lengths = torch.where(ends.any(1), ends.argmax(1) + 1, width)
    positions = torch.arange(width)
    assert torch.equal(recording.mask, positions < lengths[:, None])
    assert torch.equal(recording.longer_mask, positions < lengths[:, None] + 1)
    if recording.settings["stop_token"]:
        assert lengths.min() < width and lengths.max() == width
    else:  # both masks are full: of the conventions above, only the n - 1 is left
        assert lengths.min() == width


def test_scores_less_the_penalty_for_a_missing_eos(recording):
    penalty = recording.settings["missing_eos_penalty"] or 0.0
    ended = (recording["responses"] == 2).any(1)
    assert torch.equal(ended, recording["contain_eos_token"])
    same(recording["raw_scores"] - penalty * (~ended).float(), recording["scores"])


def test_kl(recording):
    found = rl.kl_penalty(recording["logprobs"], recording["ref_logprobs"], recording.settings["kl_estimator"])
    same(found, recording["kl"], recording.mask)
    assert recording["kl"][recording.mask].abs().max() > 0.5


def test_rewards(recording):
    same(rewards_of(recording), recording["rewards"], recording.longer_mask)


def test_advantages_and_returns(recording):
    settings, mask, longer = recording.settings, recording.mask, recording.longer_mask
    rewards, values = real(rewards_of(recording), longer), real(recording["values"], longer)
    advantages, returns = rl.gae(rewards, values, longer, gamma=settings["gamma"], lam=settings["lam"])
    same(returns, recording["returns"], longer)
    # The position of the score has no advantage: nothing was chosen there.
    same(rl.masked_whiten(real(advantages, mask), mask) * bessel(mask), recording["advantages"], mask)


def test_losses_and_their_gradients(recording):
    settings = recording.settings
    clipped_tokens = clipped_values = 0
    for batch in recording.micro_batches():
        mask, longer = ~batch["padding_mask"], ~batch["padding_mask_p1"]
        new_log_probs, old_log_probs, advantages = (
            real(batch[name], mask) for name in ("new_logprobs", "logprobs", "advantages")
        )
        values, old_values, returns = (real(batch[name], longer) for name in ("vpred", "values", "returns"))
        new_log_probs.requires_grad_()
        values.requires_grad_()
        per_token, clipped = rl.policy_loss(
            new_log_probs, old_log_probs, advantages, mask, cliprange=settings["cliprange"]
        )
        per_value, value_clipped = rl.value_loss(
            values, old_values, returns, longer, cliprange_value=settings["cliprange_value"]
        )
        policy_loss, value_loss = per_token.sum() / mask.sum(), per_value.sum() / longer.sum()
        loss = policy_loss + settings["vf_coef"] * value_loss
        same(policy_loss, batch["pg_loss"])
        same(value_loss, batch["vf_loss"])
        same(loss, batch["loss"])

        loss.backward()
        # Of the sum, not of the mean: else the gradients would be as small as the tolerance.
        same(new_log_probs.grad * mask.sum(), batch["new_logprobs_grad"] * mask.sum(), mask)
        same(values.grad * longer.sum(), batch["vpred_grad"] * longer.sum(), longer)
        assert not new_log_probs.grad[~mask].any() and not values.grad[~longer].any()

        assert torch.equal(clipped, (batch["pg_losses2"] > batch["pg_losses"]) & mask)
        same(value_clipped.sum() / longer.sum(), batch["vf_clipfrac"])
        clipped_tokens, clipped_values = clipped_tokens + int(clipped.sum()), clipped_values + int(value_clipped.sum())
    assert clipped_tokens and clipped_values
