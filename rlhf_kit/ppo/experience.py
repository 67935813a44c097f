"""From prompts to episodes: answers are sampled, scored, compared with the reference, and turned into advantages."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_kit import launch, rl
from rlhf_kit.batches import Episodes, Sequences
from rlhf_kit.errors import EngineError
from rlhf_kit.ppo.answers import Answers
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.prompts import PromptRow
from rlhf_kit.ppo.rewarding import Rewards, Scored, means_of
from rlhf_kit.ppo.roles import Role, Roles
from rlhf_kit.ppo.sampler import OwnLoop, Sampling, Server
from rlhf_kit.recipe_ppo import Sizes
from rlhf_kit.rewards import autocast

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
        self.reuses = config.frozen_states_limit > 0 and roles.policy.backbone.lower_layers.count > 0
        self.tokenizer = roles.policy.backbone.tokenizer
        sampling = Sampling.of(config, self.tokenizer.eos_token_id)
        self.sampler: OwnLoop | Server
        if config.engine.engine == "vllm":
            self.sampler = Server(sampling, config, roles.policy)
        else:
            layer_by_layer = launch.parted() and not config.ds3_gather_for_generation
            self.sampler = OwnLoop(sampling, self.precision, in_step=layer_by_layer)

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
        role = role or self.roles.policy
        drawn = launch.gathered(self.sampler(role, rows[launch.share(len(rows))], generator))
        pad = role.backbone.padding_id
        sequences = Sequences.collate([row.ids for row in rows], [one.ids for one in drawn], pad).to(self.device)
        ending = self.sampler.sampling.ending
        ended = torch.tensor([ending.ended(one.ids, self.tokenizer) for one in drawn])
        return Answers.of(rows, drawn, ended, sequences, self.tokenizer)

    def collect(
        self, rows: Sequence[PromptRow], generator: torch.Generator, kl_coef: float
    ) -> tuple[Episodes, Figures]:
        """The episodes of an update and their figures.

        Args:
            rows: a prompt for each episode.
            kl_coef: what a nat of divergence costs now.

        Raises:
            EngineError: an engine outside the trainer fails, or draws by other probabilities than the policy's.
        """
        started = time.perf_counter()
        with self._packed():
            answers = self.sample(rows, generator)
            sampled = time.perf_counter()
            answers = replace(answers, sequences=self.lowered(answers.sequences))
            judged = self.judge(answers.sequences)
            raw = self.raw(answers)
        scored = Scored(self.rewards.total(raw), raw)
        episodes, figures = self._episodes(answers, judged, scored, kl_coef)
        if answers.sampled is not None:
            episodes, figures = self._corrected(episodes, answers.sampled, figures)
        ended = time.perf_counter()
        figures |= {"seconds_generate": sampled - started, "seconds_score": ended - sampled}
        return episodes, self.rewards.logged() | figures

    def _packed(self) -> contextlib.AbstractContextManager[None]:
        """For sampling and scoring, where the results are those of training to the bit: the first ratio must be 1."""
        policy = self.roles.policy.backbone
        return policy.packed() if policy.base.dtype == torch.bfloat16 else contextlib.nullcontext()

    @torch.no_grad()
    def lowered(self, sequences: Sequences) -> Sequences:
        """With what the layers below every adapter make of them, for all roles and passes to go on from, where that
        fits into `frozen_states_limit`; of several processes each computes its share."""
        backbone, (count, width) = self.roles.policy.backbone, sequences.input_ids.shape
        size = count * width * backbone.hidden_size * backbone.base.dtype.itemsize
        if not self.reuses or size > self.config.frozen_states_limit * 2**20:
            return sequences
        self.roles.eval()
        mine = torch.arange(count)[launch.share(count)]
        lower = torch.empty((len(mine), width, backbone.hidden_size), dtype=backbone.base.dtype, device=self.device)
        for place in torch.arange(len(mine)).split(self.config.local_rollout_forward_batch_size):
            lower[place] = self._lower(sequences.select(mine[place]))
        return replace(sequences, lower=launch.gathered_rows(lower))

    def _lower(self, part: Sequences) -> Tensor:
        with self.precision(self.roles.policy):
            layers = self.roles.policy.backbone.lower_layers
            return layers.states(part.input_ids, part.attention_mask, part.prompt_length)

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

    def raw(self, answers: Answers, *, held_out: bool = False) -> dict[str, Tensor]:
        """(B,) float32 on the CPU: what each source says; of several processes each asks for its share. People are not
        asked about held-out answers."""
        mine = answers.select(torch.arange(len(answers))[launch.share(len(answers))])
        said = self.rewards.raw(mine, held_out=held_out)
        return {name: launch.gathered_rows(scores.to(self.device)).cpu() for name, scores in said.items()}

    def _judge(self, part: Sequences) -> tuple[Tensor, ...]:
        roles = self.roles
        if self.reuses and part.lower is None:  # too much for all parts together, but not for the roles of one
            part = replace(part, lower=self._lower(part))
        with roles.policy.playing(), self.precision(roles.policy):
            states = roles.states(roles.policy, part)
            log_probs, entropy = self.log_probs(roles.policy, states, part)
            if roles.shared:
                values = roles.head(states)
        with roles.reference.playing(), self.precision(roles.reference):
            reference, _ = self.log_probs(roles.reference, roles.states(roles.reference, part), part)
        if not roles.shared:
            with roles.value.playing(), self.precision(roles.value):
                values = roles.head(roles.states(roles.value, part))
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

    def _corrected(self, episodes: Episodes, sampled: Tensor, figures: Figures) -> tuple[Episodes, Figures]:
        """With the importance weights of what was sampled by other probabilities (`sampled`, (B, R)), and how far these
        are from the trainer's."""
        engine, mask = self.config.engine, episodes.sequences.response_mask
        apart = torch.where(mask, episodes.log_probs - sampled, 0.0)
        importance = rl.truncated_importance(episodes.log_probs, sampled, mask, engine.importance_cap)
        mismatch = float(rl.masked_mean(apart.abs(), mask))
        if not mismatch <= engine.max_mismatch:
            raise EngineError(
                f"{engine.base_url}: the server draws by other probabilities than the policy's: they differ by "
                f"{mismatch:.3g} nats a token, and ppo.rollout.max_mismatch is {engine.max_mismatch:g}. Has it another "
                "base, another precision, or another chat template's tokens? Or does something else name its adapters?"
            )
        found = {
            "engine_mismatch": mismatch,
            "engine_mismatch_max": float(apart.abs().max()),
            "importance": float(rl.masked_mean(importance, mask)),
            "importance_capped": float(rl.masked_mean((importance >= engine.importance_cap).float(), mask)),
        }
        return replace(episodes, importance=importance), figures | found

    def penalised(self, score: Tensor, ended: Tensor, lengths: Tensor) -> Tensor:
        """(B,) the score less what a missing end (arXiv 2403.17031) and each token cost."""
        config = self.config
        if config.missing_eos_penalty is not None:
            score = score - config.missing_eos_penalty * (~ended).float()
        return score - config.length_penalty * lengths.float()
