"""docs/export.md: its kinds, limits, commands and settings are those of the code."""

from __future__ import annotations

import re

import pytest
import yaml
from docs_page import blocks, commands, parsed, text_of

from rlhf_kit import Recipe
from rlhf_kit.export import adapter, gguf_adapter, gguf_model, merged
from rlhf_kit.export.comparison import MARGIN, POSITIONS
from rlhf_kit.export.exporting import KINDS
from rlhf_kit.export.llama import PYTHON_VARIABLE
from rlhf_kit.export.source import ROLES

TEXT = text_of("export.md")


COMMANDS = commands(TEXT)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    assert parsed(command).command == "export"


def test_every_kind_and_role_is_told() -> None:
    told = re.findall(r"^\| `([a-z][a-z-]*)` \|", TEXT, re.MULTILINE)
    assert told == [*KINDS, "hub"]
    assert "|".join(ROLES) in TEXT and PYTHON_VARIABLE in TEXT and len(COMMANDS) == 4


def test_the_limits_that_it_shows_are_the_limits() -> None:
    rows = {
        weights: (float(agreement), float(kl))
        for weights, agreement, kl in re.findall(r"^\| ([^|`]+) \| (0\.[0-9]+) \| (0\.[0-9]+) \|$", TEXT, re.MULTILINE)
    }
    assert len(rows) == 3
    limits = merged.LIMITS | gguf_model.LIMITS | {"LoRA as GGUF": gguf_adapter.LIMIT}
    assert limits.pop("float32").max_difference == 1e-4 and adapter.LIMIT.max_difference == 1e-5
    shown = {name: values for weights, values in rows.items() for name in weights.split(", ")}
    assert shown == {name: (limit.top1_agreement, limit.mean_kl) for name, limit in limits.items()}
    assert "ten times closer" in TEXT and MARGIN == 10 and f"at {POSITIONS} positions" in TEXT


def test_the_settings_that_it_shows_are_settings() -> None:
    (shown,) = blocks(TEXT, "yaml")
    recipe = Recipe.model_validate({"model": {"name_or_path": "a/b"}, **yaml.safe_load(shown)})
    assert recipe.reward.init == recipe.ppo.init == "my-adapter"
