"""Stage 3: proximal policy optimisation against the reward model, four roles on one base.

The trainer is transformers' Trainer whose training data are made by the model that it trains: `Rollouts` is its data
loader, and
each update of the policy begins with fresh episodes. Policy and value model are adapters of their own with one
backward pass each, and each inside its role.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from rlhf_kit import rewards, rl
from rlhf_kit.batches import Episodes, Sequences
from rlhf_kit.checkpoint import MetricsLog
from rlhf_kit.data import Encoder
from rlhf_kit.errors import DataError, Problem, RlhfKitError
from rlhf_kit.models import Backbone, ScalarHead, load_backbone, lora_config
from rlhf_kit.models.probe import Probe
from rlhf_kit.recipe import PpoSection, Recipe
from rlhf_kit.records import Prompt
from rlhf_kit.rollout import sample
from rlhf_kit.stages.arguments import build, fit, refuse_many_processes

POLICY, REFERENCE, VALUE = "policy", "sft", "value"
VALUE_DIRECTORY = "value"


class Rollouts:
    """The data loader of PPO: every update samples `batch_size` episodes and yields them as micro-batches.

    Everything random depends on the seed and the number of the update alone, so a run that was interrupted goes on as
    if it had not been.
    """

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer
        self.dataset = trainer.train_dataset

    def __len__(self) -> int:
        ppo = self.trainer.ppo
        return self.trainer.updates * self.trainer.steps_per_update * (ppo.mini_batch_size // micro_batch_size(ppo))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        trainer, ppo = self.trainer, self.trainer.ppo
        for update in range(trainer.state.global_step // trainer.steps_per_update, trainer.updates):
            generator = torch.Generator().manual_seed(trainer.args.seed * 1_000_003 + update)
            episodes = trainer.collect(self.prompts(update), generator)
            for _ in range(ppo.num_ppo_epochs):
                for minibatch in episodes.minibatches(ppo.mini_batch_size, generator):
                    tokens = int(minibatch.sequences.response_mask.sum())
                    for rows in torch.arange(len(minibatch)).split(micro_batch_size(ppo)):
                        yield {"episodes": minibatch.select(rows), "tokens": tokens}

    def prompts(self, update: int) -> list[list[int]]:
        """The prompts of an update: the data in a new order each time they have all been used."""
        size, count = self.trainer.ppo.batch_size, len(self.dataset)
        chosen = []
        for position in range(update * size, (update + 1) * size):
            order = torch.Generator().manual_seed(self.trainer.args.seed * 7_919 + position // count)
            chosen.append(self.dataset[int(torch.randperm(count, generator=order)[position % count])])
        return chosen


def micro_batch_size(ppo: PpoSection) -> int:
    """Sequences of one forward pass."""
    return min(ppo.per_device_train_batch_size, ppo.mini_batch_size)


class PPOTrainer(Trainer):  # type: ignore[misc]
    """PPO with adapters on one base (arXiv 1707.06347, 2203.02155).

    Args:
        model: a `Backbone` with the adapters policy, value (with its head) and reward (with its head); policy and
            value trainable.
        args: transformers' arguments; steps are optimiser steps, `ppo.num_ppo_epochs * ppo.batch_size /
            ppo.mini_batch_size` an update.
        ppo: the algorithm's settings.
        train_dataset: token ids of prompts.
        reference: the adapter that KL is measured against; None is the raw base, right only where there was no SFT
            stage.
    """

    def __init__(
        self,
        model: Backbone,
        args: TrainingArguments,
        ppo: PpoSection,
        train_dataset: Sequence[list[int]],
        reference: str | None,
        **kwargs: Any,
    ) -> None:
        self.ppo = ppo
        self.reference = reference
        self.updates = ppo.total_episodes // ppo.batch_size
        self.steps_per_update = steps_per_update(ppo)
        self._figures: dict[str, list[float]] = defaultdict(list)
        super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)
        self.backbone = model

    def get_train_dataloader(self) -> Rollouts:
        """Episodes instead of a dataset."""
        return Rollouts(self)

    # ---------------------------------------------------------------- experience

    @torch.no_grad()
    def collect(self, prompts: Sequence[Sequence[int]], generator: torch.Generator) -> Episodes:
        """Samples one response to each prompt and computes what the inner epochs need."""
        ppo, backbone = self.ppo, self.backbone
        with backbone.role(POLICY), self.compute_loss_context_manager():
            responses = sample(
                backbone, prompts, max_new_tokens=ppo.response_length, temperature=ppo.temperature, generator=generator
            )
        sequences = Sequences.collate(prompts, responses, backbone.tokenizer.pad_token_id).to(self.args.device)
        parts = [self._judge(sequences, rows) for rows in torch.arange(len(prompts)).split(micro_batch_size(ppo))]
        log_probs, reference, entropy, values, score = (torch.cat(column) for column in zip(*parts, strict=True))

        mask = sequences.response_mask
        ended = (sequences.responses == backbone.tokenizer.eos_token_id).any(1)
        penalised = score if ppo.missing_eos_penalty is None else score - ppo.missing_eos_penalty * (~ended).float()
        kl = rl.kl_penalty(log_probs, reference, ppo.kl_estimator)
        token_rewards = rl.token_rewards(penalised, kl, mask, ppo.kl_coef)
        if ppo.whiten_rewards:
            token_rewards = rl.masked_whiten(token_rewards, mask, shift_mean=False)
        advantages, returns = rl.gae(token_rewards, values, mask, gamma=ppo.gamma, lam=ppo.lam)

        self._note(
            score=score.mean(),
            score_std=score.std(correction=0),
            kl=torch.where(mask, log_probs - reference, 0.0).sum(1).mean(),
            entropy=rl.masked_mean(entropy, mask),
            response_length=mask.sum(1).float().mean(),
            eos_rate=ended.float().mean(),
            explained_variance=rl.explained_variance(values, returns, mask),
        )
        advantages = rl.masked_whiten(advantages, mask)
        return Episodes(sequences, log_probs, values, advantages, returns, torch.where(mask, kl, 0.0), penalised)

    def _judge(self, sequences: Sequences, rows: Tensor) -> tuple[Tensor, ...]:
        """Log-probabilities of policy and reference, entropies, values, scores of some rows; padded as the whole
        batch."""
        part = Sequences(sequences.input_ids[rows], sequences.attention_mask[rows], sequences.response_length)
        backbone = self.backbone.eval()
        with self.compute_loss_context_manager():
            with backbone.role(POLICY):
                log_probs, entropy = self._log_probs(part)
            with backbone.role(self.reference):
                reference, _ = self._log_probs(part)
            values = self._values(part)
            score = rewards.score_batch(backbone, part)
        return log_probs, reference, entropy, values, score

    def _log_probs(self, part: Sequences) -> tuple[Tensor, Tensor]:
        hidden = self.backbone(part.input_ids, part.attention_mask)
        return self.backbone.log_probs(part.before_response(hidden), part.responses, temperature=self.ppo.temperature)

    def _values(self, part: Sequences) -> Tensor:
        with self.backbone.role(VALUE):
            hidden = self.backbone(part.input_ids, part.attention_mask)
            values: Tensor = self.backbone.heads[VALUE](part.before_response(hidden))
        return values

    # ---------------------------------------------------------------- learning

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Gradients of policy and value on one micro-batch: two roles, one backward pass each."""
        self.backbone.train()
        episodes: Episodes = inputs["episodes"]
        share = 1.0 / inputs["tokens"]  # of the whole minibatch, so that micro-batches of any size add up to it
        mask = episodes.sequences.response_mask

        with self.backbone.role(POLICY):
            with self.compute_loss_context_manager():
                log_probs, _ = self._log_probs(episodes.sequences)
                per_token, clipped = rl.policy_loss(
                    log_probs, episodes.log_probs, episodes.advantages, mask, cliprange=self.ppo.cliprange
                )
                policy_loss = per_token.sum() * share
            self._check(policy_loss)
            self.accelerator.backward(policy_loss)
        with self.backbone.role(VALUE):
            with self.compute_loss_context_manager():
                values = self._values(episodes.sequences)
                per_token, value_clipped = rl.value_loss(
                    values, episodes.values, episodes.returns, mask, cliprange_value=self.ppo.cliprange_value
                )
                value_loss = self.ppo.vf_coef * per_token.sum() * share
            self._check(value_loss)
            self.accelerator.backward(value_loss)

        parts = self.ppo.mini_batch_size // micro_batch_size(self.ppo)
        self._note(
            policy_loss=policy_loss.detach() * parts,
            value_loss=value_loss.detach() * parts,
            clip_fraction=clipped.sum() * share * parts,
            value_clip_fraction=value_clipped.sum() * share * parts,
            approx_kl=rl.masked_mean((log_probs.detach() - episodes.log_probs) ** 2 / 2, mask),
        )
        return policy_loss.detach() + value_loss.detach()

    def _check(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            update = self.state.global_step // self.steps_per_update + 1
            raise RlhfKitError(
                f"ppo: the loss of update {update} is {loss.item()}; lower ppo.learning_rate or raise ppo.kl_coef"
            )

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Each role by itself: a critic that starts far off must not shrink the policy's step."""
        norms = [
            self.accelerator.clip_grad_norm_(group["params"], self.args.max_grad_norm)
            for group in self.optimizer.param_groups
        ]
        self._note(value_grad_norm=norms[1])
        return norms[0]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimiser with one group for the policy and one for the value model, each with its learning
        rate."""
        if self.optimizer is None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            critic = [*self.backbone.adapter_parameters(VALUE), *self.backbone.heads[VALUE].parameters()]
            groups = [
                {"params": self.backbone.adapter_parameters(POLICY)},
                {"params": critic, "lr": self.ppo.value_learning_rate or self.ppo.learning_rate},
            ]
            self.optimizer = cls(groups, **options)
        return self.optimizer

    # ---------------------------------------------------------------- figures and checkpoints

    def _note(self, **figures: Tensor) -> None:
        for name, value in figures.items():
            self._figures[name].append(float(value))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of what was noted since the last entry."""
        means = {name: sum(values) / len(values) for name, values in self._figures.items()}
        self._figures.clear()
        super().log({**means, **logs}, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        save(self.backbone, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        directory = Path(resume_from_checkpoint)
        self.backbone.reload_adapter(POLICY, directory)
        self.backbone.reload_adapter(VALUE, directory / VALUE_DIRECTORY)
        head = ScalarHead.load(directory / VALUE_DIRECTORY, self.backbone.hidden_size)
        self.backbone.heads[VALUE].load_state_dict(head.state_dict())


def steps_per_update(ppo: PpoSection) -> int:
    """Optimiser steps between two rollouts."""
    return ppo.num_ppo_epochs * (ppo.batch_size // ppo.mini_batch_size)


def save(backbone: Backbone, directory: Path) -> None:
    """The policy at the top of a directory, the value model below it."""
    backbone.save_adapter(POLICY, directory)
    backbone.save_adapter(VALUE, directory / VALUE_DIRECTORY)
    backbone.heads[VALUE].save(directory / VALUE_DIRECTORY)


def prepare(recipe: Recipe, sft: Path | None, reward: Path) -> Backbone:
    """The four roles on one base: reference = SFT adapter, policy a copy of it, value a copy of the reward adapter."""
    backbone = load_backbone(recipe.model)
    lora = lora_config(recipe.lora)
    if sft is None:
        backbone.add_adapter(POLICY, lora)
    else:
        backbone.load_adapter(REFERENCE, sft)
        backbone.load_adapter(POLICY, sft)
    rewards.load(backbone, reward)
    backbone.load_adapter(VALUE, reward)
    head = ScalarHead(backbone.hidden_size, zero=True)
    if recipe.ppo.value_head_init == "reward":
        head.load_state_dict(backbone.heads[rewards.REWARD].state_dict())
    backbone.add_head(VALUE, head)
    backbone.train_only(POLICY, VALUE)
    backbone.without_dropout()
    if recipe.ppo.gradient_checkpointing:
        backbone.use_checkpointing()
    with backbone.role(POLICY):
        backbone.check_log_probs()
    return backbone


def train(recipe: Recipe, prompts: list[Prompt], sft: Path | None, reward: Path, work: Path) -> dict[str, Any]:
    """Trains the policy and leaves it in `work`, the value model in `work/value`; returns the figures of the last
    updates."""
    ppo = recipe.ppo
    _check_sizes(ppo)
    arguments = _arguments(recipe, work)
    refuse_many_processes("ppo", arguments)
    torch.manual_seed(recipe.seed)
    backbone = prepare(recipe, sft, reward)
    encoder = Encoder(backbone.tokenizer, max_prompt_length=recipe.data.max_prompt_length)
    ids = [encoder.prompt(record.prompt) for record in prompts]
    encoder.report("ppo")
    trainer = PPOTrainer(
        model=backbone,
        args=arguments,
        ppo=ppo,
        train_dataset=ids,
        reference=None if sft is None else REFERENCE,
        callbacks=[MetricsLog("ppo", work)],
    )
    fit(trainer, work)
    if trainer.is_world_process_zero():
        save(backbone, work)
        probe(trainer, recipe.export.positions).save(work)
    return {
        "updates": trainer.updates,
        "episodes": trainer.updates * ppo.batch_size,
        "prompts": len(ids),
        "shortened_prompts": encoder.shortened_prompts,
        **_last_means(trainer.state.log_history),
    }


def probe(trainer: PPOTrainer, positions: int) -> Probe:
    """Logits of the trained policy on its own answers, at `positions` or more tokens: what an export must reproduce."""
    backbone, ids = trainer.backbone, trainer.train_dataset
    sequences: list[list[int]] = []
    generator = torch.Generator().manual_seed(trainer.args.seed)
    with backbone.role(POLICY):
        while sum(map(len, sequences)) < positions:
            prompts = [ids[(len(sequences) + i) % len(ids)] for i in range(micro_batch_size(trainer.ppo))]
            with trainer.compute_loss_context_manager():
                answers = sample(backbone, prompts, max_new_tokens=trainer.ppo.response_length, generator=generator)
            sequences += [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        return Probe.take(backbone.base, sequences, len(backbone.tokenizer), backbone.tokenizer.pad_token_id)


def _last_means(history: list[dict[str, float]]) -> dict[str, float]:
    """Means over the last quarter of the updates: one update's figures are noise."""
    entries = [entry for entry in history if "score" in entry]
    tail = entries[-max(1, len(entries) // 4) :]
    names = ("score", "kl", "entropy", "response_length", "eos_rate", "explained_variance", "clip_fraction")
    return {f"train_{name}": sum(entry[name] for entry in tail) / len(tail) for name in names}


def _check_sizes(ppo: PpoSection) -> None:
    problems = []
    for larger, smaller in (("batch_size", "mini_batch_size"), ("mini_batch_size", "per_device_train_batch_size")):
        size = getattr(ppo, larger)
        part = min(getattr(ppo, smaller), size)
        if size % part:
            problems.append(Problem("recipe", f"ppo.{smaller}", f"must divide ppo.{larger} ({size}), {part} does not"))
    if problems:
        raise DataError(problems)


def _arguments(recipe: Recipe, work: Path) -> TrainingArguments:
    ppo = recipe.ppo
    steps = steps_per_update(ppo)
    fixed = {
        "learning_rate": ppo.learning_rate,
        "lr_scheduler_type": ppo.lr_scheduler_type,
        "warmup_steps": ppo.warmup_steps * steps,
        "adam_beta1": ppo.adam_beta1,
        "adam_beta2": ppo.adam_beta2,
        "adam_epsilon": ppo.adam_epsilon,
        "max_grad_norm": ppo.max_grad_norm,
        "per_device_train_batch_size": micro_batch_size(ppo),
        "gradient_accumulation_steps": ppo.mini_batch_size // micro_batch_size(ppo),
        "num_train_epochs": 1,
        "save_steps": ppo.save_updates * steps,
        "logging_steps": steps,
        "ignore_data_skip": True,  # `Rollouts` finds its place by itself
        "remove_unused_columns": False,
        "label_names": [],
    }
    return build(TrainingArguments, recipe, work, fixed, ppo.trainer)
