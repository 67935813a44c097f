"""docs/quantization.md: its commands are commands, its recipe trains and exports, its figures are bitsandbytes'."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from docs_page import blocks, commands, parsed, text_of
from tiny_recipe import write_recipe
from transformers import AutoModelForCausalLM

from rlhf_kit.cli import main
from rlhf_kit.models.quantized import quantization_config

bitsandbytes = pytest.importorskip("bitsandbytes")

TEXT = text_of("quantization.md")
COMMANDS = commands(TEXT)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    assert parsed(command).command in ("run", "export")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_the_recipe_and_the_commands_that_it_shows_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny recipe with what the page shows, a step or two a stage; the commands with their own words."""
    (shown,) = blocks(TEXT, "yaml")
    sections = yaml.safe_load(shown)
    few = {"sft": {"max_steps": 2}, "reward": {"max_steps": 1}, "ppo": {}}
    for stage, more in few.items():
        sections[stage]["trainer"] |= more
    sections["ppo"]["total_episodes"] = 32
    sections["export"] = {"positions": 32}
    sections["data"] = {"prompts_heldout": None, "rubric": None}
    path = write_recipe(tmp_path, **sections)
    monkeypatch.chdir(tmp_path)
    run, export = (command.split()[1:] for command in COMMANDS)
    assert main([str(path) if word.endswith(".yaml") else word for word in run]) == 0
    for stage, optim in (("sft", "paged_adamw_8bit"), ("reward", "adamw_bnb_8bit"), ("ppo", "paged_adamw_32bit")):
        manifest = json.loads(Path("runs/qlora", stage, "manifest.json").read_text(encoding="utf-8"))
        assert manifest["base"]["quantization"] == "4bit"
        assert manifest["recipe"][stage]["trainer"]["optim"] == optim
    assert main(export) == 0
    model = AutoModelForCausalLM.from_pretrained("my-model")
    assert {p.dtype for p in model.parameters()} == {torch.float32}, "the tiny recipe's, not packed"


def test_the_bits_that_it_shows_are_those_of_bitsandbytes() -> None:
    config = quantization_config("4bit", torch.bfloat16)
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
    rows = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    packed, state = bitsandbytes.functional.quantize_4bit(rows, quant_type="nf4", compress_statistics=True)
    kept = [packed, state.absmax, state.state2.absmax]
    bits = 8 * sum(tensor.numel() * tensor.element_size() for tensor in kept) / rows.numel()
    assert state.blocksize == 64 and f"| {bits:.2f} |" in TEXT and "in blocks of 64" in TEXT


def test_the_names_that_it_tells_are_right() -> None:
    assert "support_avx512bf16_for_cpu" in vars(bitsandbytes.nn.Linear4bit(64, 64))
    assert "`support_avx512bf16_for_cpu = False` on each `Linear4bit`" in TEXT
    least = bitsandbytes.optim.AdamW([torch.nn.Parameter(torch.zeros(2))]).args.min_8bit_size
    assert f"fewer than {least:,} elements" in TEXT
    assert re.search(r"pip install 'rlhf-kit\[quant\]'", TEXT)
