"""The `ppo` section of a recipe: every setting of PPO with its default, its bounds, what it means and where it is from.

This is where they are written, once: `PPOConfig` has the same names and the same defaults, made from this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from .health import LIMITS
from .recipe_live import LiveSection
from .recipe_rollout import RolloutSection
from .recipe_sections import CHECKPOINTING, SCHEDULE, TRAINER, Name, Schedule, Section

__all__ = ["PpoSection", "Sizes", "mistakes"]

Positive = Annotated[float, Field(gt=0)]


class PpoSection(Section):
    """Proximal policy optimisation against a reward. A step is an update of the policy: rollouts and all that is
    learned from them."""

    # ---- how much
    total_episodes: int | None = Field(
        default=None, ge=1, description="Answers sampled in all; num_train_epochs says it where it is left out."
    )
    num_train_epochs: float = Field(
        default=1.0, gt=0, description="How often the prompts are used, where total_episodes is left out."
    )
    per_device_train_batch_size: int = Field(default=16, ge=1, description="Sequences in one forward pass of a device.")
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="With it, batch_size is so many forward passes, where batch_size is left out."
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Answers sampled for one update, on all devices together; by default per_device_train_batch_size x "
        "gradient_accumulation_steps x devices.",
    )
    num_mini_batches: int = Field(
        default=2,
        ge=1,
        description="Optimiser steps of one pass over an update's answers, where mini_batch_size is left out.",
    )
    mini_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Answers in one optimiser step, on all devices; by default batch_size / num_mini_batches.",
    )
    num_ppo_epochs: int = Field(default=1, ge=1, description="How often an update goes through its answers.")

    # ---- the optimiser
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="Of the policy, at its highest.")
    value_learning_rate: float | None = Field(
        default=None, gt=0, le=1, description="Of the value model, if not the same."
    )
    warmup_steps: int = Field(default=2, ge=0, description="Updates until the learning rate is at its highest.")
    lr_scheduler_type: Schedule = Field(default="constant_with_warmup", description=SCHEDULE)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="Adam's decay of the mean gradient.")
    adam_beta2: float = Field(default=0.95, ge=0, lt=1, description="Adam's decay of the mean squared gradient.")
    adam_epsilon: float = Field(default=1e-5, gt=0, description="Adam's guard against division by zero (2403.17031).")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Longer gradients are cut to this length.")

    # ---- the algorithm
    algorithm: Literal["ppo", "a2c"] = Field(
        default="ppo", description="a2c: one pass in one optimiser step, nothing clipped (1602.01783; GopherCite)."
    )
    cliprange: float = Field(
        default=0.2, gt=0, le=1, description="How far a probability ratio counts from 1 (1707.06347)."
    )
    dual_clip: float | None = Field(
        default=None, gt=1, description="Bounds what a bad token with a large ratio costs (1912.09729; 3 is usual)."
    )
    value: Literal["adapter", "shared", "model"] = Field(
        default="adapter",
        description="The value model: an adapter of its own on the base, a head on the policy, or a model of its own.",
    )
    value_head_init: Literal["reward", "zero"] = Field(default="zero", description="What the value head starts from.")
    cliprange_value: float = Field(default=0.2, gt=0, description="How far a value counts from its old one (ppo2).")
    vf_coef: float = Field(default=0.1, ge=0, description="The weight of the value loss.")
    critic_warmup_steps: int = Field(
        default=0, ge=0, description="Updates in which the value model alone learns (2307.04964)."
    )
    gamma: float = Field(default=1.0, ge=0, le=1, description="The discount a token.")
    lam: float = Field(
        default=0.95, ge=0, le=1, description="Lambda of the generalised advantage estimation (1506.02438)."
    )
    whiten_advantages: bool = Field(default=True, description="Advantages get mean 0 and deviation 1 (ppo2).")
    entropy_coef: float = Field(default=0.0, ge=0, description="What a nat of entropy a token earns (1602.01783).")
    target_kl: float | None = Field(
        default=None,
        gt=0,
        description="Further passes are left out once the policy has moved so far in one (nats a token, from the "
        "policy that sampled; as in Spinning Up).",
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Keeps the policy's moving average beside it, in ema/ (2203.02155: 0.992).",
    )

    # ---- the distance from the reference
    kl_coef: float = Field(default=0.05, ge=0, description="What a nat of divergence from the reference costs.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        default="k1", description="The estimator of that divergence (joschu.net/blog/kl-approx.html)."
    )
    kl_controller: Literal["fixed", "adaptive"] = Field(
        default="fixed", description="adaptive: kl_coef follows kl_target (1909.08593, section 2.2)."
    )
    kl_target: float = Field(default=6.0, gt=0, description="Nats a response that the adaptive kl_coef aims at.")
    kl_horizon: int = Field(default=10_000, ge=1, description="Episodes in which the adaptive kl_coef takes effect.")

    # ---- the reward
    init: Name = Field(
        default="sft",
        description="What the policy starts from and is held to by the KL: the SFT adapter (sft), the raw base (base), "
        "or the directory of an adapter, such as an export.",
    )
    reward_funcs: list[Name] = Field(
        default_factory=lambda: ["reward"],
        min_length=1,
        description="What scores: reward (the reward stage of this recipe), a Hub id or directory of a sequence "
        "classification model, path.py:function or module:function, live (people, while it waits).",
    )
    reward_weights: list[float] | None = Field(default=None, description="Of each of them in the sum; 1 by default.")
    reward_normalization: Literal["none", "running", "batch"] = Field(
        default="none", description="Each source by its own mean and deviation: of all so far, or of the update's."
    )
    reward_clip: float | None = Field(default=None, gt=0, description="Each source counts so far from 0 at most.")
    scale_rewards: Literal["none", "running"] = Field(
        default="none", description="running: the sum is divided by its deviation so far (2307.04964)."
    )
    score_clip: float | None = Field(default=None, gt=0, description="The sum counts so far from 0 at most.")
    whiten_rewards: bool = Field(
        default=False, description="Divides the rewards of a batch by their standard deviation (1909.08593)."
    )
    missing_eos_penalty: float | None = Field(
        default=1.0, ge=0, description="Taken off the score of an answer without end (2403.17031)."
    )
    length_penalty: float = Field(default=0.0, ge=0, description="Taken off the score for each token of an answer.")

    live: LiveSection = Field(default=LiveSection(), description="How people are asked, where reward_funcs has live.")

    # ---- pretraining text beside it (PPO-ptx)
    ptx_coef: float = Field(
        default=0.0, ge=0, description="The weight of the language model loss on other text (2203.02155: 27.8)."
    )
    ptx_data: Literal["text", "demonstrations"] = Field(
        default="text", description="That text: data.text, or data.demonstrations."
    )
    ptx_batch_size: int = Field(default=8, ge=1, description="Texts beside each mini-batch.")
    ptx_max_length: int = Field(default=256, ge=2, description="Tokens of one text.")

    # ---- sampling
    response_length: int = Field(default=64, ge=1, description="The most tokens of an answer.")
    min_response_length: int = Field(default=0, ge=0, description="An answer cannot end before so many tokens.")
    temperature: float = Field(default=1.0, gt=0, description="Of sampling, and of every log-probability in training.")
    top_k: int = Field(
        default=0, ge=0, description="Samples from the likeliest tokens only; 0 is all, which PPO assumes."
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Samples from this share of the likelihood; 1 is all, which PPO assumes."
    )
    stop: list[Name] = Field(default_factory=list, description="Texts that end an answer.")
    stop_token: Literal["eos"] | None = Field(
        default="eos", description="The token that ends an answer; null: none does, stop_token_id may."
    )
    stop_token_id: int | None = Field(default=None, ge=0, description="Another token that ends an answer, by its id.")
    num_generations: int = Field(default=1, ge=1, description="Answers of one prompt in an update.")
    local_rollout_forward_batch_size: int = Field(
        default=64, ge=1, description="Answers sampled side by side, those to prompts of like length."
    )
    rollout: RolloutSection = Field(default=RolloutSection(), description="What samples, and how far it is trusted.")
    frozen_states_limit: float = Field(
        default=1024.0,
        ge=0,
        description="MiB on each device for what the layers below every adapter (lora.layers_to_transform) make of an "
        "update's answers: computed once for all roles and passes. What does not fit is computed by each; 0: all is.",
    )
    ds3_gather_for_generation: bool = Field(
        default=True,
        description="Under ZeRO-3 and FSDP2 each device has the whole model while it samples and scores; else layer by "
        "layer, for each token anew.",
    )

    # ---- looking at it, and keeping it
    eval_steps: int | None = Field(
        default=None, ge=1, description="Updates between two evaluations on held-out prompts; none by default."
    )
    num_eval_prompts: int = Field(default=32, ge=1, description="Held-out prompts of one evaluation, at most.")
    stop_on: dict[str, float] = Field(
        default_factory=dict, description=f"Limits at which the run stops: {', '.join(LIMITS)}."
    )
    logging_steps: int = Field(default=1, ge=1, description="Updates of one log entry.")
    save_steps: int = Field(default=4, ge=1, description="Updates between two checkpoints from which a run goes on.")
    save_total_limit: int = Field(default=2, ge=1, description="Checkpoints that are kept, the last ones.")
    keep_checkpoints: int = Field(
        default=0, ge=0, description="How many of the last checkpoints stay when the stage is done, to be evaluated."
    )
    gradient_checkpointing: bool = Field(default=False, description=CHECKPOINTING)
    trainer: dict[str, Any] = Field(default_factory=dict, description=TRAINER)

    @field_validator("batch_size", "mini_batch_size")
    @classmethod
    def _check_batches(cls, value: int | None, info: ValidationInfo) -> int | None:
        larger = "total_episodes" if info.field_name == "batch_size" else "batch_size"
        limit = info.data.get(larger)
        if limit is None and larger == "batch_size":
            limit = info.data.get("per_device_train_batch_size", 1) * info.data.get("gradient_accumulation_steps", 1)
        if value is not None and limit is not None and value > limit:
            context = {"larger": larger, "limit": limit, "value": value}
            raise PydanticCustomError("batches", "must be at most {larger} ({limit}), not {value}", context)
        return value

    @field_validator("reward_weights")
    @classmethod
    def _check_weights(cls, value: list[float] | None, info: ValidationInfo) -> list[float] | None:
        sources = info.data.get("reward_funcs")
        if value is not None and sources is not None and len(value) != len(sources):
            context = {"weights": len(value), "sources": len(sources)}
            raise PydanticCustomError("weights", "has {weights} weights for {sources} reward_funcs", context)
        return value

    @field_validator("stop_on")
    @classmethod
    def _check_limits(cls, value: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(value) - set(LIMITS))
        if unknown:
            context = {"unknown": ", ".join(unknown), "known": ", ".join(LIMITS)}
            raise PydanticCustomError("limits", "{unknown}: no such figure; there are {known}", context)
        return value


@dataclass(frozen=True)
class Sizes:
    """How the answers of an update are divided; of a section, or of a `PPOConfig`, which has the same names.

    Attributes:
        batch: answers of an update, on all devices together.
        mini: answers of an optimiser step, on all devices together.
        micro: answers of one forward pass of a device.
    """

    batch: int
    mini: int
    micro: int

    @classmethod
    def of(cls, ppo: PpoSection, processes: int = 1) -> Sizes:
        """Those of a recipe's section or of a config.

        Args:
            processes: that share an update; batch and mini-batch are of all of them together, a forward pass of one.
        """
        batch = ppo.batch_size or ppo.per_device_train_batch_size * ppo.gradient_accumulation_steps * processes
        mini = ppo.mini_batch_size or max(1, batch // ppo.num_mini_batches)
        return cls(batch, mini, min(ppo.per_device_train_batch_size, max(1, mini // processes)))

    def updates(self, ppo: PpoSection, prompts: int) -> int:
        """How many updates a run has: `total_episodes`, or the prompts `num_train_epochs` times, rounded up."""
        passes = ppo.num_train_epochs * prompts * ppo.num_generations
        episodes = int(passes) if ppo.total_episodes is None else ppo.total_episodes
        return max(1, -(-episodes // self.batch))


def mistakes(ppo: PpoSection, processes: int = 1) -> Iterator[tuple[str, str]]:
    """What does not fit together, as (setting, reason).

    Args:
        processes: that share an update.
    """
    sizes = Sizes.of(ppo, processes)
    for given, size in (("batch_size", sizes.batch), ("mini_batch_size", sizes.mini)):
        if size % processes:
            yield given, f"must divide among {processes} processes; {size} does not"
            return
    if ppo.ptx_coef and ppo.ptx_batch_size % processes:
        yield "ptx_batch_size", f"must divide among {processes} processes; {ppo.ptx_batch_size} does not"
    if sizes.batch % sizes.mini:
        given = "num_mini_batches" if ppo.mini_batch_size is None else "mini_batch_size"
        yield given, f"must divide batch_size ({sizes.batch}); a mini-batch of {sizes.mini} does not"
    if sizes.mini // processes % sizes.micro:
        of_each = "" if processes == 1 else f" / {processes} processes"
        words = f"must divide mini_batch_size ({sizes.mini}{of_each}), {sizes.micro} does not"
        yield "per_device_train_batch_size", words
    if sizes.batch % ppo.num_generations:
        yield "num_generations", f"must divide batch_size ({sizes.batch}), {ppo.num_generations} does not"
    if ppo.algorithm == "a2c" and (ppo.num_ppo_epochs, sizes.mini) != (1, sizes.batch):
        yield "algorithm", "a2c makes one step of each update: num_ppo_epochs 1 and num_mini_batches 1"
    if ppo.min_response_length > ppo.response_length:
        yield "min_response_length", f"must be at most response_length ({ppo.response_length})"
