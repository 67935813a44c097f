"""One point, measured in a process of its own: `python -m growth.child POINT STEPS` (JSON, a number)."""

from __future__ import annotations

import itertools
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from reward_speed.common import MARK, memory
from transformers import AutoModelForCausalLM, LlamaConfig, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from growth.law import RANK, VOCABULARY, Point
from rlhf_kit import PPOConfig, PPOTrainer, load_recipe
from rlhf_kit.data import RankedCollator, RankedIds
from rlhf_kit.models import Backbone, ScalarHead, lora_config
from rlhf_kit.models.loading import load_tokenizer
from rlhf_kit.process import prepare_torch
from rlhf_kit.recipe import LoraSection
from rlhf_kit.rewards import REWARD
from rlhf_kit.stages.reward import RewardTrainer

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"
LORA = lora_config(LoraSection(r=RANK, lora_alpha=2 * RANK))


class Clock(TrainerCallback):  # type: ignore[misc]
    """Processor seconds of each step; its first step warms up and is left out."""

    def __init__(self) -> None:
        self.clocks: list[tuple[float, float]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The first step begins."""
        self.on_step_end()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step has ended."""
        self.clocks.append((time.process_time(), time.perf_counter()))

    def seconds(self, which: int) -> list[float]:
        """Of every step but the first; 0 the processor's, 1 the wall's."""
        clocks = [clock[which] for clock in self.clocks]
        return [after - before for before, after in itertools.pairwise(clocks[1:])]


def backbone(point: Point) -> Backbone:
    """A Llama of random weights with the quickstart's tokenizer, frozen."""
    config = LlamaConfig(**point.config, max_position_embeddings=4096)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return Backbone(base, load_tokenizer(load_recipe(RECIPE).model), "random weights")


def ids(found: Backbone, count: int, length: int) -> list[list[int]]:
    """Random tokens, none of which ends or pads."""
    first = max(found.tokenizer.eos_token_id, found.tokenizer.pad_token_id) + 1
    draw = random.Random(count * length)
    return [[draw.randrange(first, VOCABULARY) for _ in range(length)] for _ in range(count)]


def arguments(point: Point, folder: str) -> dict[str, Any]:
    """What all trainers are given."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": point.batch,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "seed": 0,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def sft(point: Point, found: Backbone, folder: str, steps: int) -> Trainer:
    """TRL's trainer as the stage sets it up."""
    found.add_adapter("sft", LORA)
    found.train_only("sft")
    prompts, answers = (ids(found, point.batch * steps, length) for length in (point.prompt, point.response))
    rows = [
        {"input_ids": asked + said, "labels": [-100] * len(asked) + said}
        for asked, said in zip(prompts, answers, strict=True)
    ]
    config = SFTConfig(
        **arguments(point, folder), max_steps=steps, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}
    )
    with found.role("sft"):
        return SFTTrainer(
            model=found.peft, args=config, train_dataset=Dataset.from_list(rows), processing_class=found.tokenizer
        )


def reward(point: Point, found: Backbone, folder: str, steps: int) -> Trainer:
    """The kit's trainer on packed answers, the first of a prompt the best."""
    found.add_adapter(REWARD, LORA)
    found.add_head(REWARD, ScalarHead(found.hidden_size))
    found.train_only(REWARD)
    answers = ids(found, point.batch * steps * point.answers, point.response)
    ranks = list(range(1, point.answers + 1))
    return RewardTrainer(
        model=found,
        args=TrainingArguments(
            **arguments(point, folder), max_steps=steps, remove_unused_columns=False, label_names=[]
        ),
        data_collator=RankedCollator(found.tokenizer.pad_token_id, packed=True),
        train_dataset=[
            RankedIds(asked, answers[place * point.answers : (place + 1) * point.answers], ranks)
            for place, asked in enumerate(ids(found, point.batch * steps, point.prompt))
        ],
    )


def ppo(point: Point, found: Backbone, folder: str, steps: int) -> Trainer:
    """One pass over each update's answers, all in one mini-batch, each of the full length."""
    for name in ("policy", REWARD):
        found.add_adapter(name, LORA)
    found.add_head(REWARD, ScalarHead(found.hidden_size))
    config = PPOConfig(
        **arguments(point, folder),
        total_episodes=point.batch * steps,
        batch_size=point.batch,
        mini_batch_size=point.batch,
        response_length=point.response,
        min_response_length=point.response,
        missing_eos_penalty=None,
    )
    rows = [{"input_ids": asked} for asked in ids(found, point.batch * steps, point.prompt)]
    return PPOTrainer(model=found, reward_funcs=[REWARD], args=config, train_dataset=rows)


def main() -> None:
    """Trains for a few steps and prints what was measured."""
    point, steps = Point(**json.loads(sys.argv[1])), int(sys.argv[2])
    prepare_torch()  # what the command line sets of malloc
    torch.set_num_threads(1)
    torch.manual_seed(0)
    imported = memory("VmRSS")
    clock, found = Clock(), backbone(point)
    with tempfile.TemporaryDirectory() as folder:
        trainer = {"sft": sft, "reward": reward, "ppo": ppo}[point.stage](point, found, folder, steps + 1)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        loaded = memory("VmHWM")
        with found.role("sft" if point.stage == "sft" else None):
            trainer.train()
    measured = {
        "cpu_seconds": clock.seconds(0),
        "wall_seconds": clock.seconds(1),
        "imported_mib": imported,
        "loaded_mib": loaded,
        "peak_mib": memory("VmHWM"),
    }
    print(MARK + json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
