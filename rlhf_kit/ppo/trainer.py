"""PPO as a trainer of transformers' kind, with the names of TRL's trainers; usable without a recipe."""

from __future__ import annotations

import copy
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from rlhf_kit import health
from rlhf_kit.controllers import KlController
from rlhf_kit.errors import ModelError, RlhfKitError
from rlhf_kit.ppo import checkpoints
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.experience import Experience
from rlhf_kit.ppo.heldout import SAMPLES, HeldOutEvaluation, append_samples
from rlhf_kit.ppo.learning import Learner
from rlhf_kit.ppo.prompts import PromptRow, prompts_of_update, read_prompts
from rlhf_kit.ppo.ptx import PretrainingText, tokenised
from rlhf_kit.ppo.rewarding import Rewards
from rlhf_kit.ppo.roles import MovingAverage
from rlhf_kit.ppo.setup import Model, RewardFunc, make_roles, make_sources
from rlhf_kit.recipe_ppo import Sizes

log = logging.getLogger(__name__)

EMA_DIRECTORY = "ema"
_TERMINATED = 143  # as a shell reports a process that SIGTERM ended


class PPOTrainer(Trainer):  # type: ignore[misc]
    """PPO on a base with adapters, or on whole models (arXiv 1707.06347, 2203.02155).

    A step of the Trainer is an update: `batch_size` answers are sampled, and all optimiser steps on them follow.

    Args:
        model: a Hub id or directory, a model, a `PeftModel`, or a `Backbone` with the adapter `policy`. With
            `peft_config` a new adapter learns on it; a model without adapters learns as a whole.
        reward_funcs: what scores, one or several: a function with TRL's signature, a run of this kit or a sequence
            classification model by name, such a model itself, a `RewardModel`, `path.py:function`, or the name of an
            adapter with a head of the `Backbone`.
        args: the settings.
        train_dataset: rows with `prompt` (a text, taken as it is, or a conversation) or `input_ids`; other columns are
            handed to reward functions.
        eval_dataset: held-out prompts of the same kind, answered every `eval_steps` updates.
        processing_class: the tokenizer, where it is not the model's own.
        reward_processing_classes: tokenizers of reward models that are given as models; None gives one the policy's
            tokens.
        callbacks: transformers' callbacks.
        optimizers: as transformers' Trainer takes them.
        peft_config: of the adapter that learns.
        reward_model: as in TRL 1.12: the one reward model, given the policy's tokens.
        value_model: a model of its own for the values, with one label; trained as a whole.
        ref_model: what the KL is measured against; by default the adapter `sft` where the backbone has one, else the
            model without adapters, or a frozen copy of a model without any.
        data_collator: has no effect; TRL's scripts hand it over.
        ptx_dataset: text beside the episodes (`ptx_coef`): rows of `text`, of `prompt` and `completion`, or of
            `input_ids`.

    Raises:
        DataError: rows that cannot be used, sizes that do not fit; all of them.
        ModelError: a model that cannot be loaded or does not fit the others.
    """

    def __init__(
        self,
        model: Model,
        reward_funcs: RewardFunc | Sequence[RewardFunc] | None = None,
        args: PPOConfig | None = None,
        train_dataset: Iterable[Mapping[str, Any]] | None = None,
        eval_dataset: Iterable[Mapping[str, Any]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: PeftConfig | None = None,
        *,
        reward_model: RewardFunc | None = None,
        value_model: Model | None = None,
        ref_model: Model | None = None,
        data_collator: object = None,
        ptx_dataset: Iterable[Mapping[str, Any]] | None = None,
    ) -> None:
        config = args or PPOConfig()
        funcs = reward_funcs if reward_funcs is not None else reward_model
        if funcs is None:
            raise ModelError("PPOTrainer needs reward_funcs (or TRL's reward_model): something to learn from")
        roles = make_roles(model, config, processing_class, peft_config, ref_model, value_model)
        policy = roles.policy.backbone
        room = policy.context_length - config.response_length
        self.prompts = read_prompts(train_dataset or [], policy.tokenizer, room=room)
        self.updates = config.max_steps if config.max_steps > 0 else Sizes.of(config).updates(config, len(self.prompts))
        self.ppo = config
        self.kl = KlController(
            config.kl_coef, config.kl_target if config.kl_controller == "adaptive" else None, config.kl_horizon
        )
        self.stopped: str | None = None
        self.termination: checkpoints.Termination | None = None
        self._figures: dict[str, list[float]] = defaultdict(list)
        self._latest: dict[str, float] = {}
        self._saves_into: Path | None = None
        held_out = [] if eval_dataset is None else list(eval_dataset)[: config.num_eval_prompts]
        super().__init__(
            model=roles,
            args=_for_transformers(config, self.updates, bool(held_out)),
            train_dataset=self.prompts,
            eval_dataset=held_out or None,
            data_collator=list,
            processing_class=policy.tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.roles = roles
        self.samples_file = Path(self.args.output_dir) / SAMPLES
        sources = make_sources(funcs, reward_processing_classes, policy, config)
        self.experience = Experience(roles, config, Rewards(sources, config), bf16=bool(config.bf16))
        self.learner = Learner(self.experience, self.accelerator.backward, self._text(ptx_dataset))
        self.average = None if config.ema_decay is None else MovingAverage(roles.policy, config.ema_decay)
        self.held_out = None
        if held_out:
            rows = read_prompts(held_out, policy.tokenizer, room=room, name="eval_dataset")
            self.held_out = HeldOutEvaluation(self.experience, rows, config.seed)
        self.add_callback(_AfterUpdate(self))

    def _text(self, rows: Iterable[Mapping[str, Any]] | None) -> PretrainingText | None:
        if not self.ppo.ptx_coef:
            return None
        tokenizer = self.processing_class
        items = tokenised(rows or [], tokenizer, self.ppo.ptx_max_length)
        return PretrainingText(items, self.ppo.ptx_batch_size, tokenizer.pad_token_id, self.ppo.seed)

    # ---------------------------------------------------------------- the loop

    def get_train_dataloader(self) -> Updates:
        """The numbers of the updates: what they learn from is sampled when they begin."""
        return Updates(self)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """transformers' `train`.

        Args:
            resume_from_checkpoint: True goes on from the newest whole checkpoint in `output_dir`, a damaged one is
                passed over; a directory is gone on from, or refused where it is damaged.

        Raises:
            RlhfKitError: a limit of `stop_on` was reached, or a figure is no number; the last update is saved before.
            CheckpointError: the checkpoint is damaged, or none could be written.
            SystemExit: with 143, after SIGTERM, when the update that ran was finished and saved.
        """
        if resume_from_checkpoint is True:
            found = checkpoints.last_whole(Path(self.args.output_dir))
            resume_from_checkpoint = None if found is None else str(found)
        elif isinstance(resume_from_checkpoint, str):
            checkpoints.refuse_damaged(Path(resume_from_checkpoint))
        with checkpoints.Termination() as self.termination:
            result = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        step = self.state.global_step
        if self.stopped is not None:
            raise RlhfKitError(f"ppo: stopped after update {step} of {self.updates} by ppo.stop_on: {self.stopped}")
        if self.termination.wished and step < self.updates:
            log.warning(
                "ppo: terminated after update %d of %d, which is saved; the same command goes on", step, self.updates
            )
            raise SystemExit(_TERMINATED)
        return result

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One update: rollouts, and every optimiser step on them but the last, which transformers' loop makes."""
        update, ppo = int(inputs["update"]), self.ppo
        generator = torch.Generator().manual_seed(ppo.seed * 1_000_003 + update)
        self.experience.rewards.hand_over(self.state)
        episodes, figures = self.experience.collect(self.prompts_of(update), generator, self.kl.coef)
        started = time.perf_counter()
        self.roles.train()
        losses, pending = [], False
        steps = len(episodes) // self.experience.sizes.mini
        for epoch in range(ppo.num_ppo_epochs):
            moved = 0.0
            for place, minibatch in enumerate(episodes.minibatches(self.experience.sizes.mini, generator)):
                if pending:
                    self._optimizer_step()
                number = (update * ppo.num_ppo_epochs + epoch) * steps + place
                found = self.learner.minibatch(minibatch, number, critic_only=update < ppo.critic_warmup_steps)
                pending, moved = True, moved + found.get("approx_kl", 0.0) / steps
                losses.append(found.get("policy_loss", 0.0) + found["value_loss"])
                self._note(found)
            if ppo.target_kl is not None and moved > ppo.target_kl:
                break
        self.kl.update(figures["kl"], len(episodes))
        figures |= {"ppo_epochs": float(epoch + 1), "seconds_train": time.perf_counter() - started}
        self._latest = figures
        self._note(figures)
        return torch.tensor(sum(losses) / len(losses), device=self.args.device)

    def prompts_of(self, update: int) -> list[PromptRow]:
        """The prompts of an update, one for each of its episodes."""
        batch, ppo = self.experience.sizes.batch, self.ppo
        return prompts_of_update(self.prompts, update, batch_size=batch, copies=ppo.num_generations, seed=ppo.seed)

    def _optimizer_step(self) -> None:
        self._clip_grad_norm(self.model)
        self.optimizer.step()
        self.model.zero_grad()

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Each role by itself: a critic that starts far off must not shrink the policy's step."""
        norms = [
            self.accelerator.clip_grad_norm_(group["params"], self.args.max_grad_norm)
            for group in self.optimizer.param_groups
        ]
        self._note({"policy_grad_norm": float(norms[0]), "value_grad_norm": float(norms[1])})
        return norms[0]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimiser with one group for the policy and one for the value model, each with its learning
        rate."""
        if self.optimizer is None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            policy, value = self.roles.parameter_groups()
            groups = [
                {"params": policy},
                {"params": value, "lr": self.ppo.value_learning_rate or self.ppo.learning_rate},
            ]
            self.optimizer = cls(groups, **options)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """transformers' schedule, but that the warm-up begins with its first step and not with zero: an update is dear,
        and one that learns nothing is lost."""
        if self.lr_scheduler is None:
            made = super().create_scheduler(num_training_steps, optimizer)
            if isinstance(made, LambdaLR):
                warmup = self.args.get_warmup_steps(num_training_steps)
                made.lr_lambdas = [partial(_without_zero, factor, warmup) for factor in made.lr_lambdas]
                made._last_lr = [base * factor(0) for base, factor in zip(made.base_lrs, made.lr_lambdas, strict=True)]
                for group, rate in zip(made.optimizer.param_groups, made._last_lr, strict=True):
                    group["lr"] = rate
        return self.lr_scheduler

    def after_update(self, control: TrainerControl) -> None:
        """What belongs to a finished update: the moving average, limits, the wish to end."""
        if self.average is not None:
            self.average.update()
        self.stopped = health.breached(self._latest, self.ppo.stop_on)
        if self.stopped is not None or (self.termination is not None and self.termination.wished):
            control.should_log = control.should_save = control.should_training_stop = True

    # ---------------------------------------------------------------- figures

    def _note(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._figures[name].append(float(value))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of what was noted since the last entry to an entry of the training."""
        means = {}
        if "loss" in logs:
            means = {name: sum(values) / len(values) for name, values in self._figures.items()}
            self._figures.clear()
        super().log({**means, **logs}, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Answers the held-out prompts; the figures are logged, the answers go to `samples.jsonl` in `output_dir`.

        Raises:
            RlhfKitError: the trainer was given none.
        """
        if self.held_out is None:
            raise RlhfKitError("ppo: there are no held-out prompts to evaluate on; give an eval_dataset")
        started = time.perf_counter()
        found, table = self.held_out()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - started
        append_samples(self.samples_file, self.state.global_step, table)
        for row in table[:2]:
            log.info("ppo: %r -> %r (score %.2f)", row["prompt"], row["policy"], row["score"])
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---------------------------------------------------------------- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        directory = Path(output_dir or self.args.output_dir)
        self.roles.save(directory)
        if self.average is not None:
            self.average.save(directory / EMA_DIRECTORY)
        self.processing_class.save_pretrained(str(directory))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saves_into or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, limit = Path(super()._get_output_dir(trial)), self.args.save_total_limit
        name = f"checkpoint-{self.state.global_step}"
        self.args.save_total_limit = None  # it would count what is in the staging directory
        try:
            with checkpoints.staged(folder, name) as self._saves_into:
                super()._save_checkpoint(model, trial)
                state = {"kl_coef": self.kl.coef, "rewards": self.experience.rewards.state()}
                checkpoints.write_state(self._saves_into / name, state)
        finally:
            self._saves_into, self.args.save_total_limit = None, limit
        checkpoints.keep_last(folder, limit)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        directory = Path(resume_from_checkpoint)
        self.roles.reload(directory)
        if self.average is not None:
            self.average.reload(directory / EMA_DIRECTORY)
        state = checkpoints.read_state(directory)
        self.kl.coef = state["kl_coef"]
        self.experience.rewards.restore(state["rewards"])


class Updates:
    """The data loader: the numbers of the updates, from where the run stands."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer

    def __len__(self) -> int:
        return self.trainer.updates

    def __iter__(self) -> Iterator[dict[str, int]]:
        for update in range(self.trainer.state.global_step, self.trainer.updates):
            yield {"update": update}


class _AfterUpdate(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self.trainer.after_update(control)
        return control


def _without_zero(factor: Callable[[int], float], warmup: int, step: int) -> float:
    return factor(step + 1 if step < warmup else step)


def _for_transformers(config: PPOConfig, updates: int, has_held_out: bool) -> PPOConfig:
    """A copy in which one batch of transformers' loop is one update."""
    args = copy.copy(config)
    args.gradient_accumulation_steps = 1
    args.num_train_epochs, args.max_steps = 1, -1
    args.gradient_checkpointing = args.activation_checkpointing = False  # the roles' own
    args.ignore_data_skip = True  # `Updates` finds its place by itself
    args.remove_unused_columns, args.label_names = False, []
    if not has_held_out:
        args.eval_strategy = "no"
    elif args.eval_steps is None and config.num_sample_generations > 0:
        args.eval_strategy, args.eval_steps = "steps", max(1, updates // config.num_sample_generations)
    return args
