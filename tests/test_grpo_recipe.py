"""The recipe that hands the kit's reward model to TRL's GRPO and RLOO: it runs, and what it trains is SFT's adapter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_recipe import write_recipe
from transformers import AutoModelForCausalLM

from rlhf_kit import load_recipe, run_step

SCRIPT = Path(__file__).parents[1] / "recipes" / "grpo_with_reward_model.py"
SHORT = {"sft": {"num_train_epochs": 1}, "reward": {"num_train_epochs": 1}}
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which SFT and the reward model of the tiny recipe are finished."""
    directory = tmp_path_factory.mktemp("grpo")
    recipe = load_recipe(write_recipe(directory, **SHORT))
    run_step(recipe, "sft")
    run_step(recipe, "reward")
    return directory


@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
def test_it_trains_the_sft_adapter_further(desk: Path, trainer: str) -> None:
    options = ["--model", "model", "--prompts", "prompts.jsonl", "--output-dir", "run", "--trainer", trainer]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options, "--episodes", "32"],
        cwd=desk,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rewards = [float(value) for value in re.findall(r"'rewards/reward/mean': '?(-?[\d.]+)", done.stdout)]
    assert len(rewards) == 2, done.stdout[-2000:]
    before, after = (load_file(desk / "run" / name / ADAPTER) for name in ("sft", trainer))
    assert before.keys() == after.keys()
    assert any((before[name].float() - after[name].float()).abs().max() > 1e-5 for name in before)
    base = AutoModelForCausalLM.from_pretrained(desk / "model")
    model = PeftModel.from_pretrained(base, str(desk / "run" / trainer))
    assert torch.isfinite(model(input_ids=torch.arange(3, 9)[None]).logits).all()
