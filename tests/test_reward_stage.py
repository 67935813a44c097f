"""The reward stage with each of its options on a tiny model: what learns, from what, and what is said of it."""

from __future__ import annotations

import json
import logging
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_recipe import write_recipe

from rlhf_kit import files, load_recipe, run_step
from rlhf_kit.checkpoint import last_checkpoint
from rlhf_kit.data import Encoder
from rlhf_kit.errors import CheckpointError, DataError, RlhfKitError
from rlhf_kit.models import ScalarHead, load_backbone
from rlhf_kit.parsing import parse
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Ranking
from rlhf_kit.rewards import load, outputs, score
from rlhf_kit.seen import prompt_key
from rlhf_kit.stages import reward
from rlhf_kit.stages.reward_trainer import RewardTrainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe whose SFT stage has been run."""
    found = load_recipe(write_recipe(tmp_path_factory.mktemp("tiny"), sft={"num_train_epochs": 1}))
    run_step(found, "sft")
    return found


def changed(recipe: Recipe, **settings: Any) -> Recipe:
    """The recipe with other settings of the reward stage, validated as those of a file."""
    return Recipe.model_validate({**recipe.model_dump(), "reward": {**recipe.reward.model_dump(), **settings}})


def train(recipe: Recipe, work: Path, rankings: list[Ranking] | None = None, **more: Any) -> dict[str, Any]:
    work.mkdir(parents=True, exist_ok=True)
    found = files.load(str(recipe.data.rankings), "ranking") if rankings is None else rankings
    demonstrations = files.load(str(recipe.data.demonstrations), "demonstration")
    sft = Path(recipe.output_dir) / "sft"
    return reward.train(recipe, found, more.pop("heldout", []), demonstrations, sft, work, **more)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_packed_and_unpacked_training_are_the_same_training(recipe: Recipe, tmp_path: Path) -> None:
    packed = train(recipe, tmp_path / "packed")
    unpacked = train(changed(recipe, packing="off"), tmp_path / "unpacked")
    assert packed.pop("packed") and not unpacked.pop("packed")
    assert packed["loss_first"] == pytest.approx(unpacked["loss_first"], rel=1e-5)
    assert packed["loss_last"] == pytest.approx(unpacked["loss_last"], rel=1e-2)
    assert packed["heldout_pair_accuracy"] == pytest.approx(unpacked["heldout_pair_accuracy"], abs=0.02)


def test_head_alone_leaves_the_adapter_as_it_was(recipe: Recipe, tmp_path: Path) -> None:
    train(changed(recipe, train="head"), tmp_path)
    assert same(weights(tmp_path), weights(Path(recipe.output_dir) / "sft"))
    head = ScalarHead.load(tmp_path, 32)
    torch.manual_seed(recipe.seed)
    assert not torch.equal(head.linear.weight, ScalarHead(32).linear.weight)


def test_what_it_starts_from(recipe: Recipe, tmp_path: Path) -> None:
    """With a learning rate of almost nothing, the adapter that is saved is the one that it started from."""
    still = changed(recipe, learning_rate=1e-12, num_train_epochs=0.1)
    train(changed(still, init="sft"), tmp_path / "sft")
    train(changed(still, init="base"), tmp_path / "base")
    before = weights(Path(recipe.output_dir) / "sft")
    assert all(torch.allclose(value, before[name], atol=1e-6) for name, value in weights(tmp_path / "sft").items())
    assert all(value.abs().max() < 1e-6 for name, value in weights(tmp_path / "base").items() if "lora_B" in name)

    train(recipe, tmp_path / "trained")
    train(changed(still, init=str(tmp_path / "trained")), tmp_path / "again")
    trained, again = (ScalarHead.load(tmp_path / name, 32) for name in ("trained", "again"))
    torch.testing.assert_close(again.linear.weight, trained.linear.weight, atol=1e-6, rtol=0)
    with pytest.raises(CheckpointError, match=r"reward\.init: .*nowhere: no adapter_model"):
        train(changed(still, init=str(tmp_path / "nowhere")), tmp_path / "none")


def test_phases_come_first_and_are_not_repeated(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rankings = files.load(str(recipe.data.rankings), "ranking")
    phased = changed(recipe, phases=[{"rankings": "public.jsonl", "learning_rate": 1e-3, "num_train_epochs": 1}])
    steps = []
    original = RewardTrainer.training_step
    monkeypatch.setattr(
        RewardTrainer,
        "training_step",
        lambda self, *a, **k: (steps.append(self.args.learning_rate), original(self, *a, **k))[1],
    )
    found = train(phased, tmp_path, rankings[:40], phases=[rankings[40:]])
    assert steps[:2] == [1e-3, 1e-3] and set(steps[2:]) == {5e-3}
    assert found["phase_0"]["prompts"] == 8
    kept = {path.name for path in (tmp_path / "phases" / "0").iterdir()}
    assert {"adapter_model.safetensors", "head.safetensors", "metrics.jsonl", "done.json"} <= kept
    assert "checkpoints" not in kept

    steps.clear()  # killed after the phase: the work directory has no checkpoint of what comes then
    shutil.rmtree(tmp_path / "checkpoints")
    again = train(phased, tmp_path, rankings[:40], phases=[rankings[40:]])
    assert set(steps) == {5e-3}
    assert again["loss_last"] == found["loss_last"]


def test_what_is_to_a_held_out_prompt_is_learned_from_nowhere(recipe: Recipe, tmp_path: Path) -> None:
    """The split is drawn from data.rankings; the same prompts may stand in a phase and among the ratings."""
    rankings = files.load(str(recipe.data.rankings), "ranking")
    ratings = [
        parse({"prompt": r.prompt, "response": "cat cat cat", "score": n % 3, "scale": [0, 2]}, "rating", "here")
        for n, r in enumerate(rankings)
    ]
    phased = changed(recipe, phases=[{"rankings": "public.jsonl"}], num_train_epochs=0.2)
    found = train(phased, tmp_path, rankings, phases=[rankings], ratings=ratings)
    assert found["heldout_prompts"] == 10
    assert found["phase_0"]["prompts"] == found["ratings"] == 38
    assert len(json.loads((tmp_path / "training_data.json").read_text())["prompts"]) == 38


def test_axes_are_learned_each_by_its_own_output(recipe: Recipe, tmp_path: Path) -> None:
    """Cats make an answer helpful, dogs make it harmless; the ranks themselves say nothing."""
    rng = random.Random(0)
    rows = []
    for _ in range(64):
        words = [[rng.choice(("cat", "egg")), rng.choice(("dog", "sun"))] for _ in range(4)]
        answers = [
            {"text": " ".join(w), "rank": 1, "axes": {"helpful": 1 + (w[0] != "cat"), "harmless": 1 + (w[1] != "dog")}}
            for w in {tuple(w) for w in words}
        ]
        if len(answers) > 1:
            rows.append({"prompt": f"red blue {rng.random()}", "responses": answers})
    records = [parse(row, "ranking", "here") for row in rows]
    several = changed(recipe, axes={"helpful": 1.0, "harmless": 0.0}, num_train_epochs=4)
    train(several, tmp_path, records)
    head = ScalarHead.load(tmp_path, 32)
    assert head.axes == ("helpful", "harmless") and head.weights.tolist() == [1.0, 0.0]

    backbone = load_backbone(recipe.model)
    load(backbone, tmp_path)
    encoder = Encoder(backbone.tokenizer, max_prompt_length=100)
    prompts = [encoder.prompt("red blue")] * 4
    said = outputs(backbone, prompts, [encoder.response(t, 9) for t in ("cat dog", "cat sun", "egg dog", "egg sun")])
    helpful, harmless = said[:, 0], said[:, 1]
    assert helpful[:2].min() > helpful[2:].max()
    assert harmless[[0, 2]].min() > harmless[[1, 3]].max()


def test_ratings_alone_teach_it_too(recipe: Recipe, tmp_path: Path) -> None:
    """Rankings that are few and of another kind, ratings that count the cats: the score follows the ratings."""
    rng = random.Random(1)
    texts = [" ".join(rng.choices(("cat", "dog", "sun"), k=3)) for _ in range(96)]
    ratings = [
        parse({"prompt": "small good", "response": t, "score": t.count("cat"), "scale": [0, 3]}, "rating", "here")
        for t in texts
    ]
    few = files.load(str(recipe.data.rankings), "ranking")[:4]
    found = train(changed(recipe, num_train_epochs=8), tmp_path, few, ratings=ratings, heldout=few[:1])
    assert found["ratings"] == 96
    backbone = load_backbone(recipe.model)
    load(backbone, tmp_path)
    encoder = Encoder(backbone.tokenizer, max_prompt_length=100)
    said = [encoder.response(t, 9) for t in ("sun dog sun", "cat dog sun", "cat cat sun", "cat cat cat")]
    scores = score(backbone, [encoder.prompt("small good")] * 4, said)
    assert (scores.diff() > 0).all(), scores


def test_labeler_folds_train_models_that_never_saw_a_labeler(recipe: Recipe, tmp_path: Path) -> None:
    """One labeler ranks the other way round: held out, that labeler is predicted worse than chance."""
    rankings = files.load(str(recipe.data.rankings), "ranking")
    records = []
    for n, record in enumerate(rankings):
        answers = record.responses
        if n % 4 == 3:
            answers = tuple(r.model_copy(update={"rank": len(answers) + 1 - r.rank}) for r in answers)
        records.append(record.model_copy(update={"labeler": f"labeler {n % 4}", "responses": answers}))
    train(changed(recipe, learning_rate=2e-3), tmp_path / "plain", records)
    found = train(changed(recipe, learning_rate=2e-3, labeler_folds=4), tmp_path / "folds", records)
    folds = {fold["labelers"][0]: fold for fold in found["labeler_folds"]}
    assert sorted(folds) == [f"labeler {n}" for n in range(4)]
    if folds["labeler 3"]["heldout_labelers"]["pairs"]:
        assert folds["labeler 3"]["heldout_labelers"]["accuracy"] < 0.3
    honest = [f["heldout_labelers"]["accuracy"] for n, f in folds.items() if n != "labeler 3"]
    assert all(a > 0.6 for a in honest if a is not None)
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "folds"))  # the folds left no trace
    again = train(changed(recipe, learning_rate=2e-3, labeler_folds=4), tmp_path / "folds", records)
    assert again["labeler_folds"] == found["labeler_folds"]


def test_opinions_are_merged_before_training(recipe: Recipe, tmp_path: Path) -> None:
    rankings = files.load(str(recipe.data.rankings), "ranking")
    three = [record.model_copy(update={"labeler": name}) for record in rankings for name in "abc"]
    assert train(recipe, tmp_path / "keep", three)["prompts"] == 3 * 38
    assert train(changed(recipe, labelers="majority"), tmp_path / "majority", three)["prompts"] == 38
    assert train(changed(recipe, labelers="mean"), tmp_path / "mean", three)["prompts"] == 38


# -------------------------------------------------------------------- bad input


def test_nothing_but_ties_is_one_line(recipe: Recipe, tmp_path: Path) -> None:
    rankings = files.load(str(recipe.data.rankings), "ranking")
    tied = [
        r.model_copy(update={"responses": tuple(a.model_copy(update={"rank": 1}) for a in r.responses)})
        for r in rankings
    ]
    with pytest.raises(DataError, match="no pair to learn from: all responses of every prompt are tied") as failure:
        train(recipe, tmp_path / "drop", tied)
    assert len(str(failure.value).splitlines()) == 1
    assert train(changed(recipe, ties="half"), tmp_path / "half", tied)["loss_last"] >= math.log(2) - 1e-6
    with pytest.raises(DataError, match="have no rank on helpful"):
        train(changed(recipe, axes={"helpful": 1.0}), tmp_path / "axes", rankings)


def test_scores_that_become_nan_stop_the_run_with_the_batch_named(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rankings = files.load(str(recipe.data.rankings), "ranking")
    original = RewardTrainer._axis_loss

    def poisoned(self: RewardTrainer, scores: torch.Tensor, *rest: Any) -> torch.Tensor:
        return original(self, scores * (float("nan") if self.state.global_step == 3 else 1.0), *rest)

    monkeypatch.setattr(RewardTrainer, "_axis_loss", poisoned)
    with pytest.raises(RlhfKitError, match=r"reward: the loss of step 4 is nan, in the batch of '") as failure:
        train(changed(recipe, save_steps=2), tmp_path, rankings)
    named = str(failure.value).split("in the batch of ")[1]
    assert sum(f"'{r.prompt}'" in named for r in rankings) == recipe.reward.per_device_train_batch_size
    kept = last_checkpoint(tmp_path)
    assert kept is not None and kept.name == "checkpoint-2"


def test_a_prompt_longer_than_the_context_is_shortened_and_said(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rankings = files.load(str(recipe.data.rankings), "ranking")
    long = rankings[0].model_copy(update={"prompt": "red blue green " * 700})  # the tiny model takes 1,024 tokens
    roomy = changed(recipe, max_length=4096).model_copy(
        update={"data": recipe.data.model_copy(update={"max_prompt_length": 4000})}
    )
    with caplog.at_level(logging.WARNING, "rlhf_kit"):
        found = train(roomy, tmp_path, [long, *rankings[1:]], heldout=rankings[40:])
    assert found["shortened_prompts"] == 1 and found["cut_responses"] == 0
    assert any("lost their oldest turns" in message for message in caplog.messages)


def test_what_was_trained_on_is_kept_beside_the_weights(recipe: Recipe, tmp_path: Path) -> None:
    rankings = files.load(str(recipe.data.rankings), "ranking")
    train(recipe, tmp_path, [r.model_copy(update={"labeler": "anna"}) for r in rankings])
    kept = json.loads((tmp_path / "training_data.json").read_text())
    assert len(kept["prompts"]) == 38 and kept["labelers"] == ["anna"]
    assert set(kept["prompts"]) < {prompt_key(r.prompt) for r in rankings}
