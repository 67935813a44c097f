"""PPO's settings through a whole recipe: rewards without a reward stage, evaluation, pretraining text, value models."""

import json
import logging
import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import make_tiny_model
from tiny_recipe import write_recipe

from rlhf_kit import Recipe, load_recipe, run, run_step
from rlhf_kit.checkpoint import read_manifest
from rlhf_kit.cli import main
from rlhf_kit.reward_model import RewardModel

FEW = {"total_episodes": 96, "eval_steps": 2, "num_eval_prompts": 5}
QUICK = {
    "sft": {"num_train_epochs": 1},
    "reward": {"num_train_epochs": 1},
    "evaluate": {"samples_per_prompt": 1},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def entries(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "ppo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def without_stages(folder: Path, **ppo: object) -> Recipe:
    """PPO on the base itself, rewarded by the rubric."""
    data = {"demonstrations": None, "rankings": None, "text": "text.jsonl"}
    sections = {"data": data, "ppo": {**FEW, "reward_funcs": ["rubric.py:count_cats"], **ppo}}
    path = write_recipe(folder, **QUICK | sections)
    (folder / "text.jsonl").write_text('{"text": "red blue green"}\n{"text": "The cat sat on the mat."}\n')
    return load_recipe(path)


def test_a_function_needs_no_reward_stage_and_evaluation_and_text_come_along(tmp_path):
    recipe = without_stages(tmp_path, value="shared", ptx_coef=0.5, ptx_batch_size=2)
    out = run(recipe)
    assert not (out / "reward").exists() and not (out / "sft").exists()
    log = entries(out)
    training = [entry for entry in log if "score" in entry]
    evaluations = [entry for entry in log if "eval_score" in entry]
    assert [entry["step"] for entry in training] == [1, 2, 3]
    assert all(entry["rewards/count_cats"] == pytest.approx(entry["score"]) for entry in training)
    assert all(0 < entry["ptx_loss"] < 20 for entry in training)
    assert {2} <= {entry["step"] for entry in evaluations} and all(0 <= e["eval_win_rate"] <= 1 for e in evaluations)
    rows = [json.loads(line) for line in (out / "ppo" / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    heldout = [json.loads(line)["prompt"] for line in (tmp_path / "heldout.jsonl").read_text().splitlines()][:5]
    assert [row["prompt"] for row in rows[:5]] == heldout
    metrics = json.loads((out / "metrics.json").read_text())
    assert (
        metrics["ppo"]["updates"] == 3 and metrics["ppo"]["verdict"] and math.isfinite(metrics["ppo"]["train_ptx_loss"])
    )
    assert (out / "report.html").is_file()
    # What the step depends on: the function's file, the held-out prompts and the text, each by its bytes.
    inputs = read_manifest(out / "ppo").inputs
    assert {"prompts", "prompts_heldout", "text", "reward_funcs.0"} <= inputs["data"].keys()
    before = (out / "ppo" / "manifest.json").stat().st_mtime_ns
    run_step(recipe, "ppo")
    assert (out / "ppo" / "manifest.json").stat().st_mtime_ns == before
    (tmp_path / "rubric.py").write_text("def count_cats(completions):\n    return [0.0] * len(completions)\n")
    run_step(recipe, "ppo")
    assert (out / "ppo" / "manifest.json").stat().st_mtime_ns != before
    assert all(entry["score"] == 0.0 for entry in entries(out) if "score" in entry)


def test_a_reward_that_fails_is_exit_code_2_with_one_line_and_the_same_command_goes_on(tmp_path, capfd):
    without_stages(tmp_path, save_steps=1)
    (tmp_path / "rubric.py").write_text(
        "import pathlib\n\n"
        "def count_cats(completions, trainer_state):\n"
        f"    if pathlib.Path({str(tmp_path / 'down')!r}).exists() and trainer_state.global_step == 2:\n"
        "        raise OSError('the judge is down')\n"
        "    return [text.count('cat') for text in completions]\n"
    )
    (tmp_path / "down").touch()
    handlers = logging.getLogger().handlers[:]
    try:
        assert main(["ppo", str(tmp_path / "recipe.yaml")]) == 2
        said = [line for line in capfd.readouterr().err.splitlines() if "count_cats" in line and "failed" in line]
        assert len(said) == 1 and said[0].endswith("OSError: the judge is down") and "sample 1 of " in said[0]
        before = [json.loads(line) for line in (tmp_path / "run/.ppo.partial/metrics.jsonl").read_text().splitlines()]
        (tmp_path / "down").unlink()
        assert main(["ppo", str(tmp_path / "recipe.yaml")]) == 0
    finally:
        logging.getLogger().handlers[:] = handlers
    after = [entry for entry in entries(tmp_path / "run") if "score" in entry]
    assert [entry["step"] for entry in after] == [1, 2, 3]
    assert after[0] == before[0]  # wall-clock and all: it was not made again


def test_a_value_model_of_its_own_without_a_reward_stage(tmp_path):
    out = run_step(without_stages(tmp_path, value="model"), "ppo")
    assert (out / "value" / "adapter_model.safetensors").is_file() and (out / "value" / "head.safetensors").is_file()
    moved = load_file(out / "value" / "adapter_model.safetensors")
    assert any(float(w.abs().max()) > 0 for name, w in moved.items() if "lora_B" in name)


def another_base(folder: Path) -> dict[str, object]:
    """A reward model on a base that is not the policy's."""
    make_tiny_model(folder / "other", seed=5)
    return {"name_or_path": "other", "base_id": "tiny/other", "dtype": "float32"}


@pytest.fixture(scope="module")
def on_another_base(tmp_path_factory):
    """A recipe with a reward model on another base, run up to it."""
    folder = tmp_path_factory.mktemp("another")
    changes = QUICK | {"ppo": FEW | {"ptx_coef": 0.2, "ptx_data": "demonstrations", "ptx_batch_size": 2}}
    path = write_recipe(folder, **changes | {"reward": {"num_train_epochs": 1, "model": another_base(folder)}})
    recipe = load_recipe(path)
    for stage in ("sft", "reward"):
        run_step(recipe, stage)
    return recipe


@pytest.mark.parametrize("value", ["adapter", "shared", "model"])
def test_a_reward_model_on_another_base_with_each_value_model(on_another_base, tmp_path, value):
    shutil.copytree(on_another_base.output_dir, tmp_path / "run")
    ppo = on_another_base.ppo.model_copy(update={"value": value})
    recipe = on_another_base.model_copy(update={"output_dir": str(tmp_path / "run"), "ppo": ppo})
    out = run(recipe) if value == "model" else run_step(recipe, "ppo").parent
    log = entries(out)
    training = [entry for entry in log if "score" in entry]
    assert [entry["rewards/reward"] for entry in training] == pytest.approx([entry["score"] for entry in training])
    assert all(math.isfinite(entry["ptx_loss"]) for entry in training)
    assert any("eval_win_rate" in entry for entry in log)
    files = {path.name for path in (out / "ppo" / "value").iterdir()}
    assert "head.safetensors" in files and ("adapter_model.safetensors" in files) == (value != "shared")
    if value == "model":
        assert "ppo" in json.loads((out / "evaluation" / "manifest.json").read_text())["metrics"]


def test_the_score_of_a_reward_model_on_another_base_is_that_of_its_run(on_another_base, tmp_path):
    """The answers in samples.jsonl, scored again from the run directory."""
    shutil.copytree(on_another_base.output_dir, tmp_path / "run")
    settings = {"missing_eos_penalty": None, "total_episodes": 32, "eval_steps": 1, "response_length": 40}
    ppo = on_another_base.ppo.model_copy(update=settings)
    out = run_step(on_another_base.model_copy(update={"output_dir": str(tmp_path / "run"), "ppo": ppo}), "ppo")
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    answers, prompts = [row["reference"] for row in rows], [row["prompt"] for row in rows]
    judge = RewardModel.from_run(tmp_path / "run")
    ways = [judge.score(prompts, answers, ended=[ended] * len(rows)).tolist() for ended in (True, False)]
    for row, *either in zip(rows, *ways, strict=True):  # the file does not say which answers were cut off
        assert min(abs(row["reference_score"] - score) for score in either) < 1e-4
