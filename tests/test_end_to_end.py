"""Everything once on a tiny model, and what must hold of the directory that it leaves."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_recipe import write_recipe
from transformers import AutoModelForCausalLM

from rlhf_kit import ExportError, Recipe, load_recipe, run, run_step
from rlhf_kit.checkpoint import write_json
from rlhf_kit.errors import CheckpointError
from rlhf_kit.evaluation import answering
from rlhf_kit.files import sha256_of

STEPS = ("sft", "reward", "ppo", "export", "evaluation")
MADE_BY = {
    "sft": ["adapter_config.json", "adapter_model.safetensors", "manifest.json", "metrics.jsonl"],
    "reward": [
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
        "manifest.json",
        "metrics.jsonl",
        "training_data.json",
    ],
    "ppo": [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "metrics.jsonl",
        "probe.safetensors",
        "value",
        "value/adapter_config.json",
        "value/adapter_model.safetensors",
        "value/head.safetensors",
    ],
    "export": [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "manifest.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
    "evaluation": ["evaluation.json", "manifest.json"],
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe that has been run from its first step to its last."""
    recipe = load_recipe(write_recipe(tmp_path_factory.mktemp("tiny")))
    run(recipe)
    return recipe


@pytest.fixture(scope="module")
def out(recipe: Recipe) -> Path:
    return Path(recipe.output_dir)


@pytest.fixture
def copied(recipe: Recipe, tmp_path: Path) -> Recipe:
    """The same recipe with a copy of its run directory, to be spoilt."""
    shutil.copytree(recipe.output_dir, tmp_path / "run")
    return recipe.model_copy(update={"output_dir": str(tmp_path / "run")})


def changed(recipe: Recipe, section: str, **settings: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=settings)})


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def times(directory: Path) -> dict[str, int]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.stat().st_mtime_ns for path in files}


# -------------------------------------------------------------------- does it learn?


