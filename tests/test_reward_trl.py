"""For K = 2 the kit's loss is that of TRL's own RewardTrainer, on the same weights and the same texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import add_head, lora, stir, tiny_backbone, tiny_base, tiny_directory
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments
from trl import RewardConfig
from trl import RewardTrainer as TrlTrainer

from rlhf_kit.data import Encoder, RankedCollator
from rlhf_kit.parsing import parse
from rlhf_kit.recipe import RewardSection
from rlhf_kit.stages.reward_trainer import RewardTrainer

ROWS = [
    ("Why is the sky blue?", "Air scatters blue light more than red light.", "I do not know, sorry.", 0.0),
    ("Name three colours.", "Red, green and blue.", "No.", 1.0),
    ("How do I boil an egg?", "Put the egg in boiling water.", "Who wrote this book? Nobody. The egg is good.", 0.5),
    ("Is a whale a fish?", "No, a whale is a mammal.", "Yes.", 0.25),
]


@pytest.mark.parametrize(("centering", "margin"), [(0.0, False), (0.01, True)])
@pytest.mark.parametrize("packed", [True, False])
def test_the_loss_is_trls(tmp_path: Path, centering: float, margin: bool, packed: bool) -> None:
    backbone = tiny_backbone()
    backbone.add_adapter("reward", lora())
    stir(backbone, "reward", 1)
    head = add_head(backbone, "reward", 1)
    torch.nn.init.zeros_(head.linear.bias)  # transformers' heads have none
    backbone.train_only("reward")
    encoder = Encoder(backbone.tokenizer, max_prompt_length=200)
    records = [
        parse(
            {"prompt": p, "margin": m, "responses": [{"text": w, "rank": 1}, {"text": o, "rank": 2}]}, "ranking", "here"
        )
        for p, w, o, m in ROWS
    ]
    items = [encoder.ranking(record) for record in records]
    section = RewardSection(centering=centering, margin="given" if margin else "none")
    arguments: dict[str, Any] = {"use_cpu": True, "report_to": "none", "remove_unused_columns": False}
    ours = RewardTrainer(
        model=backbone,
        args=TrainingArguments(output_dir=str(tmp_path / "ours"), **arguments),
        train_dataset=items,
        section=section,
    )
    found = ours.compute_loss(ours.model, RankedCollator(backbone.tokenizer.pad_token_id, packed=packed)(items))

    tokenizer = AutoTokenizer.from_pretrained(tiny_directory())
    theirs = AutoModelForSequenceClassification.from_pretrained(tiny_directory(), num_labels=1, dtype=torch.float32)
    theirs.config.pad_token_id = tokenizer.pad_token_id
    backbone.save_adapter("reward", tmp_path / "adapter")
    theirs.model = PeftModel.from_pretrained(tiny_base(), str(tmp_path / "adapter")).merge_and_unload().model
    with torch.no_grad():
        theirs.score.weight.copy_(head.linear.weight)
    rendered = [
        tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True)
        for p, *_ in ROWS
    ]
    columns = {
        "chosen": [text + w for text, (_, w, _, _) in zip(rendered, ROWS, strict=True)],
        "rejected": [text + o for text, (_, _, o, _) in zip(rendered, ROWS, strict=True)],
    }
    if margin:
        columns["margin"] = [m for *_, m in ROWS]
    trainer = TrlTrainer(
        model=theirs,
        args=RewardConfig(
            output_dir=str(tmp_path / "theirs"),
            center_rewards_coefficient=centering or None,
            bf16=False,
            max_length=None,
            **{**arguments, "remove_unused_columns": True},
        ),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(ROWS))])
    rows = batch["input_ids"][batch["attention_mask"].bool()].tolist()
    flat = [item.prompt + item.responses[i] for i in range(2) for item in items]
    assert rows == [token for row in flat for token in row]  # the same texts
    expected = trainer.compute_loss(trainer.model, batch)
    assert float(found) == pytest.approx(float(expected), abs=1e-5)
    assert 0.05 < float(found) < 5
