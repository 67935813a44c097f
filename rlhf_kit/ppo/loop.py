"""Around an update: what transformers' loop is given instead of batches, and what it is told."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf_kit.ppo.config import PPOConfig

if TYPE_CHECKING:
    from rlhf_kit.ppo.trainer import PPOTrainer


class Updates:
    """The data loader: the numbers of the updates, from where the run stands."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer

    def __len__(self) -> int:
        return self.trainer.updates

    def __iter__(self) -> Iterator[dict[str, int]]:
        for update in range(self.trainer.state.global_step, self.trainer.updates):
            if self.trainer.wants_to_end:  # since the update before: while it was evaluated or saved
                return
            yield {"update": update}


class AfterUpdate(TrainerCallback):  # type: ignore[misc]
    """Tells the trainer when transformers' loop has begun, and when it has made the last step of an update."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Before the first update."""
        self.trainer.resume_log(state)
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """After each update."""
        self.trainer.after_update(control)
        return control


def warm_up_above_zero(scheduler: LambdaLR, warmup: int) -> None:
    """Lets the warm-up of a schedule that was just made begin with its first step instead of with zero."""
    scheduler.lr_lambdas = [partial(_without_zero, factor, warmup) for factor in scheduler.lr_lambdas]
    rates = [base * factor(0) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    scheduler._last_lr = rates
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _without_zero(factor: Callable[[int], float], warmup: int, step: int) -> float:
    return factor(step + 1 if step < warmup else step)


def for_transformers(config: PPOConfig, updates: int, has_held_out: bool) -> PPOConfig:
    """A copy in which one batch of transformers' loop is one update."""
    args = copy.copy(config)
    args.gradient_accumulation_steps = 1
    args.num_train_epochs, args.max_steps = 1, -1
    args.gradient_checkpointing = args.activation_checkpointing = False  # the roles' own
    args.ignore_data_skip = True  # `Updates` finds its place by itself
    args.remove_unused_columns, args.label_names = False, []
    if not has_held_out:
        args.eval_strategy = "no"
    elif args.eval_steps is None and args.eval_strategy != "epoch":
        often = config.num_sample_generations
        args.eval_strategy, args.eval_steps = ("steps", max(1, updates // often)) if often > 0 else ("no", None)
    return args
