"""TRL's side, in an environment without the kit: `python -m ppo_speed.peer SETTINGS`.

TRL's `PPOTrainer` as shipped: `peft_config` for the policy, `ref_model=None` (the adapter off), reward and value model
sequence classification models of the same base. Without a stop token no response ends before its last token. What is
not said here is TRL's default, but for gradient checkpointing (its default is on) and the samples that it would print.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from reward_speed.common import prepare
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
)
from trl import __version__ as trl_version
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from ppo_speed.common import PARTS, Meter, Settings, arguments, prompts, spans


class Clock(TrainerCallback):  # type: ignore[misc]
    """The end of generation, the first training step and the end of each update.

    TRL has no name for the parts of its loop, so the two functions that stand between them are wrapped.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.parts: list[dict[str, float]] = []
        self.lengths: list[float] = []
        self._marks: list[float] = []

    def watch(self, trainer: PPOTrainer) -> None:
        """Wraps the two functions."""
        generation, accumulate = ppo_trainer.batch_generation, trainer.accelerator.accumulate

        def timed_generation(*given: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
            found: tuple[torch.Tensor, torch.Tensor] = generation(*given, **named)
            self._marks = [time.perf_counter()]
            self.lengths.append(found[1].size(1))
            return found

        def timed_accumulate(*models: Any) -> Any:
            if len(self._marks) == 1:
                self._marks.append(time.perf_counter())
            return accumulate(*models)

        ppo_trainer.batch_generation = timed_generation
        trainer.accelerator.accumulate = timed_accumulate

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Everything is loaded."""
        self.meter.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """TRL calls this once an update."""
        begin = self.meter.walls[-1]
        self.meter.tick()
        self.parts.append(dict(zip(PARTS, spans([begin, *self._marks, self.meter.walls[-1]]), strict=True)))


def load(settings: Settings, kind: Any, **options: Any) -> PreTrainedModel:
    """A model of the base's weights, or of random ones."""
    options |= {"dtype": getattr(torch, settings.dtype), "attn_implementation": settings.attention}
    if settings.config is not None:
        config = LlamaConfig(**settings.config, **({"num_labels": 1} if "num_labels" in options else {}))
        options.pop("num_labels", None)
        return kind.from_config(config, **options)
    return kind.from_pretrained(settings.model, **options)


def value_model(settings: Settings) -> PreTrainedModel:
    """The value model, trained in full, or with LoRA put into it by hand: TRL itself has no way to say so."""
    model = load(settings, AutoModelForSequenceClassification, num_labels=1)
    if settings.value == "lora":
        # TRL looks for the decoder by its name in the model itself, so the wrapper is taken off again.
        model = get_peft_model(model, LoraConfig(**settings.lora, task_type="SEQ_CLS")).base_model.model
    return model


def main() -> None:
    """Trains for a few updates and prints what was measured."""
    settings = Settings.of_command_line()
    meter = Meter()
    prepare(settings)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    tokenizer.pad_token = settings.pad_token
    clock = Clock(meter)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                **arguments(settings, folder),
                per_device_train_batch_size=settings.batch,
                gradient_accumulation_steps=1,
                num_mini_batches=settings.batch // settings.mini_batch,
                num_sample_generations=0,
            ),
            processing_class=tokenizer,
            model=load(settings, AutoModelForCausalLM),
            ref_model=None,
            reward_model=load(settings, AutoModelForSequenceClassification, num_labels=1),
            value_model=value_model(settings),
            train_dataset=Dataset.from_dict({"input_ids": prompts(settings)}),
            # TRL makes a loader of it even where nothing is evaluated.
            eval_dataset=Dataset.from_dict({"input_ids": prompts(settings)}),
            callbacks=[clock],
            peft_config=LoraConfig(**settings.lora, task_type="CAUSAL_LM"),
        )
        trainer.remove_callback(PrinterCallback)
        clock.watch(trainer)
        trainer.train()
        meter.report(
            clock.parts,
            clock.lengths,
            optimizer_steps=trainer.args.num_ppo_epochs * trainer.args.num_mini_batches,
            trained_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            base_parameters=sum(p.numel() for p in trainer.reward_model.parameters()),
            precision=trainer.accelerator.mixed_precision,
            trl=trl_version,
        )


if __name__ == "__main__":
    main()
