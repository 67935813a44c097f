"""The scripts of recipes/: short, documented, and they run, alone and under `accelerate launch`."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_recipe import write_recipe

import rlhf_kit

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "recipes").glob("*.py"))
PATIENCE = 300


def start(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("scripts")
    write_recipe(directory)
    return directory


def test_all_five_are_there() -> None:
    assert [path.stem for path in SCRIPTS] == ["grpo_with_reward_model", "ppo", "reward", "sft", "three_stages"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_is_short_and_says_how_it_is_run(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    said = ast.get_docstring(ast.parse(text)) or ""
    assert (
        f"python recipes/{script.name}" in said and f"accelerate launch --num_processes 1 recipes/{script.name}" in said
    )
    assert "Expect" in said


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_uses_the_public_api_only(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("rlhf_kit.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rlhf_kit":
            assert node.module == "rlhf_kit"
            assert {alias.name for alias in node.names} <= set(rlhf_kit.__all__)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_is_importable_from_anywhere_and_its_default_data_are_there(script: Path, tmp_path: Path) -> None:
    done = start(sys.executable, str(script), "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--model" in done.stdout and "--output-dir" in done.stdout


def test_three_stages_runs_on_a_tiny_model(tiny: Path) -> None:
    options = ["--model", "model", "--data-dir", ".", "--rubric", "rubric.py:count_cats", "--episodes", "32"]
    done = start(sys.executable, str(ROOT / "recipes/three_stages.py"), *options, "--output-dir", "all", cwd=tiny)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the page: all/report.html" in done.stdout
    metrics = json.loads((tiny / "all" / "metrics.json").read_text())
    assert metrics["ppo"]["episodes"] == 32 and "rubric_agreement" in metrics["reward"]


@pytest.mark.slow
def test_one_stage_after_another_under_accelerate_launch(tiny: Path) -> None:
    """Each script finds what the one before it left in the same directory; the last one exports."""
    options = {
        "sft": ["--demonstrations", "demonstrations.jsonl"],
        "reward": ["--rankings", "rankings.jsonl", "--demonstrations", "demonstrations.jsonl"],
        "ppo": ["--prompts", "prompts.jsonl", "--episodes", "32"],
    }
    shutil.rmtree(tiny / "steps", ignore_errors=True)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
    for stage, words in options.items():
        script = str(ROOT / "recipes" / f"{stage}.py")
        done = start(*launch, script, "--model", "model", "--output-dir", "steps", *words, cwd=tiny)
        assert done.returncode == 0, f"{stage}: {done.stderr[-3000:]}"
        manifest = json.loads((tiny / "steps" / stage / "manifest.json").read_text())
        assert set(manifest["parents"]) == {"sft": set(), "reward": {"sft"}, "ppo": {"sft", "reward"}}[stage]
    assert (tiny / "steps" / "export" / "README.md").is_file()
