"""PPO as a trainer of transformers' kind, with the names of TRL's trainers; usable without a recipe."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import HubStrategy

from rlhf_kit import health, launch
from rlhf_kit.batches import Episodes
from rlhf_kit.controllers import KlController
from rlhf_kit.errors import CheckpointError, EngineError, ModelError, RlhfKitError
from rlhf_kit.ppo import checkpoints
from rlhf_kit.ppo.card import ppo_card
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.experience import Experience, Figures
from rlhf_kit.ppo.heldout import SAMPLES, HeldOutEvaluation, append_samples, print_answers
from rlhf_kit.ppo.learning import Learner, Loss
from rlhf_kit.ppo.live import TERMINATED
from rlhf_kit.ppo.loop import AfterUpdate, Updates, for_transformers, warm_up_above_zero
from rlhf_kit.ppo.prompts import PromptRow, prompts_of_update, read_prompts
from rlhf_kit.ppo.ptx import PretrainingText, tokenised, weights_of
from rlhf_kit.ppo.rewarding import Rewards
from rlhf_kit.ppo.roles import VALUE_DIRECTORY, MovingAverage
from rlhf_kit.ppo.saving import StagedTrainer
from rlhf_kit.ppo.setup import Model, RewardFunc, make_roles, make_sources
from rlhf_kit.process import few_collections
from rlhf_kit.recipe_ppo import Sizes

log = logging.getLogger(__name__)

EMA_DIRECTORY = "ema"


class PPOTrainer(StagedTrainer):
    """PPO on a base with adapters, or on whole models (arXiv 1707.06347, 2203.02155).

    A step of the Trainer is an update: `batch_size` answers are sampled, and all optimiser steps on them follow.

    Args:
        model: a Hub id or directory, a model, a `PeftModel`, or a `Backbone` with the adapter `policy`. With
            `peft_config` a new adapter learns on it; a model without adapters learns as a whole.
        reward_funcs: what scores, one or several: a function with TRL's signature, a run of this kit or a sequence
            classification model by name, such a model itself, a `RewardModel`, `path.py:function`, `live` (people; see
            docs/labeling.md), or the name of an adapter with a head of the `Backbone`.
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
        self.updates = (
            config.max_steps
            if config.max_steps > 0
            else Sizes.of(config, config.world_size).updates(config, len(self.prompts))
        )
        self.ppo = config
        self.kl = KlController(
            config.kl_coef, config.kl_target if config.kl_controller == "adaptive" else None, config.kl_horizon
        )
        self.stopped: str | None = None
        self.termination: checkpoints.Termination | None = None
        self._figures: dict[str, list[float]] = defaultdict(list)
        self._latest: dict[str, float] = {}
        self._unlogged: dict[str, Any] = {}
        held_out = [] if eval_dataset is None else list(eval_dataset)[: config.num_eval_prompts]
        super().__init__(
            model=roles,
            args=for_transformers(config, self.updates, bool(held_out)),
            train_dataset=self.prompts,
            eval_dataset=held_out or None,
            data_collator=list,
            processing_class=policy.tokenizer,
            callbacks=[AfterUpdate(self), *(callbacks or [])],
            optimizers=optimizers,
        )
        self.roles = roles
        self.samples_file = Path(self.args.output_dir) / SAMPLES
        sources = make_sources(funcs, reward_processing_classes, policy, config)
        self.experience = Experience(roles, config, Rewards(sources, config), bf16=bool(config.bf16))
        self.learner = Learner(
            self.experience,
            self._backward,
            self._text(ptx_dataset),
            joint=self.is_deepspeed_enabled or self.is_fsdp_enabled,
        )
        self.average = None if config.ema_decay is None else MovingAverage(roles.policy, config.ema_decay)
        self.held_out = None
        if held_out:
            rows = read_prompts(held_out, policy.tokenizer, room=room, name="eval_dataset")
            self.held_out = HeldOutEvaluation(self.experience, rows, config.seed)

    def _text(self, rows: Iterable[Mapping[str, Any]] | None) -> PretrainingText | None:
        if not self.ppo.ptx_coef:
            return None
        tokenizer, ppo, rows = self.processing_class, self.ppo, list(rows or [])
        items = tokenised(rows, tokenizer, ppo.ptx_max_length)
        return PretrainingText(
            items, ppo.ptx_batch_size, self.roles.policy.backbone.padding_id, ppo.seed, weights_of(rows)
        )

    # ---------------------------------------------------------------- the loop

    def get_train_dataloader(self) -> Updates:
        """The numbers of the updates: what they learn from is sampled when they begin."""
        return Updates(self)

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> Any:
        """transformers' `train`.

        Args:
            resume_from_checkpoint: True goes on from the newest whole checkpoint in `output_dir`, a damaged one is
                passed over, and begins where there is none; a directory is gone on from, or refused where it is
                damaged.

        Raises:
            RlhfKitError: a limit of `stop_on` was reached, or a figure is no number; the last update is saved before.
            EngineError: the server that samples is not what is needed, or does not answer any more; or nobody scores
                (`ppo.live.timeout`).
            CheckpointError: the checkpoint is damaged, or none could be written.
            SystemExit: with 143, after SIGTERM, when the update that ran was finished and saved; while people are
                waited for, at once, with the updates before it saved.
        """
        checkpoint = checkpoints.start_of(Path(self.args.output_dir), resume_from_checkpoint)
        if checkpoint is not None:
            self.args.eval_on_start = False  # done when the run began
        self.experience.sampler.connect()
        with checkpoints.Termination() as self.termination, few_collections():
            result = super().train(checkpoint, **kwargs)
            step, terminated = self.state.global_step, self.wants_to_end
            if terminated:
                self.save_now()
        self.experience.sampler.close()
        if self.stopped is not None:
            raise RlhfKitError(f"ppo: stopped after update {step} of {self.updates} by ppo.stop_on: {self.stopped}")
        if terminated:
            log.warning(
                "ppo: terminated after update %d of %d, which is saved; the same command goes on", step, self.updates
            )
            raise SystemExit(TERMINATED)
        return result

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One update: rollouts, and every optimiser step on them but the last, which transformers' loop makes."""
        update, ppo = int(inputs["update"]), self.ppo
        generator = torch.Generator().manual_seed(ppo.seed * 1_000_003 + update)
        self.experience.rewards.hand_over(self.state, lambda: self.wants_to_end)
        drawing = generator if launch.processes() == 1 else _generator_of_this_process(ppo.seed, update)
        rows = self.prompts_of(update)
        episodes, figures = self._collected(rows, drawing)
        started = time.perf_counter()
        self.roles.train()
        learned, pending = list[Figures](), False
        steps = len(episodes) // self.experience.sizes.mini
        for epoch in range(ppo.num_ppo_epochs):
            moved = 0.0
            for place, minibatch in enumerate(episodes.minibatches(self.experience.sizes.mini, generator)):
                if pending:
                    self._optimizer_step()
                number = (update * ppo.num_ppo_epochs + epoch) * steps + place
                found = self.learner.minibatch(minibatch, number, critic_only=update < ppo.critic_warmup_steps)
                pending, moved = True, moved + found.get("approx_kl", 0.0) / steps
                learned.append(found)
                self._note(found)
            if ppo.target_kl is not None and moved > ppo.target_kl:
                break
        self.kl.update(figures["kl"], len(episodes))
        figures |= {"ppo_epochs": float(epoch + 1), "seconds_train": time.perf_counter() - started}
        self._note(figures)
        means = {name: sum(found[name] for found in learned) / len(learned) for name in learned[0]}
        self._latest = means | figures
        return torch.tensor(means.get("policy_loss", 0.0) + means["value_loss"], device=self.args.device)

    def _collected(self, rows: list[PromptRow], drawing: torch.Generator) -> tuple[Episodes, Figures]:
        """The episodes of an update. Where the engine that samples fails or people do not answer, and where the run is
        told to end while it waits for them, what was learned before is saved first."""
        try:
            return self._served(lambda: self.experience.collect(rows, drawing, self.kl.coef))
        except (EngineError, SystemExit) as failure:
            step = self.state.global_step
            if step:
                self.save_now()
            kept = f"{step} of {self.updates} updates are saved" if step else "no update was made"
            if isinstance(failure, SystemExit):
                log.warning("ppo: terminated while people were waited for, %s; the same command goes on", kept)
                raise
            raise EngineError(f"ppo: stopped, {kept}: {failure}") from failure

    def prompts_of(self, update: int) -> list[PromptRow]:
        """The prompts of an update, one for each of its episodes."""
        batch, ppo = self.experience.sizes.batch, self.ppo
        return prompts_of_update(self.prompts, update, batch_size=batch, copies=ppo.num_generations, seed=ppo.seed)

    def _served(self, play: Callable[[], Any]) -> Any:
        return launch.serve(self.model_wrapped, play, gather=self.ppo.ds3_gather_for_generation)

    def _backward(self, loss: Loss, last: bool) -> dict[str, Tensor]:
        """Forward and backward pass of one role; the processes exchange their gradients with the last one of an
        optimiser step. DeepSpeed makes the step there and then."""
        self.accelerator.gradient_state._set_sync_gradients(last)
        with contextlib.nullcontext() if last else self.accelerator.no_sync(model=self.model_wrapped):
            total, found = self.model_wrapped(loss)
            self.accelerator.backward(total * launch.processes())  # the mean over them is taken
        return found

    def _optimizer_step(self) -> None:
        self._clip_grad_norm(self.model)
        self.optimizer.step()
        self.model.zero_grad()

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Each role by itself: a critic that starts far off must not shrink the policy's step. DeepSpeed has cut the
        gradients of both together already."""
        if self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        norms = [
            self.accelerator.clip_grad_norm_(parameters, self.args.max_grad_norm)
            for parameters in self.roles.parameter_groups()
        ]
        policy, value = map(launch.full, norms)
        self._note({"policy_grad_norm": float(policy), "value_grad_norm": float(value)})
        return policy

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimiser with one group for the policy and one for the value model, each with its learning
        rate."""
        if self.optimizer is None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rates = (self.ppo.learning_rate, self.ppo.value_learning_rate or self.ppo.learning_rate)
            groups = zip(self.roles.parameter_groups(), rates, strict=True)
            self.optimizer = cls([{"params": parameters, "lr": rate} for parameters, rate in groups], **options)
        held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        if missing := [parameter for parameter in self.roles.head.parameters() if id(parameter) not in held]:
            self.optimizer.add_param_group({"params": missing})  # a caller's own cannot know the head that is made here
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """transformers' schedule, but that the warm-up begins with its first step and not with zero: an update is dear,
        and one that learns nothing is lost."""
        if self.lr_scheduler is None:
            made = super().create_scheduler(num_training_steps, optimizer)
            if isinstance(made, LambdaLR):
                warm_up_above_zero(made, self.args.get_warmup_steps(num_training_steps))
        return self.lr_scheduler

    def after_update(self, control: TrainerControl) -> None:
        """What belongs to a finished update: the moving average, limits, the wish to end."""
        self.state.epoch = self.state.global_step / self.updates  # transformers counts from where it was resumed
        if self.average is not None:
            self.average.update()
        self.stopped = health.breached(self._latest, self.ppo.stop_on)
        if self.stopped is not None or self.wants_to_end:
            control.should_save = control.should_training_stop = True
        if self.stopped is not None:
            control.should_log = True

    @property
    def wants_to_end(self) -> bool:
        """Whether SIGTERM has come to one of the processes; all must ask."""
        return launch.any_of(self.termination is not None and self.termination.wished)

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
        self.experience.rewards.hand_over(self.state, lambda: self.wants_to_end)
        try:
            found, table = self._served(self.held_out)
        except RlhfKitError:  # transformers would save only after this
            if self.control.should_save:
                self.save_now()
            raise
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - started
        if self.is_world_process_zero():
            append_samples(self.samples_file, self.state.global_step, table)
        for row in table[:2]:
            score = "" if row["score"] is None else f" (score {row['score']:.2f})"
            log.info("ppo: %r -> %r%s", row["prompt"], row["policy"], score)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def generate_completions(self, sampling: bool = False) -> None:
        """As in TRL: answers the held-out prompts and prints the first five answers; does nothing without them.

        Args:
            sampling: has no effect; in TRL it answered one batch only.
        """
        if self.held_out is not None:
            self.evaluate()
            print_answers(self.held_out.latest[:5])

    # ---------------------------------------------------------------- checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Policy, value model and moving average; of several processes all take part, and the main one writes."""
        directory = Path(output_dir or self.args.output_dir)
        self.roles.save(directory)
        if self.average is not None:
            self.average.save(directory / EMA_DIRECTORY)
        if self.is_world_process_zero():
            self.processing_class.save_pretrained(str(directory))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def write_more(self, directory: Path) -> None:
        """What transformers does not know of, into a checkpoint."""
        average = None if self.average is None else self.average.values
        checkpoints.write_state(directory, self._own_state(), average)

    def _own_state(self) -> dict[str, Any]:
        """What goes into a checkpoint besides what transformers knows of, with what is noted for the next log entry."""
        unlogged = {"figures": self._figures, "loss": float(self._tr_loss), "since": self._globalstep_last_logged}
        return {"kl_coef": self.kl.coef, "rewards": self.experience.rewards.state(), "unlogged": unlogged}

    def _load_best_model(self) -> None:
        self.roles.reload(Path(self.state.best_model_checkpoint))

    def _prepare_for_training(self, max_steps: int, train_dataloader: Updates, resume_from_checkpoint: Any) -> Any:
        prepare = partial(super()._prepare_for_training, max_steps, train_dataloader)
        prepared = launch.prepared(self, prepare, resume_from_checkpoint, self.roles.backbones)
        if self.is_deepspeed_enabled and resume_from_checkpoint is not None:
            self._restore_state(Path(resume_from_checkpoint))
        return prepared

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled:
            launch.save_state(self, output_dir)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.roles.reload(Path(resume_from_checkpoint))
        self._restore_state(Path(resume_from_checkpoint))

    def _restore_state(self, directory: Path) -> None:
        state = checkpoints.read_state(directory)
        if self.average is not None:
            self.average.restore(checkpoints.read_average(directory))
        try:
            self.kl.coef, self._unlogged = state["kl_coef"], state["unlogged"]
            self.experience.rewards.restore(state["rewards"])
        except KeyError as missing:
            raise CheckpointError(
                f"{directory}: of a run with other rewards; it says nothing of {missing}. Begin anew, or name the "
                "reward_funcs that it was made with"
            ) from missing

    def resume_log(self, state: TrainerState) -> None:
        """Puts back what was noted since the last log entry before the checkpoint; transformers begins at zero."""
        self.saved_step = state.global_step
        if state.global_step:
            log.info("ppo: goes on after update %d of %d", state.global_step, self.updates)
        if self._unlogged:
            self._figures.update(self._unlogged["figures"])
            self._tr_loss += self._unlogged["loss"]
            self._globalstep_last_logged = self._unlogged["since"]
            self._unlogged = {}

    # ---------------------------------------------------------------- the Hub

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """transformers' takes the policy only, so the rest is brought along."""
        if self.args.hub_strategy != HubStrategy.END and self.is_named and self.is_world_process_zero():
            for name in (VALUE_DIRECTORY, *([] if self.average is None else [EMA_DIRECTORY])):
                target = Path(self.args.output_dir) / name
                shutil.copytree(Path(checkpoint_folder) / name, target, dirs_exist_ok=True)
        super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        **metadata: Any,
    ) -> None:
        """Writes `README.md` into `output_dir`; arguments of TRL's trainers, and of transformers' by keyword.

        Args:
            metadata: `language`, `license` and `finetuned_from` go into the card, transformers' others are not needed.
        """
        if not self.is_world_process_zero():
            return
        policy, directory = self.roles.policy, Path(self.args.output_dir)
        card = ppo_card(
            model_name or directory.name,
            metadata.get("finetuned_from") or policy.backbone.base_id,
            self.ppo,
            self.state.log_history,
            adapter=policy.adapter is not None,
            tags=[tags] if isinstance(tags, str) else tags or (),
            metadata={"datasets": dataset_name, **{key: metadata.get(key) for key in ("language", "license")}},
        )
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "README.md").write_text(card, encoding="utf-8")


def _generator_of_this_process(seed: int, update: int) -> torch.Generator:
    """Of sampling: the processes answer different prompts, and some of the same ones, with different numbers."""
    return torch.Generator().manual_seed((seed * 1_000_003 + update) * 100_003 + launch.rank() + 1)
