"""TRL's RewardTrainer in a process of its own, without the kit: `python -m reward_quality.peer train|score RUN`.

It is given the same token ids, base, adapter, schedule and order as the kit; the rest are its defaults, but for
`gradient_checkpointing`, which the settings say. Its head is kept in float32 as all that is trained (it would be
bfloat16 like the base); it is initialised by its own library.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from trl import RewardConfig, RewardTrainer

from .meter import Meter, arguments, one_core
from .scoring import score_checkpoints
from .settings import Pair, Settings, read_pairs


def train(run: Path) -> None:
    """Trains until the budget is used."""
    settings, pairs = Settings.read(run), read_pairs(run, "training")
    torch.manual_seed(settings.seed)
    model = load(settings)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    tokenizer.pad_token = settings.pad_token
    rows = [{"chosen_ids": pair.prompt + pair.better, "rejected_ids": pair.prompt + pair.worse} for pair in pairs]
    torch.manual_seed(settings.seed)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**arguments(settings, run), max_length=settings.max_length),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(**settings.lora, task_type="SEQ_CLS"),
    )
    if len(trainer.train_dataset) != len(pairs):
        raise SystemExit(f"TRL left out {len(pairs) - len(trainer.train_dataset)} pairs; both must see the same")
    head = f"normal, std {model.config.get_text_config().initializer_range:.4f} (transformers'), no bias"
    meter = Meter(settings, run, pairs, lambda folder: trainer.model.save_pretrained(str(folder)))
    meter.fit(trainer, {"head": head, "collator": type(trainer.data_collator).__name__})


def load(settings: Settings) -> PreTrainedModel:
    """The base with a head of one output, the head in float32."""
    model = AutoModelForSequenceClassification.from_pretrained(
        settings.model,
        num_labels=1,
        dtype=getattr(torch, settings.dtype),
        attn_implementation=settings.attention,
        use_safetensors=True,
    )
    model.score.float()
    return model


class _Float32(nn.Module):
    """A head outside autocast, as the kit's is: no scores are tied by being rounded to bfloat16."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) to (..., 1)."""
        with torch.autocast(hidden.device.type, enabled=False):
            said: Tensor = self.head(hidden.float())
        return said


def score(run: Path, only: list[str]) -> None:
    """Scores the held-out pairs with the checkpoints of a run."""
    settings = Settings.read(run)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    pad = tokenizer.convert_tokens_to_ids(settings.pad_token)

    def scorer(checkpoint: Path, pairs: list[Pair]) -> list[float]:
        base = load(settings)
        base.config.get_text_config().pad_token_id = pad
        model = PeftModel.from_pretrained(base, str(checkpoint)).eval()
        model.base_model.model.score = _Float32(model.base_model.model.score)
        texts = [pair.prompt + answer for pair in pairs for answer in (pair.better, pair.worse)]
        return _scores(model, texts, pad, settings.dtype == "bfloat16")

    score_checkpoints(run, only, scorer)


@torch.no_grad()
def _scores(model: Any, texts: list[list[int]], pad: int, autocast: bool) -> list[float]:
    found = torch.empty(len(texts))
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), 16):
        rows = order[start : start + 16]
        width = max(len(texts[i]) for i in rows)
        ids = torch.tensor([texts[i] + [pad] * (width - len(texts[i])) for i in rows])
        mask = torch.tensor([[1] * len(texts[i]) + [0] * (width - len(texts[i])) for i in rows])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found[rows] = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().squeeze(-1)
    return [float(value) for value in found]


if __name__ == "__main__":
    one_core()
    if sys.argv[1] == "train":
        train(Path(sys.argv[2]))
    else:
        score(Path(sys.argv[2]), sys.argv[3:])
