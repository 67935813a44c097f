"""docs/scaling.md: its commands name files and recipes that are there, its settings are settings, its table whole."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from docs_page import blocks, commands, parsed, text_of

from rlhf_kit.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
TEXT = text_of("scaling.md")
FILES = {path.stem for path in (ROOT / "recipes" / "accelerate").glob("*.yaml")}


@pytest.mark.parametrize("command", commands(TEXT))
def test_every_command_is_one(command: str) -> None:
    """Each way is started for real in tests/slow/test_launched.py."""
    program, *rest = shlex.split(command)
    if program == "accelerate":
        assert rest.pop(0) == "launch"
        given = launch_command_parser().parse_args(rest)
        assert (ROOT / given.config_file).is_file() and given.module and given.training_script == "rlhf_kit"
        mine = given.training_script_args
    elif program == "torchrun":
        assert rest[2:4] == ["-m", "rlhf_kit"]
        mine = rest[4:]
    else:
        assert program == "rlhf-kit"
        mine = rest
    arguments = parsed(shlex.join(["rlhf-kit", *mine]))
    assert arguments.command == "run" and load_recipe(ROOT / arguments.recipe)


def test_the_plan_that_it_names_is_a_command() -> None:
    (command,) = re.findall(r"`(rlhf-kit plan [^`]+)`", TEXT)
    assert parsed(command).devices == 4


def test_every_launch_file_is_told() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == FILES


def test_its_settings_are_settings() -> None:
    (settings,) = (yaml.safe_load(block) for block in blocks(TEXT, "yaml"))
    recipe = Recipe.model_validate({"model": {"name_or_path": "a/b"}, **settings})
    assert recipe.ppo.ds3_gather_for_generation is False
