"""docs/: its tables say what the code says. `python tests/test_docs.py` writes the table of settings anew."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlhf_kit.health import LIMITS
from rlhf_kit.recipe_ppo import PpoSection
from rlhf_kit.recipe_round import RoundSection

DOCS = Path(__file__).parents[1] / "docs"
PPO, TRL, ROUNDS = DOCS / "ppo.md", DOCS / "migrating_from_trl.md", DOCS / "rounds.md"
SECTIONS: dict[Path, type[BaseModel]] = {PPO: PpoSection, ROUNDS: RoundSection}
BEGIN, END = "<!-- settings: written by `python tests/test_docs.py` -->\n", "<!-- end of settings -->\n"

# The keywords of TRL 1.12.0's PPOConfig beside those of TrainingArguments, and of its PPOTrainer.
CONFIG = [
    "dataset_num_proc",
    "num_mini_batches",
    "total_episodes",
    "local_rollout_forward_batch_size",
    "num_sample_generations",
    "response_length",
    "stop_token",
    "stop_token_id",
    "temperature",
    "missing_eos_penalty",
    "sft_model_path",
    "world_size",
    "num_total_batches",
    "micro_batch_size",
    "local_batch_size",
    "batch_size",
    "local_mini_batch_size",
    "mini_batch_size",
    "push_to_hub",
    "reward_model_path",
    "model_adapter_name",
    "ref_adapter_name",
    "num_ppo_epochs",
    "whiten_rewards",
    "kl_coef",
    "kl_estimator",
    "cliprange",
    "vf_coef",
    "cliprange_value",
    "gamma",
    "lam",
    "ds3_gather_for_generation",
]
TRAINER = [
    "args",
    "processing_class",
    "model",
    "ref_model",
    "reward_model",
    "train_dataset",
    "value_model",
    "data_collator",
    "eval_dataset",
    "optimizers",
    "callbacks",
    "peft_config",
]


def choices(annotation: Any) -> list[Any]:
    """The values of a Literal, alone or in a union."""
    if typing.get_origin(annotation) is Literal:
        return list(typing.get_args(annotation))
    return [value for part in typing.get_args(annotation) for value in choices(part)]


def rows(section: type[BaseModel], before: str = "") -> Iterator[str]:
    """A line a setting; a section inside is its settings, by their dotted names."""
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from rows(info.annotation, f"{before}{name}.")
        else:
            yield row(f"{before}{name}", info)


def row(name: str, info: FieldInfo) -> str:
    default = info.get_default(call_default_factory=True)
    others = [value for value in choices(info.annotation) if value != default]
    told = ", ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in [default, *others])
    return f"| `{name}` | {told} | {info.description} |\n"


def settings_table(section: type[BaseModel]) -> str:
    return f"| setting | default | meaning |\n|---|---|---|\n{''.join(rows(section))}"


def cells(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading."""
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def names(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


@pytest.mark.parametrize("page", SECTIONS, ids=lambda page: page.stem)
def test_the_table_of_settings_is_that_of_the_section(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0] == settings_table(SECTIONS[page])


def test_every_figure_of_the_log_is_explained(tmp_path: Path) -> None:
    """On a run with held-out prompts, text beside it and a server that samples, so that all figures are there."""
    from backbones import tiny_directory
    from ppo_trainers import ROWS, config, tiny_roles
    from vllm_double import VllmDouble

    from rlhf_kit import PPOTrainer

    with VllmDouble(tiny_directory()) as server:
        rollout = {"engine": "vllm", "base_url": server.url}
        made = PPOTrainer(
            model=tiny_roles(),
            reward_funcs="reward",
            args=config(tmp_path, eval_steps=1, ptx_coef=0.1, rollout=rollout),
            train_dataset=ROWS,
            eval_dataset=ROWS[:2],
            ptx_dataset=[{"text": "The cat sat on the mat."}],
        )
        made.train()
    lines = cells(PPO.read_text(encoding="utf-8"), "What is logged")
    told = names(" ".join(line[0] for line in lines))
    of_transformers = {"loss", "grad_norm", "learning_rate", "epoch", "step", "train_runtime", "total_flos"}
    of_transformers |= {"train_samples_per_second", "train_steps_per_second", "train_loss"}
    logged = {name for entry in made.state.log_history for name in entry} - of_transformers
    assert {"kl", "ptx_loss", "eval_win_rate", "rewards/reward"} <= logged
    assert {name for name in logged if not name.startswith(("eval_", "rewards/"))} <= told
    assert told - logged <= {"eval_", "NAME"}
    (of_evaluation,) = (names(line[1]) for line in lines if "eval_" in line[0])
    evaluated = {name.removeprefix("eval_") for name in logged if name.startswith("eval_") and "/" not in name}
    assert evaluated - {"runtime"} == of_evaluation


def test_the_limits_that_it_shows_are_limits() -> None:
    shown = yaml.safe_load(re.search(r"`stop_on: (\{.*?\})`", PPO.read_text(encoding="utf-8")).group(1))  # type: ignore[union-attr]
    assert shown.keys() <= LIMITS.keys()


def test_every_keyword_of_trl_is_told_and_taken() -> None:
    from rlhf_kit import PPOConfig, PPOTrainer

    text = TRL.read_text(encoding="utf-8")
    told = names(" ".join(line[0] for line in cells(text, "Keywords of `PPOConfig`")))
    assert set(CONFIG) <= told
    taken = {setting.name for setting in dataclasses.fields(PPOConfig)}
    assert told - taken == {"world_size"}
    told = names(" ".join(line[0] for line in cells(text, "Keywords of `PPOTrainer`")))
    assert told == set(TRAINER)
    assert told <= set(inspect.signature(PPOTrainer).parameters)


def test_the_defaults_that_it_shows_are_the_defaults() -> None:
    from rlhf_kit import PPOConfig

    fields = {setting.name: setting for setting in dataclasses.fields(PPOConfig)}
    lines = cells(TRL.read_text(encoding="utf-8"), "Defaults that differ")
    assert len(lines) > 15
    for setting, theirs, ours in lines:
        default = fields[setting.strip("`")].default
        assert str(default).lower() == ours.replace("null", "none"), setting
        assert theirs != ours, setting


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("http") or (path.parent / target).exists(), target


if __name__ == "__main__":
    for page, section in SECTIONS.items():
        before, rest = page.read_text(encoding="utf-8").split(BEGIN)
        page.write_text(before + BEGIN + settings_table(section) + END + rest.split(END)[1], encoding="utf-8")
