"""The quickstart's own model, as the recipe names it: it loads, and one step of each stage gives finite figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rlhf_kit import Backbone, ModelError, Recipe, load, load_backbone, load_recipe
from rlhf_kit.models import lora_config
from rlhf_kit.models.loading import resolve_dtype
from rlhf_kit.stages import ppo, reward, sft

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """The quickstart, cut to one step a stage. The weights stay in the kit's cache between runs."""
    return load_recipe(
        ROOT / "recipes" / "quickstart.yaml",
        [
            "sft.per_device_train_batch_size=2",
            "sft.trainer={max_steps: 1, logging_steps: 1}",
            "reward.per_device_train_batch_size=1",
            "reward.heldout_fraction=0",
            "reward.trainer={max_steps: 1}",
            "ppo.total_episodes=4",
            "ppo.batch_size=4",
            "ppo.mini_batch_size=4",
            "ppo.response_length=12",
            "ppo.warmup_steps=0",
            "export.positions=32",
        ],
    )


@pytest.fixture(scope="module")
def backbone(recipe: Recipe) -> Backbone:
    return load_backbone(recipe.model)


@pytest.fixture(scope="module")
def work(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One step of each stage, each from the one before."""
    directory = tmp_path_factory.mktemp("real")
    for stage in ("sft", "reward", "ppo"):
        (directory / stage).mkdir()
    data = recipe.data
    demonstrations = load(str(data.demonstrations), "demonstration")[:4]
    sft.train(recipe, demonstrations, directory / "sft")
    rankings = load(str(data.rankings), "ranking")[:2]
    reward.train(recipe, rankings, [], demonstrations, directory / "sft", directory / "reward")
    prompts = load(str(data.prompts), "prompt")[:4]
    ppo.train(recipe, ppo.PpoData(prompts), directory / "sft", directory / "reward", directory / "ppo")
    yield directory


def figures(run: Path) -> dict[str, float]:
    (entry,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {name: float(value) for name, value in entry.items()}


def test_it_is_the_model_that_the_recipe_names(backbone: Backbone, recipe: Recipe) -> None:
    assert backbone.base_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert sum(parameter.numel() for parameter in backbone.base.parameters()) == 134_515_008
    assert backbone.base.dtype == resolve_dtype("auto")
    assert backbone.base.config._attn_implementation == recipe.model.attn_implementation


def test_padding_is_not_the_end(backbone: Backbone) -> None:
    tokenizer = backbone.tokenizer
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )


def test_it_knows_something(backbone: Backbone) -> None:
    """The weights are those of a trained model: a wrong dequantisation gives noise."""
    ids = backbone.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = backbone.eval()(ids, torch.ones_like(ids, dtype=torch.bool))
    assert backbone.tokenizer.decode(backbone.next_token_logits(hidden[:, -1]).argmax(-1)) == " Paris"
    backbone.add_adapter("probe", lora_config(load_recipe(ROOT / "recipes" / "quickstart.yaml").lora))
    with backbone.role("probe"):
        backbone.check_log_probs()


def test_sft_step(work: Path) -> None:
    entry = figures(work / "sft")
    assert 0 < entry["loss"] < 6 and all(map(math.isfinite, entry.values()))


def test_ranking_step(work: Path) -> None:
    entry = figures(work / "reward")
    assert 0 < entry["loss"] < 5 and entry["grad_norm"] > 0 and all(map(math.isfinite, entry.values()))
    assert (work / "reward" / "head.safetensors").is_file()


def test_ppo_update(work: Path) -> None:
    entry = figures(work / "ppo")
    assert all(map(math.isfinite, entry.values()))
    assert abs(entry["kl"]) < 1e-3, "before the first step the policy is the reference"
    assert entry["clip_fraction"] < 0.05 and entry["grad_norm"] > 0 and entry["value_grad_norm"] > 0
    assert 1 <= entry["response_length"] <= 12


def test_wrong_hash_is_refused(recipe: Recipe) -> None:
    wrong = recipe.model.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ModelError, match="these are not the weights"):
        load_backbone(wrong)