def test_the_reference_is_the_sft_adapter_and_not_the_base(out: Path) -> None:
    """Before the first step the policy is a copy of the SFT adapter: at no distance from it, at some from the base."""
    first = json.loads((out / "ppo" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1 and first["kl"] == 0.0
    assert any(tensor.abs().max() > 1e-3 for tensor in load_file(out / "sft" / "adapter_model.safetensors").values())


def test_sft_loss_falls(out: Path) -> None:
    losses = [entry["loss"] for entry in lines(out / "sft" / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 1
    assert read(out / "metrics.json")["sft"]["loss_last"] == losses[-1]


def test_the_last_checkpoints_of_sft_stay_where_the_recipe_says_so(recipe: Recipe, tmp_path: Path) -> None:
    kept = changed(recipe, "sft", keep_checkpoints=2, save_steps=12).model_copy(update={"output_dir": str(tmp_path)})
    run_step(kept, "sft")
    found = sorted(path for path in (tmp_path / "sft" / "checkpoints").rglob("*") if path.is_file())
    assert {path.name for path in found} == {"adapter_config.json", "adapter_model.safetensors"}
    weights = [load_file(path) for path in found if path.suffix == ".safetensors"]
    assert len(weights) == 2 and {path.relative_to(tmp_path).parts[2] for path in found} == {
        "checkpoint-36",
        "checkpoint-48",
    }
    last = load_file(tmp_path / "sft" / "adapter_model.safetensors")
    assert all(torch.equal(value, weights[1][name]) for name, value in last.items())
    assert any(not torch.equal(value, weights[0][name]) for name, value in last.items())


def test_reward_model_beats_chance_and_length_on_held_out_prompts(out: Path) -> None:
    reward = read(out / "metrics.json")["reward"]
    assert reward["heldout_prompts"] >= 8
    assert reward["heldout_pair_accuracy"] > max(0.8, *reward["baseline_accuracy"].values())


def test_ppo_raises_what_can_be_counted(out: Path) -> None:
    """The rubric counts cats: it saw no weights, and the reward model never saw it."""
    summary = read(out / "evaluation" / "evaluation.json")["summary"]
    assert summary["ppo"]["rubric"] > summary["sft"]["rubric"] + 0.3, summary
    ppo = read(out / "metrics.json")["ppo"]
    assert ppo["win_rate_vs_sft"] > 0.55 and ppo["win_rate_vs_sft_interval"]["low"] > 0.5
    assert ppo["heldout_reward_gain"] > 0.3 and ppo["heldout_reward_gain_interval"]["low"] > 0
    assert 0 < ppo["kl"] < 15
    scores = [entry["score"] for entry in lines(out / "ppo" / "metrics.jsonl")]
    assert sum(scores[-2:]) > sum(scores[:2])


# -------------------------------------------------------------------- what is there?


def test_run_directory_holds_every_file_and_no_scratch(out: Path) -> None:
    assert sorted(path.name for path in out.iterdir()) == sorted([*STEPS, "metrics.json", "report.html", "report.json"])
    for step, names in MADE_BY.items():
        assert sorted(str(path.relative_to(out / step)) for path in (out / step).rglob("*")) == names


@pytest.mark.parametrize("step", STEPS)
def test_manifest_says_what_the_result_stands_on(recipe: Recipe, out: Path, step: str) -> None:
    manifest = read(out / step / "manifest.json")
    assert manifest["stage"] == step
    assert {"model", "lora", "settings", "data", "parents", "seed", "max_prompt_length"} <= manifest["inputs"].keys()
    assert manifest["base"]["id"] == "tiny/tiny" and manifest["base"]["dtype"] == "float32"
    assert {"torch", "transformers", "trl", "peft", "python"} <= manifest["versions"].keys()
    assert Recipe.model_validate(manifest["recipe"]) == recipe, "the resolved recipe can be run again"
    assert manifest["files"] == {
        name: sha256_of(str(out / step / name)) for name in MADE_BY[step] if name.endswith(".safetensors")
    }
    for parent, place in manifest["parents"].items():
        assert manifest["inputs"]["parents"][parent] == read(out / step / place / "manifest.json")["files"]


def test_manifest_holds_the_hash_of_each_data_file(recipe: Recipe, out: Path) -> None:
    hashes = read(out / "sft" / "manifest.json")["inputs"]["data"]
    assert hashes == {"demonstrations": sha256_of(str(recipe.data.demonstrations))}


@pytest.mark.parametrize("place", ["sft", "reward", "ppo", "ppo/value", "export"])
def test_adapter_loads_in_plain_peft_and_changes_the_base(recipe: Recipe, out: Path, place: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path).eval()
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
        model = PeftModel.from_pretrained(base, str(out / place))
        after = model(input_ids=ids).logits
    assert (after - before).abs().mean() > 0.01
    assert model.peft_config["default"].base_model_name_or_path == "tiny/tiny"
    assert not any("default" in name for name in load_file(out / place / "adapter_model.safetensors"))


def test_reward_head_has_its_normalisation(out: Path) -> None:
    head = load_file(out / "reward" / "head.safetensors")
    assert set(head) == {"linear.weight", "linear.bias", "weights", "spread", "mean", "std"}
    assert head["spread"] > 0 and head["spread"] != 1 and head["mean"] != 0
    assert not torch.equal(head["linear.weight"], load_file(out / "ppo/value/head.safetensors")["linear.weight"])


def test_metrics_are_nested_and_finite(out: Path) -> None:
    metrics = read(out / "metrics.json")
    assert {"loss_first", "loss_last", "demonstrations", "processes", "win_rate_vs_base"} <= metrics["sft"].keys()
    assert {"heldout_pair_accuracy", "baseline_accuracy", "score_mean", "rubric_agreement"} <= metrics["reward"].keys()
    wanted = {"heldout_reward_gain", "win_rate_vs_sft", "kl", "explained_variance", "eos_rate", "updates", "episodes"}
    assert wanted <= metrics["ppo"].keys()
    assert {"positions", "max_difference", "base_mean_kl"} <= metrics["export"].keys()
    assert set(metrics["seconds"]) == set(STEPS)
    assert "NaN" not in (out / "metrics.json").read_text() and "Infinity" not in (out / "metrics.json").read_text()


def test_page_is_there_and_needs_no_network(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<html" in page and page.rstrip().endswith("</html>")
    assert 'src="http' not in page and 'href="http' not in page.replace('href="https://arxiv', "")


def test_evaluation_keeps_every_answer(recipe: Recipe, out: Path) -> None:
    page = read(out / "evaluation" / "evaluation.json")
    assert page["policies"] == ["base", "sft", "ppo"]
    assert len(page["prompts"]) == 16
    for row in page["prompts"]:
        assert {name: len(answers) for name, answers in row["answers"].items()} == dict.fromkeys(page["policies"], 4)
        for answers in row["answers"].values():
            assert all(isinstance(a["score"], float) and a["rubric"] == a["text"].count("cat") for a in answers)


# -------------------------------------------------------------------- a second run


def test_second_run_skips_every_step(recipe: Recipe, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = times(out)
    started = time.process_time()
    with caplog.at_level(logging.INFO, "rlhf_kit"):
        run(recipe)
    assert time.process_time() - started < 15  # about a second
    said = [record.message for record in caplog.records if record.name == "rlhf_kit.pipeline"]
    assert said[:-1] == [f"{step}: finished with the same inputs, skipped" for step in STEPS]
    after = times(out)
    assert {name for name in before if before[name] != after[name]} <= {"metrics.json", "report.html", "report.json"}
    assert before.keys() == after.keys()


def test_changed_setting_runs_again_from_its_step_on(copied: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    out = Path(copied.output_dir)
    before = times(out)
    with caplog.at_level(logging.INFO, "rlhf_kit"):
        run(changed(copied, "ppo", total_episodes=32))
    said = [record.message for record in caplog.records]
    assert "ppo: must run again: settings.ppo.total_episodes: 640 -> 32" in said
    assert [line for line in said if line.endswith("skipped")] == [
        f"{step}: finished with the same inputs, skipped" for step in ("sft", "reward")
    ]
    assert any(line.startswith("export: must run again: parents.ppo.") for line in said)
    after = times(out)
    kept = {name: time for name, time in before.items() if name.split("/")[0] in ("sft", "reward")}
    assert kept.items() <= after.items()
    for step in ("ppo", "export", "evaluation"):
        old = {name.replace(step, f"{step}.previous-1", 1): t for name, t in before.items() if name.startswith(step)}
        assert old.items() <= after.items(), "the older result is kept as it was"
    assert read(out / "metrics.json")["ppo"]["episodes"] == 32


def test_damaged_result_is_not_trusted(copied: Recipe) -> None:
    weights = Path(copied.output_dir) / "sft" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match=r"sft/adapter_model\.safetensors: missing or changed since"):
        run(copied)


def test_interrupted_evaluation_keeps_what_was_answered(copied: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation that stops at its last policy asks only that policy when it is started again."""
    whole, drawn = answering._answered, []

    def stops_at_ppo(crew: Any, policy: Any, *rest: Any) -> Any:
        if not rest[3].is_file():
            drawn.append(policy.name)
        if policy.name == "ppo" and "ppo" not in drawn[:-1]:
            raise KeyboardInterrupt
        return whole(crew, policy, *rest)

    monkeypatch.setattr(answering, "_answered", stops_at_ppo)
    out = Path(copied.output_dir)
    shutil.move(out / "evaluation", out.parent / "first")
    with pytest.raises(KeyboardInterrupt):
        run_step(copied, "evaluation")
    assert not (out / "evaluation").exists()
    run_step(copied, "evaluation")
    assert list(dict.fromkeys(drawn)) == ["base", "sft", "ppo"]
    assert drawn.count("base") == drawn.count("sft") == drawn.count("ppo") - 1, "nothing was drawn twice"
    assert read(out / "evaluation" / "evaluation.json") == read(out.parent / "first" / "evaluation.json")


# -------------------------------------------------------------------- the export


def test_export_equals_the_trained_model_and_differs_from_the_base(out: Path) -> None:
    figures = read(out / "metrics.json")["export"]
    assert figures["positions"] >= 256
    assert figures["max_difference"] <= 1e-5
    assert figures["base_mean_difference"] > 0.01 and figures["base_mean_kl"] > 1e-4


def zero_b(policy: Path) -> None:
    weights = load_file(policy / "adapter_model.safetensors")
    weights = {name: torch.zeros_like(w) if "lora_B" in name else w for name, w in weights.items()}
    save_file(weights, policy / "adapter_model.safetensors", {"format": "pt"})
    rehash(policy)


def slightly_other_weights(policy: Path) -> None:
    weights = load_file(policy / "adapter_model.safetensors")
    save_file({name: 1.05 * w for name, w in weights.items()}, policy / "adapter_model.safetensors", {"format": "pt"})
    rehash(policy)


def other_alpha(policy: Path) -> None:
    config = read(policy / "adapter_config.json")
    write_json(policy / "adapter_config.json", config | {"lora_alpha": 2 * config["lora_alpha"]})


def no_target(policy: Path) -> None:
    weights = load_file(policy / "adapter_model.safetensors")
    kept = {name: w for name, w in weights.items() if "layers.1." not in name}
    save_file(kept, policy / "adapter_model.safetensors", {"format": "pt"})
    rehash(policy)


def rehash(policy: Path) -> None:
    """As if the stage itself had saved it so."""
    manifest = read(policy / "manifest.json")
    manifest["files"]["adapter_model.safetensors"] = sha256_of(str(policy / "adapter_model.safetensors"))
    write_json(policy / "manifest.json", manifest)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (zero_b, "is not the model that was trained"),
        (other_alpha, "is not the model that was trained"),
        (slightly_other_weights, "is not the model that was trained"),
        (no_target, "missing weight: .*layers.1"),
    ],
)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_wrongly_saved_adapter_is_not_exported(copied: Recipe, spoil: Any, reason: str) -> None:
    out = Path(copied.output_dir)
    shutil.rmtree(out / "export")
    spoil(out / "ppo")
    with pytest.raises((ExportError, CheckpointError), match=reason):
        run_step(copied, "export")
    assert not (out / "export").exists()
    assert [path.name for path in (out / ".export.partial").iterdir()] == ["inputs.json"]
