"""The kit's RewardTrainer in a process of its own: `python -m reward_quality.kit train|score RUN`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import TrainingArguments

from rlhf_kit import rewards
from rlhf_kit.data import RankedCollator, RankedIds
from rlhf_kit.models import Backbone, ScalarHead, load_backbone, lora_config
from rlhf_kit.recipe import LoraSection, ModelSection
from rlhf_kit.stages.reward import RewardTrainer

from .meter import Meter, arguments, one_core
from .scoring import score_checkpoints
from .settings import Pair, Settings, read_pairs


def load(settings: Settings) -> Backbone:
    """The base without adapters."""
    return load_backbone(
        ModelSection(
            name_or_path=settings.model,
            dtype=settings.dtype,
            attn_implementation=settings.attention,
            pad_token=settings.pad_token,
        )
    )


def train(run: Path) -> None:
    """Trains until the budget is used."""
    settings, pairs = Settings.read(run), read_pairs(run, "training")
    backbone = load(settings)
    torch.manual_seed(settings.seed)
    backbone.add_adapter(rewards.REWARD, lora_config(LoraSection(**settings.lora)))
    backbone.add_head(rewards.REWARD, ScalarHead(backbone.hidden_size))
    backbone.train_only(rewards.REWARD)
    items = [RankedIds(pair.prompt, [pair.better, pair.worse], [1, 2]) for pair in pairs]
    torch.manual_seed(settings.seed)
    trainer = RewardTrainer(
        model=backbone,
        args=TrainingArguments(**arguments(settings, run), remove_unused_columns=False, label_names=[]),
        data_collator=RankedCollator(backbone.tokenizer.pad_token_id),
        train_dataset=items,
    )
    head = f"normal, std {(backbone.hidden_size + 1) ** -0.5:.4f} (arXiv 2009.01325), bias 0"
    meter = Meter(settings, run, pairs, lambda folder: rewards.save(backbone, folder))
    meter.fit(trainer, {"head": head, "collator": repr(trainer.data_collator)})


def score(run: Path, only: list[str]) -> None:
    """Scores the held-out pairs with the checkpoints of a run."""
    settings = Settings.read(run)

    def scorer(checkpoint: Path, pairs: list[Pair]) -> list[float]:
        backbone = load(settings)
        rewards.load(backbone, checkpoint)
        prompts = [pair.prompt for pair in pairs for _ in range(2)]
        answers = [answer for pair in pairs for answer in (pair.better, pair.worse)]
        return [float(value) for value in rewards.score(backbone, prompts, answers)]

    score_checkpoints(run, only, scorer)


if __name__ == "__main__":
    one_core()
    if sys.argv[1] == "train":
        train(Path(sys.argv[2]))
    else:
        score(Path(sys.argv[2]), sys.argv[3:])
