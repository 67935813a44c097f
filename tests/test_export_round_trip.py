"""An export is the start of a new run, by its path alone: the old run is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_recipe import write_recipe
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_kit import rewards
from rlhf_kit.errors import CheckpointError
from rlhf_kit.export.exporting import Wish, export
from rlhf_kit.models import Backbone
from rlhf_kit.models.lora_linear import as_peft
from rlhf_kit.pipeline import run
from rlhf_kit.ppo.roles import POLICY, REFERENCE
from rlhf_kit.recipe import Recipe, load_recipe
from rlhf_kit.stages.ppo import origin_of, prepare
from rlhf_kit.stages.reward_start import start

IDS = torch.arange(5, 30)[None]
SHORT: dict[str, dict[str, Any]] = {
    "sft": {"num_train_epochs": 1},
    "reward": {"num_train_epochs": 1},
    "ppo": {"total_episodes": 64, "critic_warmup_steps": 0},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of a run that is not there any more."""
    folder = tmp_path_factory.mktemp("round")
    old = run(load_recipe(write_recipe(folder / "old", **SHORT)))
    export(old, Wish(), out=folder / "policy")
    export(old, Wish("reward"), out=folder / "reward")
    scores_before(old, folder)
    shutil.rmtree(old)
    return folder


def scores_before(old: Path, folder: Path) -> None:
    recipe = Recipe.model_validate(json.loads((old / "reward" / "manifest.json").read_text())["recipe"])
    backbone = start(recipe.model_copy(update={"reward": recipe.reward.model_copy(update={"init": "base"})}), None)
    rewards.load(backbone, old / "reward", "old")
    said = rewards.score(backbone, [[5, 6, 7]] * 3, [[8, 9], [10, 11], [12]], name="old")
    torch.save(said, folder / "scores.pt")


def new_recipe(place: Path, name: str, **sections: dict[str, Any]) -> Recipe:
    changes = {section: SHORT.get(section, {}) | sections.get(section, {}) for section in {*SHORT, *sections}}
    changes["data"] = {"demonstrations": None} | sections.get("data", {})
    return load_recipe(write_recipe(place / name, **changes))


def logits(backbone: Backbone, role: str) -> torch.Tensor:
    with torch.no_grad(), backbone.role(role), as_peft():
        found: torch.Tensor = backbone.base(input_ids=IDS).logits
    return found


def of_peft(adapter: Path, base: str) -> torch.Tensor:
    with torch.no_grad():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def test_policy_and_reference_start_as_the_export(place: Path) -> None:
    recipe = new_recipe(place, "start", ppo={"init": "../policy"})
    backbone = prepare(recipe, origin_of(recipe, None), None)
    expected = of_peft(place / "policy", recipe.model.name_or_path)
    for role in (POLICY, REFERENCE):
        assert torch.equal(logits(backbone, role), expected)
    with torch.no_grad(), backbone.role(None):
        assert (backbone.base(input_ids=IDS).logits - expected).abs().max() > 0.01


def test_a_whole_new_run_starts_from_the_exports(place: Path) -> None:
    recipe = new_recipe(place, "new", ppo={"init": "../policy"}, reward={"init": "../policy"})
    out = run(recipe)
    assert not (out / "sft").exists()
    manifest = json.loads((out / "ppo" / "manifest.json").read_text())
    assert set(manifest["parents"]) == {"reward"}
    first = json.loads((out / "ppo" / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["kl"]) < 1e-4, "the reference is what the policy starts from"
    assert json.loads((out / "export" / "manifest.json").read_text())["metrics"]["max_difference"] < 1e-5


def test_base_starts_from_no_adapter(place: Path) -> None:
    recipe = new_recipe(place, "base", ppo={"init": "base"})
    assert origin_of(recipe, place / "policy") is None
    assert REFERENCE not in prepare(recipe, None, None).adapters


def test_reward_model_starts_as_the_exported_policy(place: Path) -> None:
    recipe = new_recipe(place, "from-policy", reward={"init": "../policy"})
    expected = of_peft(place / "policy", recipe.model.name_or_path)
    assert torch.equal(logits(start(recipe, None), "reward"), expected)


def test_reward_model_goes_on_from_an_exported_reward_model(place: Path) -> None:
    """The scores of a classification model, as transformers reads it, and of the stage that it came from."""
    recipe = new_recipe(place, "from-reward", reward={"init": "../reward"})
    backbone = start(recipe, None)
    found = rewards.score(backbone, [[5, 6, 7]] * 3, [[8, 9], [10, 11], [12]])
    assert found.std() > 1e-3
    assert torch.allclose(found, torch.load(place / "scores.pt"), atol=1e-4)
    base = AutoModelForSequenceClassification.from_pretrained(recipe.model.name_or_path, num_labels=1, pad_token_id=0)
    plain = PeftModel.from_pretrained(base, str(place / "reward")).eval()
    offset = json.loads((place / "reward" / "rlhf_kit_reward.json").read_text())["score_offset"]
    with torch.no_grad():
        one = plain(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 0] + offset
    assert torch.allclose(found[0], one, atol=1e-4)


@pytest.mark.parametrize("stage", ["ppo", "reward"])
def test_an_adapter_of_another_base_is_refused(place: Path, stage: str) -> None:
    recipe = new_recipe(place, f"other-{stage}", **{stage: {"init": "../policy"}, "model": {"base_id": "other/base"}})
    with pytest.raises(CheckpointError, match=rf"{stage}\.init: .*policy: was trained on tiny/tiny, not on other/base"):
        origin_of(recipe, None) if stage == "ppo" else start(recipe, None)


def test_a_path_without_an_adapter_is_refused(place: Path) -> None:
    recipe = new_recipe(place, "nowhere", ppo={"init": "../nowhere"})
    with pytest.raises(CheckpointError, match=r"ppo\.init: .*nowhere: no adapter_model\.safetensors in it"):
        origin_of(recipe, None)
