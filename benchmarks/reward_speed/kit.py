"""The kit's side: `python -m reward_speed.kit SETTINGS`."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import TrainingArguments

from reward_speed.common import Settings, arguments, items, measure, prepare
from rlhf_kit.data import RankedCollator, RankedIds
from rlhf_kit.models import ScalarHead, load_backbone, lora_config
from rlhf_kit.packing import PackedRows
from rlhf_kit.recipe import LoraSection, ModelSection
from rlhf_kit.rewards import REWARD
from rlhf_kit.stages.reward import RewardTrainer


def count(batch: dict[str, Any]) -> tuple[int, int]:
    """Tokens that the model sees, without and with padding."""
    rows = batch["batch"].responses
    real = rows.tokens if isinstance(rows, PackedRows) else int(rows.attention_mask.sum())
    return real, rows.input_ids.numel()


def main() -> None:
    """Trains for a few steps and prints what was measured."""
    settings = Settings.of_command_line()
    prepare(settings)
    section = ModelSection(
        name_or_path=settings.model,
        dtype=settings.dtype,
        attn_implementation=settings.attention,
        pad_token=settings.pad_token,
    )
    backbone = load_backbone(section)
    torch.manual_seed(0)
    backbone.add_adapter(REWARD, lora_config(LoraSection(**settings.lora)))
    backbone.add_head(REWARD, ScalarHead(backbone.hidden_size))
    backbone.train_only(REWARD)
    if settings.checkpointing:
        backbone.use_checkpointing()
    rows = [RankedIds(item.prompt, item.responses, list(range(1, settings.k + 1))) for item in items(settings)]
    with tempfile.TemporaryDirectory() as folder:
        shared = arguments(settings, folder, settings.batch // settings.micro_batch)
        trainer = RewardTrainer(
            model=backbone,
            args=TrainingArguments(**shared, remove_unused_columns=False, label_names=[]),
            data_collator=RankedCollator(backbone.tokenizer.pad_token_id, packed=settings.packed),
            train_dataset=rows,
        )
        measure(trainer, count, prompts=len(rows), pairs=settings.pairs)


if __name__ == "__main__":
    main()
