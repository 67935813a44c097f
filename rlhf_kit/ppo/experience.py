"""From prompts to episodes: answers are sampled, scored, compared with the reference, and turned into advantages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_kit import launch, rl
from rlhf_kit.batches import Episodes, Sequences
from rlhf_kit.ppo.answers import Answers
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.prompts import PromptRow
from rlhf_kit.ppo.rewarding import Rewards, Scored, means_of
from rlhf_kit.ppo.roles import Role, Roles
from rlhf_kit.recipe_ppo import Sizes
from rlhf_kit.rewards import autocast
from rlhf_kit.rollout import Ending, sample_in_batches

Figures = dict[str, float]


@dataclass(frozen=True)
class Judged:
    """What the roles say of B answers, (B, R) each and float32: log-probabilities of policy and reference, the policy's
    entropies, values."""

    log_probs: Tensor
    reference: Tensor
    entropy: Tensor
    values: Tensor


class Experience:
    """Makes the episodes of an update.

    Args:
        roles: who plays what.
        config: the settings.
        rewards: what scores.
        bf16: autocast also on a float32 base.
    """

    def __init__(self, roles: Roles, config: PPOConfig, rewards: Rewards, *, bf16: bool = False) -> None:
        self.roles, self.config, self.rewards = roles, config, rewards
        self.sizes = Sizes.of(config, launch.processes())
        self.bf16 = bf16
        self.layer_by_layer = launch.parted() and not config.ds3_gather_for_generation
        self.tokenizer = roles.policy.backbone.tokenizer
        eos = (self.tokenizer.eos_token_id,) if config.stop_token == "eos" else ()
        tokens = eos if config.stop_token_id is None else (config.stop_token_id,)
        self.ending = Ending(tokens, config.response_length, tuple(config.stop), config.min_response_length)

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.roles.policy.backbone.device

    def precision(self, role: Role) -> torch.autocast:
        """The autocast under which a role computes, in rollouts and in training alike."""
        if self.bf16:
            return torch.autocast(role.backbone.device.type, dtype=torch.bfloat16)
        return autocast(role.backbone)

    def sample(self, rows: Sequence[PromptRow], generator: torch.Generator, role: Role | None = None) -> Answers:
        """One answer of the policy, or of another role, to each prompt; of several processes each samples its share.

        Args:
            generator: of this process.
        """
        role, config, ending = role or self.roles.policy, self.config, self.ending
        with role.playing(), self.precision(role):
            responses = sample_in_batches(
                role.backbone,
                [row.ids for row in rows[launch.share(len(rows))]],
                batch_size=config.local_rollout_forward_batch_size,
                max_new_tokens=ending.most,
                min_new_tokens=ending.least,
                temperature=config.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
                stop=ending.texts,
                stop_token_ids=ending.tokens,
                generator=generator,
                in_step=launch.any_of if self.layer_by_layer else None,
            )
        responses = launch.gathered(responses)
        pad = role.backbone.padding_id
        sequences = Sequences.collate([row.ids for row in rows], responses, pad).to(self.device)
        ended = torch.tensor([ending.ended(response, self.tokenizer) for response in responses])
        return Answers.of(rows, responses, ended, sequences, self.tokenizer)

    def collect(
        self, rows: Sequence[PromptRow], generator: torch.Generator, kl_coef: float
    ) -> tuple[Episodes, Figures]:
        """The episodes of an update and their figures.

        Args:
            rows: a prompt for each episode.
            kl_coef: what a nat of divergence costs now.
        """
        started = time.perf_counter()
        answers = self.sample(rows, generator)
        sampled = time.perf_counter()
        judged = self.judge(answers.sequences)
        raw = self.raw(answers)
        scored = Scored(self.rewards.total(raw), raw)
        episodes, figures = self._episodes(answers, judged, scored, kl_coef)
        ended = time.perf_counter()
        figures |= {"seconds_generate": sampled - started, "seconds_score": ended - sampled}
        return episodes, self.rewards.logged() | figures

    @torch.no_grad()
    def judge(self, sequences: Sequences) -> Judged:
        """What the roles say, in the shapes that training uses: each part is padded as the whole is, and has as many
        rows as a micro-batch, so that the first ratio is exactly 1. Of several processes each asks for its share."""
        self.roles.eval()
        count = len(sequences.input_ids)
        parts = [
            self._judge(sequences.select(rows))
            for rows in torch.arange(count)[launch.share(count)].split(self.sizes.micro)
        ]
        return Judged(*(launch.gathered_rows(torch.cat(column)) for column in zip(*parts, strict=True)))

    def raw(self, answers: Answers) -> dict[str, Tensor]:
        """(B,) float32 on the CPU: what each source says; of several processes each asks for its share."""
        said = self.rewards.raw(answers.select(torch.arange(len(answers))[launch.share(len(answers))]))
        return {name: launch.gathered_rows(scores.to(self.device)).cpu() for name, scores in said.items()}

    def _judge(self, part: Sequences) -> tuple[Tensor, ...]:
        roles = self.roles
        with roles.policy.playing(), self.precision(roles.policy):
            states = roles.policy.states(part)
            log_probs, entropy = self.log_probs(roles.policy, states, part)
            if roles.shared:
                values = roles.head(states)
        with roles.reference.playing(), self.precision(roles.reference):
            reference, _ = self.log_probs(roles.reference, roles.reference.states(part), part)
        if not roles.shared:
            with roles.value.playing(), self.precision(roles.value):
                values = roles.head(roles.value.states(part))
        return log_probs, reference, entropy, values

    def log_probs(
        self, role: Role, states: Tensor, part: Sequences, *, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (B, R) of the responses, at the temperature of sampling."""
        return role.backbone.log_probs(
            states, part.responses, temperature=self.config.temperature, entropy_gradient=entropy_gradient
        )

    def _episodes(self, answers: Answers, judged: Judged, scored: Scored, kl_coef: float) -> tuple[Episodes, Figures]:
        config, mask = self.config, answers.sequences.response_mask
        lengths = mask.sum(1)
        score = self.penalised(scored.total.to(self.device), answers.ended.to(self.device), lengths)
        kl = rl.kl_penalty(judged.log_probs, judged.reference, config.kl_estimator)
        token_rewards = rl.token_rewards(score, kl, mask, kl_coef)
        if config.whiten_rewards:
            token_rewards = rl.masked_whiten(token_rewards, mask, shift_mean=False)
        advantages, returns = rl.gae(token_rewards, judged.values, mask, gamma=config.gamma, lam=config.lam)
        figures: Figures = {
            "score": float(scored.total.mean()),
            "score_std": float(scored.total.std(correction=0)),
            **means_of(scored.raw),
            "kl": float(torch.where(mask, judged.log_probs - judged.reference, 0.0).sum(1).mean()),
            "kl_coef": kl_coef,
            "entropy": float(rl.masked_mean(judged.entropy, mask)),
            "response_length": float(lengths.float().mean()),
            "eos_rate": float(answers.ended.float().mean()),
            "explained_variance": float(rl.explained_variance(judged.values, returns, mask)),
        }
        if config.whiten_advantages:
            advantages = rl.masked_whiten(advantages, mask)
        kl = torch.where(mask, kl, 0.0)
        return Episodes(answers.sequences, judged.log_probs, judged.values, advantages, returns, kl, score), figures

    def penalised(self, score: Tensor, ended: Tensor, lengths: Tensor) -> Tensor:
        """(B,) the score less what a missing end (arXiv 2403.17031) and each token cost."""
        config = self.config
        if config.missing_eos_penalty is not None:
            score = score - config.missing_eos_penalty * (~ended).float()
        return score - config.length_penalty * lengths.float()
