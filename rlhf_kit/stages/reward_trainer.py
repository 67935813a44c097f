"""transformers' Trainer with the loss of ranked and rated answers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from rlhf_kit import launch
from rlhf_kit.data import RankedIds
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.models import Backbone, ScalarHead
from rlhf_kit.packing import RankedBatch
from rlhf_kit.ranking import pairs_of, ranking_loss, rating_loss
from rlhf_kit.recipe import RewardSection
from rlhf_kit.rewards import REWARD, autocast, outputs_of, save
from rlhf_kit.stages.filling import filled_up


class RewardTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with the loss of ranked answers.

    Args:
        model: a `Backbone` with the adapter and the head `reward`, both trainable (or the head alone).
        args: batch sizes count prompts.
        data_collator: a `RankedCollator` with the head's axes.
        train_dataset: `RankedIds`, one a prompt.
        section: the settings of the loss; InstructGPT's eq. 1 where they are left out.
    """

    def __init__(self, model: Backbone, *args: Any, section: RewardSection | None = None, **kwargs: Any) -> None:
        self.section, self.backbone = section or RewardSection(), model
        super().__init__(launch.Played(model), *args, **kwargs)
        self.model_accepts_loss_kwargs = (
            True  # a loss is a part of its step's, by what `_get_num_items_in_batch` counts
        )
        if self.args.bf16 or (self.is_deepspeed_enabled and model.base.dtype == torch.bfloat16):
            model.without_input_casts()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, RankedBatch],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """The mean over the axes of the head; on each the loss of ranks and the weighted loss of ratings.

        Args:
            num_items_in_batch: (A, 2) over how many prompts of the whole step each of them is a mean: those of all
                batches and processes that make it up; of this batch where it is left out.
        """
        batch = inputs["batch"].to(self.args.device)

        def play() -> Tensor:
            with autocast(self.backbone):
                return outputs_of(self.backbone, batch.responses)

        said: Tensor = model(play)
        counts = [(None, None)] * said.size(1) if num_items_in_batch is None else num_items_in_batch.tolist()
        loss = torch.stack([self._axis_loss(said[:, a], batch, a, *counts[a]) for a in range(said.size(1))]).mean()
        if num_items_in_batch is not None:
            loss = loss * self.args.world_size  # gradients are averaged over the processes
        if not torch.isfinite(loss):
            raise RlhfKitError(
                f"reward: the loss of step {self.state.global_step + 1} is {loss.item()}, in the batch of "
                + "; ".join(f"'{name}'" for name in batch.names)
                + ". Lower reward.learning_rate; what was saved before is kept, and the same command goes on from it"
            )
        return loss

    def _axis_loss(
        self, scores: Tensor, batch: RankedBatch, axis: int, ranked: float | None, rated: float | None
    ) -> Tensor:
        section = self.section
        loss = ranking_loss(
            scores,
            batch.group,
            batch.rank[:, axis],
            ranked=batch.ranked[:, axis],
            ties=section.ties,
            margin=batch.margin * section.margin_scale if section.margin == "given" else None,
            rank_margin=section.margin_scale if section.margin == "rank" else 0.0,
            label_smoothing=section.label_smoothing,
            centering=section.centering,
            weight=batch.weight,
            prompts=ranked,
        )
        some = batch.rated[:, axis]
        if section.rating_weight and some.any():
            ratings = rating_loss(scores, batch.rating[:, axis], some, batch.group, weight=batch.weight, prompts=rated)
            loss = loss + section.rating_weight * ratings
        return loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, RankedBatch]], device: torch.device) -> Tensor:
        """(A, 2) on each axis the prompts with a pair and the rated prompts of a step, on all processes."""
        counts = torch.stack([self._counts(inputs["batch"]) for inputs in batch_samples]).sum(0)
        return launch.gathered_rows(counts[None].to(device)).sum(0)

    def _counts(self, batch: RankedBatch) -> Tensor:
        """(A, 2) of one batch."""
        axes = range(batch.rank.size(1))
        pairs = [
            pairs_of(batch.group, batch.rank[:, a], batch.ranked[:, a], ties=self.section.ties).prompts for a in axes
        ]
        return torch.tensor([[pairs[a], batch.group[batch.rated[:, a]].unique().numel()] for a in axes])

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One role around forward and backward pass: checkpointed layers run again in the backward pass."""
        with self.backbone.role(REWARD):
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def get_train_dataloader(self) -> DataLoader:
        """transformers', each process with as many batches as the others."""
        return filled_up(self, NOTHING, super().get_train_dataloader)

    # ---------------------------------------------------------------- checkpoints

    def _prepare_for_training(self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: Any) -> Any:
        prepare = partial(super()._prepare_for_training, max_steps, train_dataloader)
        return launch.prepared(self, prepare, resume_from_checkpoint, [self.backbone])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled:
            launch.save_state(self, output_dir)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Adapter and head; all processes take part, the main one writes."""
        save(self.backbone, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        directory = Path(resume_from_checkpoint)
        self.backbone.reload_adapter(REWARD, directory)
        head = ScalarHead.load(directory, self.backbone.hidden_size)
        self.backbone.heads[REWARD].load_state_dict(head.state_dict())


NOTHING = RankedIds(prompt=[0], responses=[[0]], ranks=[], weight=0.0, name="nothing")
"""A prompt of which nothing is learned."""
