"""The kit's side: `python -m ppo_speed.kit SETTINGS`.

Four roles on one base: `policy` learns, the reference is the base without adapters (as in TRL with `ref_model=None`),
`reward` scores with its head, and the values are a head on the policy (`value: shared`) or an adapter of their own.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from reward_speed.common import prepare
from transformers import AutoModelForCausalLM, LlamaConfig, PrinterCallback, TrainerCallback

from ppo_speed.common import PARTS, Meter, Settings, arguments, prompts
from rlhf_kit import PPOConfig, PPOTrainer
from rlhf_kit.models import Backbone, ScalarHead, load_backbone, lora_config
from rlhf_kit.models.loading import load_tokenizer
from rlhf_kit.recipe import LoraSection, ModelSection
from rlhf_kit.rewards import REWARD


class Clock(TrainerCallback):  # type: ignore[misc]
    """The end of each update, which is a step of the kit's trainer."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Everything is loaded."""
        self.meter.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """An update has ended."""
        self.meter.tick()


def backbone(settings: Settings) -> Backbone:
    """The base with the adapters `policy` and `reward`; the trainer adds that of the value model."""
    section = ModelSection(
        name_or_path=settings.model,
        dtype=settings.dtype,
        attn_implementation=settings.attention,
        pad_token=settings.pad_token,
    )
    if settings.config is None:
        found = load_backbone(section)
    else:
        base = AutoModelForCausalLM.from_config(
            LlamaConfig(**settings.config),
            dtype=getattr(torch, settings.dtype),
            attn_implementation=settings.attention,
        )
        found = Backbone(base, load_tokenizer(section), "random weights")
    lora = lora_config(LoraSection(**settings.lora))
    found.add_adapter("policy", lora)
    found.add_adapter(REWARD, lora)
    found.add_head(REWARD, ScalarHead(found.hidden_size))
    return found


def main() -> None:
    """Trains for a few updates and prints what was measured."""
    settings = Settings.of_command_line()
    meter = Meter()
    prepare(settings)
    torch.manual_seed(0)
    model = backbone(settings)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            model=model,
            reward_funcs=[REWARD],
            args=PPOConfig(
                **arguments(settings, folder),
                batch_size=settings.batch,
                mini_batch_size=settings.mini_batch,
                per_device_train_batch_size=settings.mini_batch,
                min_response_length=settings.response_length,
                missing_eos_penalty=None,
                value=settings.value,
            ),
            train_dataset=[{"input_ids": ids} for ids in prompts(settings)],
            callbacks=[Clock(meter)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        entries = [entry for entry in trainer.state.log_history if "seconds_generate" in entry]
        meter.report(
            [{part: entry[f"seconds_{part}"] for part in PARTS} for entry in entries],
            [entry["response_length"] for entry in entries],
            optimizer_steps=trainer.args.num_ppo_epochs * (settings.batch // settings.mini_batch),
            trained_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
            base_parameters=sum(p.numel() for name, p in model.base.named_parameters() if "lora_" not in name),
        )


if __name__ == "__main__":
    main()
