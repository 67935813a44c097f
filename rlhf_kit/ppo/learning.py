"""From episodes to gradients: policy and value model, as a rule one backward pass a role, each inside its role."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rlhf_kit import launch, rl
from rlhf_kit.batches import Episodes
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.experience import Experience, Figures
from rlhf_kit.ppo.ptx import PretrainingText, TextBatch
from rlhf_kit.ppo.roles import Role, Roles

Loss = Callable[[], tuple[Tensor, dict[str, Tensor]]]
"""Computes the loss of one role, and its figures."""
Backward = Callable[[Loss, bool], dict[str, Tensor]]
"""Adds the gradients of a loss; the flag says whether it is the last one before an optimiser step."""


class Learner:
    """Adds up the gradients of a mini-batch.

    Args:
        experience: of the run; it says how log-probabilities are computed.
        backward: forward and backward pass of the trainer's engine.
        text: pretraining text for PPO-ptx.
        joint: one backward pass of a micro-batch for all roles, for engines that need every trained parameter in each
            (DeepSpeed's ZeRO-3 adds up stale gradients otherwise, without an error); else one a role, in less memory.
    """

    def __init__(
        self, experience: Experience, backward: Backward, text: PretrainingText | None = None, *, joint: bool = False
    ) -> None:
        self.experience, self.backward, self.text, self.joint = experience, backward, text, joint
        self.roles: Roles = experience.roles
        self.config: PPOConfig = experience.config
        clipping = self.config.algorithm == "ppo"
        self.cliprange = self.config.cliprange if clipping else None
        self.cliprange_value = self.config.cliprange_value if clipping else None

    def minibatch(self, episodes: Episodes, number: int, *, critic_only: bool = False) -> Figures:
        """Gradients of a mini-batch, in micro-batches; the figures are means over its tokens.

        Losses are sums over real tokens divided by the real tokens of the whole mini-batch, so that micro-batches of
        any size, on any number of processes, add up to it.

        Args:
            episodes: of all processes; each learns from its share.
            number: of the mini-batch in the run; it says which pretraining text comes with it.
            critic_only: the value model alone learns.

        Raises:
            RlhfKitError: a loss that is not finite.
        """
        share = 1.0 / int(episodes.sequences.response_mask.sum())
        mine = torch.arange(len(episodes))[launch.share(len(episodes))].split(self.experience.sizes.micro)
        passes = [self._losses(episodes.select(rows), share, critic_only) for rows in mine]
        text = [] if self.text is None or critic_only else self._pretraining(number)
        if self.joint:
            passes = [losses + text[place :: len(passes)] for place, losses in enumerate(passes)]
        else:
            passes = [[loss] for losses in (*passes, text) for loss in losses]
        figures: dict[str, float] = {}
        for place, losses in enumerate(passes):
            with contextlib.nullcontext() if self.joint else losses[0][0].playing():
                found = self.backward(partial(self._sum, losses), place == len(passes) - 1)
            for name, value in found.items():
                figures[name] = figures.get(name, 0.0) + float(value)
        return launch.summed(figures)

    def _sum(self, losses: list[tuple[Role, Loss]]) -> tuple[Tensor, dict[str, Tensor]]:
        total, found = torch.zeros((), device=self.experience.device), dict[str, Tensor]()
        for role, loss in losses:
            with role.playing():
                part, figures = self._in_its_precision(role, loss)
            total = total + part
            found |= {name: found.get(name, 0.0) + value for name, value in figures.items()}
        return total, found

    def _in_its_precision(self, role: Role, loss: Loss) -> tuple[Tensor, dict[str, Tensor]]:
        with self.experience.precision(role):
            total, found = loss()
        if not torch.isfinite(total):
            raise RlhfKitError(
                f"ppo: a loss is {total.item()}; lower ppo.learning_rate or raise ppo.kl_coef. What was saved before "
                "is kept, and the same command goes on from it"
            )
        return total, found

    def _losses(self, episodes: Episodes, share: float, critic_only: bool) -> list[tuple[Role, Loss]]:
        """Those of a micro-batch: one a role, each for a backward pass of its own."""
        roles = self.roles
        policy = (roles.policy, partial(self._of_policy, episodes, share, critic_only))
        if roles.shared:
            return [policy]
        value = (roles.value, partial(self._of_value, episodes, share))
        return [value] if critic_only else [policy, value]

    def _of_policy(self, episodes: Episodes, share: float, critic_only: bool) -> tuple[Tensor, dict[str, Tensor]]:
        roles = self.roles
        states = roles.states(roles.policy, episodes.sequences)
        if critic_only:  # a shared trunk is the policy's, and stays as it is
            return self._value_loss(roles.head(states.detach()), episodes, share)
        loss, found = self._policy_loss(states, episodes, share)
        if roles.shared:
            value_loss, of_value = self._value_loss(roles.head(states), episodes, share)
            loss, found = loss + value_loss, found | of_value
        return loss, found

    def _of_value(self, episodes: Episodes, share: float) -> tuple[Tensor, dict[str, Tensor]]:
        values = self.roles.head(self.roles.states(self.roles.value, episodes.sequences))
        return self._value_loss(values, episodes, share)

    def _policy_loss(self, states: Tensor, episodes: Episodes, share: float) -> tuple[Tensor, dict[str, Tensor]]:
        config, mask = self.config, episodes.sequences.response_mask
        log_probs, entropy = self.experience.log_probs(
            self.roles.policy, states, episodes.sequences, entropy_gradient=config.entropy_coef > 0
        )
        per_token, clipped = rl.policy_loss(
            log_probs,
            episodes.log_probs,
            episodes.advantages,
            mask,
            cliprange=self.cliprange,
            dual_clip=config.dual_clip,
            importance=episodes.importance,
        )
        loss = per_token.sum() * share
        moved = torch.where(mask, log_probs.detach() - episodes.log_probs, 0.0)
        found = {
            "policy_loss": loss.detach(),
            "clip_fraction": clipped.sum() * share,
            "approx_kl": (moved**2 / 2).sum() * share,
        }
        if config.entropy_coef:
            loss = loss - config.entropy_coef * torch.where(mask, entropy, 0.0).sum() * share
        return loss, found

    def _value_loss(self, values: Tensor, episodes: Episodes, share: float) -> tuple[Tensor, dict[str, Tensor]]:
        per_token, clipped = rl.value_loss(
            values,
            episodes.values,
            episodes.returns,
            episodes.sequences.response_mask,
            cliprange_value=self.cliprange_value,
        )
        loss = self.config.vf_coef * per_token.sum() * share
        return loss, {"value_loss": loss.detach(), "value_clip_fraction": clipped.sum() * share}

    def _pretraining(self, number: int) -> list[tuple[Role, Loss]]:
        """gamma times the mean loss a token of the text that comes with a mini-batch (arXiv 2203.02155, eq. 2)."""
        assert self.text is not None
        batches = self.text.batches(number, self.experience.sizes.micro)
        return [(self.roles.policy, partial(self._of_text, batch, share)) for batch, share in batches]

    def _of_text(self, batch: TextBatch, share: float) -> tuple[Tensor, dict[str, Tensor]]:
        loss = PretrainingText.loss(self.roles.policy.backbone, batch.to(self.experience.device)) * share
        return self.config.ptx_coef * loss, {"ptx_loss": loss.detach()}
