"""Stage 1: supervised fine-tuning on demonstrations, by TRL's SFTTrainer with a LoRA adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from rlhf_kit.checkpoint import MetricsLog
from rlhf_kit.data import Encoder
from rlhf_kit.models import load_backbone, lora_config
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Demonstration
from rlhf_kit.stages.arguments import build, fit

ADAPTER = "sft"


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
        trainer = SFTTrainer(
            model=backbone.peft,
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
    if trainer.is_world_process_zero():
        backbone.save_adapter(ADAPTER, work)
    return {
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "demonstrations": len(demonstrations),
        "shortened_prompts": encoder.shortened_prompts,
        "cut_responses": encoder.cut_responses,
        "processes": trainer.args.world_size,
        "distributed": trainer.accelerator.distributed_type.value.lower(),
    }
