"""transformers' Trainer with the loss of ranked and rated answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from rlhf_kit.errors import RlhfKitError
from rlhf_kit.models import Backbone, ScalarHead
from rlhf_kit.packing import RankedBatch
from rlhf_kit.ranking import ranking_loss, rating_loss
from rlhf_kit.recipe import RewardSection
from rlhf_kit.rewards import REWARD, outputs_of, save


class RewardTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with the loss of ranked answers.

    Args:
        model: a `Backbone` with the adapter and the head `reward`, both trainable (or the head alone).
        args: batch sizes count prompts.
        data_collator: a `RankedCollator` with the head's axes.
        train_dataset: `RankedIds`, one a prompt.
        section: the settings of the loss; InstructGPT's eq. 1 where they are left out.
    """

    def __init__(self, *args: Any, section: RewardSection | None = None, **kwargs: Any) -> None:
        self.section = section or RewardSection()
        super().__init__(*args, **kwargs)
        if self.args.bf16:
            self.model.without_input_casts()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, RankedBatch],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The mean over the axes of the head; on each the loss of ranks and the weighted loss of ratings."""
        batch = inputs["batch"].to(self.args.device)
        backbone: Backbone = self.accelerator.unwrap_model(model)
        said = outputs_of(backbone, batch.responses)
        loss = torch.stack([self._axis_loss(said[:, a], batch, a) for a in range(said.size(1))]).mean()
        if not torch.isfinite(loss):
            raise RlhfKitError(
                f"reward: the loss of step {self.state.global_step + 1} is {loss.item()}, in the batch of "
                + "; ".join(f"'{name}'" for name in batch.names)
                + ". Lower reward.learning_rate; what was saved before is kept, and the same command goes on from it"
            )
        return loss

    def _axis_loss(self, scores: Tensor, batch: RankedBatch, axis: int) -> Tensor:
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
        )
        rated = batch.rated[:, axis]
        if section.rating_weight and rated.any():
            ratings = rating_loss(scores, batch.rating[:, axis], rated, batch.group, weight=batch.weight)
            loss = loss + section.rating_weight * ratings
        return loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One role around forward and backward pass: checkpointed layers run again in the backward pass."""
        with self.accelerator.unwrap_model(model).role(REWARD):
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        save(self.model, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        directory = Path(resume_from_checkpoint)
        self.model.reload_adapter(REWARD, directory)
        self.model.heads[REWARD].load_state_dict(ScalarHead.load(directory, self.model.hidden_size).state_dict())
