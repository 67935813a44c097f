"""TRL's side, in an environment without the kit: `python -m reward_speed.peer SETTINGS`.

It gets the same token ids as ready columns, the base in the same dtype and the same adapter; what is not said here is
TRL's default, but for gradient checkpointing, which is as the settings say (TRL's default is on).
"""

from __future__ import annotations

import itertools
import tempfile
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import RewardConfig, RewardTrainer
from trl import __version__ as trl_version

from reward_speed.common import Settings, arguments, items, measure, prepare


def pairs(settings: Settings) -> list[dict[str, list[int]]]:
    """All C(K,2) pairs of every prompt: each response beside every worse one."""
    return [
        {"chosen_ids": item.prompt + better, "rejected_ids": item.prompt + worse}
        for item in items(settings)
        for better, worse in itertools.combinations(item.responses, 2)
    ]


def count(batch: dict[str, Any]) -> tuple[int, int]:
    """Tokens that the model sees, without and with padding."""
    return int(batch["attention_mask"].sum()), batch["input_ids"].numel()


def main() -> None:
    """Trains for a few steps and prints what was measured."""
    settings = Settings.of_command_line()
    prepare(settings)
    rows = pairs(settings)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    tokenizer.pad_token = settings.pad_token
    with tempfile.TemporaryDirectory() as folder:
        shared = arguments(settings, folder, -(-settings.pairs // settings.micro_batch))
        shared["gradient_checkpointing"] = settings.checkpointing
        shared["model_init_kwargs"] = {"dtype": settings.dtype, "attn_implementation": settings.attention}
        trainer = RewardTrainer(
            model=settings.model,
            args=RewardConfig(**shared),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(**settings.lora, task_type="SEQ_CLS"),
        )
        kept = {(tuple(row["chosen_ids"]), tuple(row["rejected_ids"])) for row in trainer.train_dataset}
        if len(kept) != settings.pairs or len(trainer.train_dataset) != settings.pairs:
            raise SystemExit(f"TRL has {len(kept)} different pairs, not {settings.pairs}")
        dtype = str(next(p for p in trainer.model.parameters() if not p.requires_grad).dtype)
        measure(trainer, count, prompts=settings.batch, pairs=len(kept), base_dtype=dtype, trl=trl_version)


if __name__ == "__main__":
    main()
