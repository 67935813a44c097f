"""The `ppo.rollout` section: in a recipe, in overrides, in `PPOConfig` and on a command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ppo_trainers import config
from transformers import HfArgumentParser

from rlhf_kit import DataError, PPOConfig, RecipeError, load_recipe
from rlhf_kit.recipe_rollout import RolloutSection

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert len(RECIPES) > 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_takes_another_engine_by_an_override(path: Path) -> None:
    assert load_recipe(path).ppo.rollout == RolloutSection()
    changed = load_recipe(path, ["ppo.rollout.engine=vllm", "ppo.rollout.base_url=https://there:8443/below"])
    assert changed.ppo.rollout == RolloutSection(engine="vllm", base_url="https://there:8443/below")


WRONG = [
    ({"engine": "tgi"}, "engine: must be 'hf' or 'vllm', not \"tgi\""),
    ({"adapter_dir": "x"}, "adapter_dir: unknown key; did you mean 'adapters_dir'?"),
    ({"adapters_dir": " "}, "adapters_dir: empty; a text is needed"),
    ({"timeout": 0}, "timeout: must be greater than 0, not 0"),
    ({"importance_cap": 0.5}, "importance_cap: must be at least 1, not 0.5"),
    ({"max_mismatch": 0}, "max_mismatch: must be greater than 0, not 0"),
    ({"base_url": "there:8000"}, "base_url: must look like http://HOST:PORT"),
    ({"base_url": "http://:8000"}, "base_url: must look like http://HOST:PORT"),
    ({"base_url": "http://there:port"}, "base_url: must look like http://HOST:PORT"),
    ({"base_url": "http://the re"}, "base_url: must look like http://HOST:PORT"),
    (
        {"base_url": "http://me:secret@there"},
        "base_url: must be http://HOST:PORT alone; a key goes into the environment",
    ),
    ({"base_url": "http://there:8000/v1/"}, "base_url: must end before /v1, which is added"),
]


@pytest.mark.parametrize(("rollout", "reason"), WRONG)
def test_what_is_wrong_is_said_of_a_recipe_and_of_a_config(
    rollout: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model:\n  name_or_path: x\nppo:\n  rollout: {json.dumps(rollout)}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe)
    assert str(caught.value).startswith(f"{recipe}:4: ppo.rollout.{reason}")
    with pytest.raises(DataError) as found:
        config(tmp_path, rollout=rollout)
    assert str(found.value).startswith(f"PPOConfig: rollout.{reason}")
    assert "secret" not in str(found.value) + str(caught.value)


def test_a_config_has_the_whole_of_it_as_plain_data(tmp_path: Path) -> None:
    made = config(tmp_path, rollout={"engine": "vllm", "timeout": 5})
    assert made.rollout == RolloutSection(engine="vllm", timeout=5).model_dump()
    assert made.engine == RolloutSection(engine="vllm", timeout=5)
    assert json.loads(made.to_json_string())["rollout"] == made.rollout
    assert config(tmp_path, rollout=made.rollout).engine == made.engine
    assert config(tmp_path).engine == RolloutSection()


def test_a_command_line_has_it_as_json(tmp_path: Path) -> None:
    line = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--rollout", '{"engine": "vllm", "max_mismatch": 0.5}']
    (found,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(line)
    assert found.engine == RolloutSection(engine="vllm", max_mismatch=0.5)


@pytest.mark.parametrize("text", ["{engine: vllm}", "[1]", "null"])
def test_a_text_that_is_no_mapping(text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^PPOConfig: rollout: "):
        config(tmp_path, rollout=text)
