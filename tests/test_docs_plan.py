"""docs/plan.md: its commands are commands, its options all of them, its figures those of RESULTS.md."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from docs_page import commands, parsed, text_of

from rlhf_kit.cli import _parser
from rlhf_kit.planning.wishes import MODES
from rlhf_kit.recipe import load_recipe

ROOT = Path(__file__).parents[1]
TEXT = text_of("plan.md")


@pytest.mark.parametrize("command", commands(TEXT))
def test_every_command_is_one(command: str) -> None:
    arguments = parsed(command)
    assert arguments.command == "plan" and load_recipe(ROOT / arguments.recipe, arguments.overrides)


def test_every_option_and_mode_is_told() -> None:
    (subparsers,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    options = {o for a in subparsers.choices["plan"]._actions for o in a.option_strings if o.startswith("--")}
    told = {
        name for line in re.findall(r"^\| (`--[^|]+) \|", TEXT, re.MULTILINE) for name in re.findall(r"`(--\w+)`", line)
    }
    assert told == options - {"--help", "--debug"}
    assert all(mode in TEXT for mode in MODES)


def test_its_accuracy_is_what_was_measured() -> None:
    """The same table stands in RESULTS.md, and none of its ratios is further than 20 % from 1."""
    rows = re.findall(r"^\| (?:SmolLM2|Qwen3|Llama).*\|$", TEXT, re.MULTILINE)
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    assert len(rows) == 3 and all(row in results for row in rows)
    ratios = [float(ratio) for row in rows for ratio in re.findall(r"\((\d\.\d\d)\)", row)]
    assert len(ratios) == 9 and all(0.8 <= ratio <= 1.2 for ratio in ratios)
