"""Stage 1: supervised fine-tuning on demonstrations, by TRL's SFTTrainer with a LoRA adapter."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer

from rlhf_kit.checkpoint import MetricsLog
from rlhf_kit.data import Encoder
from rlhf_kit.models import Backbone, load_backbone, lora_config
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Demonstration
from rlhf_kit.rewards import autocast
from rlhf_kit.stages.arguments import build, fit, mode
from rlhf_kit.stages.filling import filled_up

ADAPTER = "sft"
_NOTHING = {"input_ids": [0, 0], "labels": [-100, -100]}


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """TRL's, with what several processes need of their own."""

    def __init__(self, backbone: Backbone, **kwargs: Any) -> None:
        self.backbone = backbone
        super().__init__(model=backbone.peft, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """transformers', each process with as many batches as the others."""
        return filled_up(self, _NOTHING, super().get_train_dataloader)

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """With the autocast that transformers leaves to DeepSpeed, which would cast what is trained instead."""
        stack = super().compute_loss_context_manager()
        if self.is_deepspeed_enabled:
            stack.enter_context(autocast(self.backbone))
        return stack

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """TRL's; under DeepSpeed, whose way is over a copy of the whole model, the adapter alone."""
        if self.is_deepspeed_enabled:
            self.backbone.save_adapter(ADAPTER, Path(output_dir or self.args.output_dir) / ADAPTER)
        else:
            super().save_model(output_dir, _internal_call)


def train(recipe: Recipe, demonstrations: list[Demonstration], work: Path) -> dict[str, Any]:
    """Trains the adapter `sft` and leaves it in `work` in PEFT's layout; returns the figures of the training."""
    section = recipe.sft
    backbone = load_backbone(recipe.model)
    torch.manual_seed(recipe.seed)  # before the adapter is drawn; the trainer seeds too late for that
    backbone.add_adapter(ADAPTER, lora_config(recipe.lora))
    backbone.train_only(ADAPTER)

    encoder = Encoder(
        backbone.tokenizer, max_prompt_length=recipe.data.max_prompt_length, max_length=section.max_length
    )
    dataset = Dataset.from_list([encoder.demonstration(record) for record in demonstrations])
    encoder.report("sft")
    fixed = section.model_dump(exclude={"trainer", "max_length", "keep_checkpoints"})
    fixed |= {
        "save_total_limit": max(2, section.keep_checkpoints),
        "max_length": None,
        "logging_steps": 5,
        "logging_first_step": True,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    arguments = build(SFTConfig, recipe, work, fixed, section.trainer)
    with backbone.role(ADAPTER):
        trainer = _Trainer(
            backbone,
            args=arguments,
            train_dataset=dataset,
            processing_class=backbone.tokenizer,
            callbacks=[MetricsLog("sft", work)],
        )
        # TRL has made the adapter of a quantised model bfloat16, where small steps are lost. No optimiser exists yet.
        for parameter in backbone.adapter_parameters(ADAPTER):
            parameter.data = parameter.data.float()
        fit(trainer, work)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    backbone.save_adapter(ADAPTER, work)
    return {
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "demonstrations": len(demonstrations),
        "shortened_prompts": encoder.shortened_prompts,
        "cut_responses": encoder.cut_responses,
        "processes": trainer.args.world_size,
        "distributed": mode(trainer.args),
    }
