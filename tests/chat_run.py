"""A small run to talk to: a tiny base, an adapter that changes nothing, and one that changes much."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import make_tiny_model

from rlhf_kit.chat import Cast, Manner, Speaker, Start, chat
from rlhf_kit.checkpoint import Manifest, finish
from rlhf_kit.models import Backbone, load_backbone, lora_config
from rlhf_kit.recipe import Recipe


@pytest.fixture(scope="module")
def talk_recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    model = make_tiny_model(tmp_path_factory.mktemp("model"))
    return Recipe.model_validate({"model": {"name_or_path": str(model), "base_id": "tiny/base", "dtype": "float32"}})


@pytest.fixture(scope="module")
def talk_run(talk_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sft` is an untrained adapter, which changes nothing; `ppo` has weights that change nearly every token."""
    out = tmp_path_factory.mktemp("run")
    backbone = load_backbone(talk_recipe.model)
    backbone.add_adapter("sft", lora_config(talk_recipe.lora))
    backbone.add_adapter("ppo", lora_config(talk_recipe.lora))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in backbone.adapter_parameters("ppo"):
            parameter.normal_(std=0.5)
    for name in ("sft", "ppo"):
        work = out / f".{name}.partial"
        backbone.save_adapter(name, work)
        finish(work, out / name, Manifest(name, {}, {}, 0.0, {}, {}, talk_recipe.model_dump(mode="json")))
    return out


@pytest.fixture(scope="module")
def backbone(talk_recipe: Recipe, talk_run: Path) -> Backbone:
    backbone = load_backbone(talk_recipe.model)
    for name in ("sft", "ppo"):
        backbone.load_adapter(name, talk_run / name)
    return backbone


GREEDY = Manner(temperature=0.0, max_new_tokens=6)


def talk(
    run: Path,
    lines: Iterable[str],
    policies: Sequence[str] = (),
    manner: Manner = GREEDY,
    width: int = 80,
    terminal: bool = False,
    heard: list[str] | None = None,
    **options: Any,
) -> str:
    """What is seen of a talk; `heard` gets it also where the talk ends with an error."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, highlight=False)
    try:
        chat(Cast(run), lines, console, Start(tuple(policies), manner, **options))
    finally:
        (heard if heard is not None else []).append(file.getvalue())
    return file.getvalue()


def answers(output: str, names: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in names}
    current = ""
    for line in output.splitlines()[1:]:
        if line in names:
            current = line
            found[current].append("")
        elif current:
            found[current][-1] += line + "\n"
    return found


def speaker(backbone: Backbone, name: str = "ppo") -> Speaker:
    return Speaker(name, None if name == "base" else name, backbone)
