"""docs/rollouts.md: its commands are commands, the server's line is the one that errors name, no setting is missing."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from docs_page import blocks, commands, parsed, text_of

from rlhf_kit import PPOConfig
from rlhf_kit.export.check.vllm import MAX_LORA_RANKS, VERSION
from rlhf_kit.recipe import Recipe
from rlhf_kit.recipe_rollout import RolloutSection
from rlhf_kit.rollout.client import KEY
from rlhf_kit.rollout.handshake import serve_line

TEXT = text_of("rollouts.md")
COMMANDS = commands(TEXT)


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("rlhf-kit")])
def test_every_command_of_the_kit_is_one(command: str) -> None:
    """What they do is in tests/slow/test_vllm_commands.py and test_vllm_real.py."""
    arguments = parsed(command)
    assert arguments.command in ("run", "sample", "evaluate", "export", "score")
    if arguments.command in ("sample", "evaluate"):
        assert arguments.vllm == RolloutSection().base_url


def test_the_server_is_started_as_errors_say() -> None:
    first, *others = (line for line in COMMANDS if "vllm serve" in line)
    model = re.search(r"vllm serve (\S+)", first)
    assert model is not None and first == serve_line(model[1], 16)
    assert Recipe.model_validate({"model": {"name_or_path": model[1]}}).lora.r <= 16
    exported = parsed(next(line for line in COMMANDS if line.startswith("rlhf-kit export")))
    (served,) = map(shlex.split, others)
    assert served[2] == str(exported.out) and exported.dtype == "float32" and exported.merged
    scored = parsed(next(line for line in COMMANDS if line.startswith("rlhf-kit score")))
    assert (scored.reward, scored.vllm) == (served[2], f"http://127.0.0.1:{served[-1]}")


def test_the_recipe_and_the_override_choose_the_server() -> None:
    (settings,) = (yaml.safe_load(block) for block in blocks(TEXT, "yaml"))
    recipe = Recipe.model_validate({"model": {"name_or_path": "a/b"}, **settings})
    assert recipe.ppo.rollout == RolloutSection(engine="vllm")
    (run,) = (parsed(line) for line in COMMANDS if line.startswith("rlhf-kit run"))
    assert run.overrides == ["ppo.rollout.engine=vllm"]
    assert '`PPOConfig(rollout={"engine": "vllm"})`' in TEXT
    assert PPOConfig(output_dir="x", rollout={"engine": "vllm"}, use_cpu=True).engine == recipe.ppo.rollout


def test_every_setting_is_told() -> None:
    (told,) = re.findall(r"^All settings of `ppo.rollout` \((.+?)\) are in", TEXT, re.MULTILINE)
    assert re.findall(r"`(\w+)`", told) == [*RolloutSection.model_fields]


def test_the_names_that_it_tells_are_right() -> None:
    assert f"tested with vLLM {VERSION}" in TEXT and f"`{KEY}`" in TEXT
    *ranks, last = map(str, MAX_LORA_RANKS[1:])
    assert f"`--max-lora-rank` takes {', '.join(ranks)} or {last};" in TEXT
