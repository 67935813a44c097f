"""docs/evaluation.md: its commands are commands, its options options, its keys those of an evaluation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from docs_page import commands, parsed, text_of
from test_evaluating import evaluated

from rlhf_kit.cli_policies import add_policy
from rlhf_kit.evaluation.results import to_json

TEXT = text_of("evaluation.md")
COMMANDS = commands(TEXT)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    assert parsed(command).command in ("evaluate", "report")


def test_every_option_that_it_names_is_one_and_the_others_are_of_endpoints() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_policy(parser.add_subparsers())
    (kinds,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    known = {option for action in kinds.choices["policy"]._actions for option in action.option_strings}
    told = set(re.findall(r"--[a-z][a-z-]*", TEXT))
    assert told <= known | {"--out"}
    untold = {"--judge-key", "--judge-prompt", "--comparisons", "--concurrency", "--retries", "--partial"}
    assert known - told == untold | {"--help", "-h", "--debug", "--format"}
    judges = (Path(__file__).parents[1] / "docs" / "judges.md").read_text(encoding="utf-8")
    assert all(option in judges for option in untold)


def test_every_key_is_told(tmp_path: Path) -> None:
    found = to_json(evaluated(tmp_path, {"reward": np.random.default_rng(0).normal(size=(4, 3, 2))}))
    rows = re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \|", TEXT, re.MULTILINE)
    told = {key for row in rows for key in re.findall(r"`([a-z_]+)`", row)}
    assert told == set(found)
    for key in found["judges"][0]:
        assert f"`{key}`" in TEXT
