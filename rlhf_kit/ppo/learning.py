"""From episodes to gradients: policy and value model, one backward pass a role, each inside its role."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_kit import rl
from rlhf_kit.batches import Episodes
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.experience import Experience, Figures
from rlhf_kit.ppo.ptx import PretrainingText
from rlhf_kit.ppo.roles import Roles

Backward = Callable[[Tensor], None]


class Learner:
    """Adds up the gradients of a mini-batch.

    Args:
        experience: of the run; it says how log-probabilities are computed.
        backward: of the accelerator.
        text: pretraining text for PPO-ptx.
    """

    def __init__(self, experience: Experience, backward: Backward, text: PretrainingText | None = None) -> None:
        self.experience, self.backward, self.text = experience, backward, text
        self.roles: Roles = experience.roles
        self.config: PPOConfig = experience.config
        clipping = self.config.algorithm == "ppo"
        self.cliprange = self.config.cliprange if clipping else None
        self.cliprange_value = self.config.cliprange_value if clipping else None

    def minibatch(self, episodes: Episodes, number: int, *, critic_only: bool = False) -> Figures:
        """Gradients of a mini-batch, in micro-batches; the figures are means over its tokens.

        Losses are sums over real tokens divided by the real tokens of the whole mini-batch, so that micro-batches of
        any size add up to it.

        Args:
            number: of the mini-batch in the run; it says which pretraining text comes with it.
            critic_only: the value model alone learns.

        Raises:
            RlhfKitError: a loss that is not finite.
        """
        tokens = int(episodes.sequences.response_mask.sum())
        figures: dict[str, float] = {}
        for rows in torch.arange(len(episodes)).split(self.experience.sizes.micro):
            for name, value in self._micro(episodes.select(rows), 1.0 / tokens, critic_only).items():
                figures[name] = figures.get(name, 0.0) + float(value)
        if self.text is not None and not critic_only:
            figures["ptx_loss"] = self._pretraining(number)
        return figures

    def _micro(self, episodes: Episodes, share: float, critic_only: bool) -> dict[str, Tensor]:
        roles, part = self.roles, episodes.sequences
        if critic_only and not roles.shared:
            return self._value_step(episodes, share)
        with roles.policy.playing():
            with self.experience.precision(roles.policy):
                states = roles.policy.states(part)
                if critic_only:  # a shared trunk is the policy's, and stays as it is
                    loss, found = self._value_loss(roles.head(states.detach()), episodes, share)
                else:
                    loss, found = self._policy_loss(states, episodes, share)
                    if roles.shared:
                        value_loss, of_value = self._value_loss(roles.head(states), episodes, share)
                        loss, found = loss + value_loss, found | of_value
            self._check(loss)
            self.backward(loss)
        return found if roles.shared else found | self._value_step(episodes, share)

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

    def _value_step(self, episodes: Episodes, share: float) -> dict[str, Tensor]:
        role = self.roles.value
        with role.playing():
            with self.experience.precision(role):
                values = self.roles.head(role.states(episodes.sequences))
                loss, found = self._value_loss(values, episodes, share)
            self._check(loss)
            self.backward(loss)
        return found

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

    def _pretraining(self, number: int) -> float:
        """gamma times the mean loss a token of the text that comes with a mini-batch (arXiv 2203.02155, eq. 2)."""
        assert self.text is not None
        role, total = self.roles.policy, 0.0
        for batch, share in self.text.batches(number, self.experience.sizes.micro):
            with role.playing():
                with self.experience.precision(role):
                    loss = self.text.loss(role.backbone, batch.to(self.experience.device)) * share
                self._check(loss)
                self.backward(self.config.ptx_coef * loss)
            total += float(loss.detach())
        return total

    def _check(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise RlhfKitError(
                f"ppo: a loss is {loss.item()}; lower ppo.learning_rate or raise ppo.kl_coef. What was saved before is "
                "kept, and the same command goes on from it"
            )
