"""Memory and time of an SFT step and a PPO update on a base in float32, bfloat16, 8 bit and 4 bit.

    python benchmarks/bench_quantized.py [--models smollm2 wide] [--precisions float32 bfloat16 8bit 4bit] [--threads 1]

Two bases: the quickstart's SmolLM2-135M, a fifth of whose weights are embeddings, which are never quantised; and
`wide`, a Llama of 0.71 billion random weights (hidden size 2048, 10 layers) that is made from a configuration, where
the weights are most of the memory. LoRA (r = 16) on every linear layer, as the stages make it. An SFT step is 4 rows of
64 tokens; a PPO update is 4 answers of 16 tokens to prompts of 16, with four roles on the base, in two optimiser steps
of 2 rows. Both run through the kit's own trainers; the first of two steps warms up, the second counts, in seconds of
the processor: with one thread that is what a quiet core needs, where others use the machine.

Each line is a process of its own. Memory is resident memory above what the process had after its imports: `loading_mib`
is the highest until the base and its adapters are there, `loaded_mib` what is then held, `peak_mib` the highest while
training. A base that is not quantised is a mapped file, which becomes resident as it is read. One JSON line each; the
table is for reading. What was measured stands in RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from reward_speed.common import MARK, memory

from rlhf_kit.recipe import Recipe

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "recipes" / "quickstart.yaml"
PRECISIONS = ("float32", "bfloat16", "8bit", "4bit")
WIDE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 10,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}
STEPS = 2


def build_wide(folder: Path) -> str:
    """Writes the wide base with SmolLM2's tokenizer; returns its place."""
    import torch
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    from rlhf_kit import load_recipe
    from rlhf_kit.models import load_tokenizer, resolve

    section = load_recipe(RECIPE).model
    tokenizer = load_tokenizer(section)
    vocabulary = AutoConfig.from_pretrained(resolve(section.name_or_path, section.sha256)).vocab_size
    torch.manual_seed(0)
    config = LlamaConfig(**WIDE, vocab_size=vocabulary, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Meter:
    """Memory above the imported process in MiB, and the processor's seconds at the end of each step."""

    def __init__(self) -> None:
        self.imported = memory("VmRSS")
        self.loading = self.loaded = 0.0
        self.ends: list[float] = []

    def start(self) -> None:
        """Everything is loaded; from here on the highest memory is that of the training."""
        self.loading, self.loaded = memory("VmHWM") - self.imported, memory("VmRSS") - self.imported
        Path("/proc/self/clear_refs").write_text("5")
        self.ends.append(time.process_time())

    def report(self, **notes: Any) -> None:
        """Prints one line."""
        seconds = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        found = {
            **notes,
            "loading_mib": round(self.loading),
            "loaded_mib": round(self.loaded),
            "peak_mib": round(memory("VmHWM") - self.imported),
            "cpu_seconds": round(seconds[-1], 2),
        }
        print(MARK + json.dumps(found), flush=True)


def measure(stage: str, model: str, precision: str) -> None:
    """What one process does: the steps of a stage."""
    from rlhf_kit.process import prepare_torch

    prepare_torch()
    import torch

    from rlhf_kit import load_recipe
    from rlhf_kit.recipe import ModelSection
    from rlhf_kit.stages import ppo, sft  # noqa: F401 - imported before memory is looked at

    meter = Meter()
    torch.manual_seed(0)
    recipe = load_recipe(RECIPE)
    quantised = precision if precision.endswith("bit") else None
    changes: dict[str, Any] = {"dtype": "bfloat16" if quantised else precision, "quantization": quantised}
    if model != "smollm2":
        changes |= {"name_or_path": model, "sha256": None}
    section = ModelSection.model_validate(recipe.model.model_dump() | changes)
    lora = recipe.lora.model_copy(update={"layers_to_transform": None})
    recipe = recipe.model_copy(update={"model": section, "lora": lora})
    with tempfile.TemporaryDirectory() as folder:
        (sft_steps if stage == "sft" else ppo_updates)(recipe, Path(folder), meter)
    meter.report(stage=stage, model="smollm2" if model == "smollm2" else "wide", precision=precision)


def watch(trainer: Any, meter: Meter) -> None:
    """Has the trainer tell when it begins and when a step ends."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            meter.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.ends.append(time.process_time())

    trainer.add_callback(Clock())


def sft_steps(recipe: Recipe, folder: Path, meter: Meter) -> None:
    """The SFT stage on answers that are cut to rows of 64 tokens."""
    from rlhf_kit import Demonstration
    from rlhf_kit.stages import sft

    settings = {"max_steps": STEPS, "logging_steps": 1, "save_strategy": "no"}
    changes = {"per_device_train_batch_size": 4, "max_length": 64, "trainer": settings}
    recipe = recipe.model_copy(update={"sft": recipe.sft.model_copy(update=changes)})
    rows = [Demonstration(prompt="Count.", completion=f"{n} and on, " * 60) for n in range(4 * STEPS)]
    fit = sft.fit

    def watched(trainer: Any, work: Path) -> None:
        watch(trainer, meter)
        fit(trainer, work)

    with patch.object(sft, "fit", watched):
        sft.train(recipe, rows, folder)


def ppo_updates(recipe: Recipe, folder: Path, meter: Meter) -> None:
    """PPO with the four roles of a recipe: reference, policy, reward and value model as adapters of one base."""
    from rlhf_kit import PPOConfig, PPOTrainer
    from rlhf_kit.models import ScalarHead, load_backbone, lora_config

    backbone, lora = load_backbone(recipe.model), lora_config(recipe.lora)
    for name in ("sft", "policy", "reward", "value"):
        backbone.add_adapter(name, lora)
    backbone.add_head("reward", ScalarHead(backbone.hidden_size))
    arguments = PPOConfig(
        output_dir=str(folder),
        total_episodes=4 * STEPS,
        batch_size=4,
        mini_batch_size=2,
        per_device_train_batch_size=2,
        num_ppo_epochs=1,
        response_length=16,
        min_response_length=16,
        learning_rate=1e-5,
        bf16=recipe.model.dtype == "bfloat16",
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    prompts = [{"input_ids": list(range(1000 + 16 * n, 1016 + 16 * n))} for n in range(4)]
    trainer = PPOTrainer(model=backbone, reward_funcs="reward", args=arguments, train_dataset=prompts)
    watch(trainer, meter)
    trainer.train()


def in_a_process_of_its_own(threads: int, *arguments: str) -> dict[str, Any]:
    """What a process measured.

    Raises:
        SystemExit: it failed; its last lines are shown.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--one", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parent, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode != 0 or not lines:
        raise SystemExit("\n".join(done.stderr.splitlines()[-15:]))
    found: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
    return found


def main() -> None:
    """Prints one JSON line a process, then a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("smollm2", "wide"), default=["smollm2", "wide"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--stages", nargs="+", choices=("sft", "ppo"), default=["sft", "ppo"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(*options.one)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            place = "smollm2" if model == "smollm2" else build_wide(Path(folder))
            for stage in options.stages:
                for precision in options.precisions:
                    rows.append(in_a_process_of_its_own(options.threads, stage, place, precision))
                    print(json.dumps(rows[-1]), flush=True)
    print(f"{'':24}" + "".join(f"{name:>14}" for name in ("loading MiB", "loaded MiB", "peak MiB", "CPU s")))
    for row in rows:
        figures = (row[name] for name in ("loading_mib", "loaded_mib", "peak_mib", "cpu_seconds"))
        print(f"{row['model']:8} {row['stage']:4} {row['precision']:10}" + "".join(f"{one:14}" for one in figures))


if __name__ == "__main__":
    main()
