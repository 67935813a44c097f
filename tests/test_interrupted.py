"""A run that is killed goes on where it was, and ends where it would have ended; bad input stops it at once."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_recipe import write_recipe

from rlhf_kit.checkpoint import read_manifest
from rlhf_kit.cli import main
from rlhf_kit.files import sha256_of

ROOT = Path(__file__).parents[1]
PATIENCE = 300  # seconds until a process counts as hanging
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"num_train_epochs": 2, "save_steps": 2, "trainer": {"logging_steps": 1}},
    "reward": {"num_train_epochs": 2, "save_steps": 2},
    "ppo": {"total_episodes": 128, "num_ppo_epochs": 2, "save_steps": 1},
    "evaluate": {"samples_per_prompt": 2},
}


def start(directory: Path, output: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rlhf_kit", "run", "recipe.yaml", f"output_dir={output}"]
    with (directory / f"{output}.log").open("a") as log:
        return subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log, text=True)


def kill_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(PATIENCE) == -signal.SIGKILL


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def has_lines_and_checkpoint(work: Path) -> Callable[[], bool]:
    """The stage is in its middle: something is logged, and a checkpoint is whole."""

    def ready() -> bool:
        logged = (work / "metrics.jsonl").is_file() and (work / "metrics.jsonl").stat().st_size > 0
        return logged and any((work / "checkpoints").glob("checkpoint-*/trainer_state.json"))

    return ready


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("interrupted")
    write_recipe(directory, **SETTINGS)
    return directory


@pytest.fixture(scope="module")
def runs(place: Path) -> Iterator[tuple[Path, Path]]:
    """The same recipe twice: undisturbed, and killed in the middle of each stage."""
    undisturbed = start(place, "whole")
    killed = place / "killed"
    process = start(place, "killed")
    try:
        for stage in ("sft", "reward", "ppo"):
            kill_when(process, has_lines_and_checkpoint(killed / f".{stage}.partial"))
            assert not (killed / stage).exists(), "what is half done has no name of its own"
            process = start(place, "killed")
        kill_when(process, lambda: any((killed / ".evaluation.partial").glob("kept/answers/*.json")))
        process = start(place, "killed")
        assert process.wait(PATIENCE) == 0, (place / "killed.log").read_text()[-2000:]
        assert undisturbed.wait(PATIENCE) == 0, (place / "whole.log").read_text()[-2000:]
        yield place / "whole", killed
    finally:
        for one in (process, undisturbed):
            if one.poll() is None:
                one.kill()
                one.wait()


def test_killed_run_finishes_with_the_same_files(runs: tuple[Path, Path]) -> None:
    whole, killed = ({str(p.relative_to(run)) for p in run.rglob("*")} for run in runs)
    assert whole == killed
    assert not [name for name in killed if "partial" in name or "checkpoint" in name or ".tmp" in name]


def test_killed_run_said_that_it_went_on(runs: tuple[Path, Path]) -> None:
    log = (runs[1].parent / "killed.log").read_text()
    for stage in ("sft", "reward", "ppo"):
        assert log.count(f"{stage}: starts\n") == 1
        assert f"{stage}: goes on from its last checkpoint\n" in log


def test_every_manifest_is_valid_and_stands_on_the_same_inputs(runs: tuple[Path, Path]) -> None:
    for stage in ("sft", "reward", "ppo", "export", "evaluation"):
        whole, killed = (read_manifest(run / stage) for run in runs)  # compares the weights with their hashes
        assert {k: v for k, v in whole.inputs.items() if k != "parents"} == {
            k: v for k, v in killed.inputs.items() if k != "parents"
        }
        for name in killed.files:
            assert all(tensor.isfinite().all() for tensor in load_file(runs[1] / stage / name).values())


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_figures_of_the_killed_run_equal_those_of_the_undisturbed_one(runs: tuple[Path, Path], stage: str) -> None:
    """Step for step, float32 on one thread: nothing is left out, done twice or drawn anew."""
    whole, killed = (entries(run / stage / "metrics.jsonl") for run in runs)
    assert [entry["step"] for entry in whole] == [entry["step"] for entry in killed]
    for before, after in zip(whole, killed, strict=True):
        assert before.keys() == after.keys()
        for entry in (before, after):
            entry.pop("num_tokens", None)  # TRL counts them anew after each start
            for name in [name for name in entry if name.startswith("seconds_")]:
                del entry[name]
        assert after == pytest.approx(before, rel=1e-5, abs=1e-7), f"step {before['step']}"


def test_weights_of_the_killed_run_equal_those_of_the_undisturbed_one(runs: tuple[Path, Path]) -> None:
    for name in ("sft", "reward", "ppo", "ppo/value"):
        whole, killed = (load_file(run / name / "adapter_model.safetensors") for run in runs)
        for key, tensor in whole.items():
            assert tensor.allclose(killed[key], rtol=1e-4, atol=1e-6), f"{name}: {key}"


def test_started_once_more_the_killed_run_has_nothing_to_do(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(runs[1].parent)
    with caplog.at_level("INFO", "rlhf_kit"):
        assert main(["run", "recipe.yaml", "output_dir=killed"]) == 0
    steps = ("sft", "reward", "ppo", "export", "evaluation")
    said = [record.message for record in caplog.records if record.message.endswith("skipped")]
    assert said == [f"{step}: finished with the same inputs, skipped" for step in steps]


# -------------------------------------------------------------------- what never starts


@pytest.fixture
def fresh(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in place.iterdir():
        if path.is_file() and path.suffix != ".log":
            shutil.copy(path, tmp_path)
    shutil.copytree(place / "model", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_bad_lines_of_any_file_stop_the_run_before_its_first_step(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (fresh / "prompts.jsonl").open("a") as stream:
        stream.write('{"prompt": " "}\n{"prompt": \n')
    with (fresh / "rankings.jsonl").open("a") as stream:
        stream.write('{"prompt": "Why?", "responses": [{"text": "a", "rank": 1}]}\n')
    assert main(["run", "recipe.yaml", "output_dir=out"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.split("/")[-1].split(": ")[0] for line in said] == [
        "rankings.jsonl:49",
        "prompts.jsonl:49",
        "prompts.jsonl:50",
    ]
    assert not (fresh / "out").exists(), "SFT did not start, though its own file is clean"


def test_missing_data_file_is_one_line(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fresh / "prompts.jsonl").unlink()
    assert main(["run", "recipe.yaml", "output_dir=out"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "prompts.jsonl" in said[0]
    assert not (fresh / "out").exists()


@pytest.mark.parametrize(("stage", "missing"), [("reward", "sft"), ("ppo", "sft")])
def test_missing_parent_is_named_with_the_command_that_makes_it(
    fresh: Path, capsys: pytest.CaptureFixture[str], stage: str, missing: str
) -> None:
    assert main([stage, "recipe.yaml", "output_dir=out"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"out/{missing}: not there; {stage} starts from it, so run `rlhf-kit {missing}` first"
    assert not (fresh / "out").exists()


def test_ppo_without_any_reward_model_says_what_it_needs(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ppo", "recipe.yaml", "output_dir=out", "data.rankings=null", "data.demonstrations=null"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "data.rankings: missing; PPO needs a reward model" in said


def test_unreadable_model_leaves_nothing_that_is_trusted(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = fresh / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    assert main(["sft", "recipe.yaml", "output_dir=out"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "model: cannot be loaded" in said
    assert not (fresh / "out" / "sft").exists()


def test_full_disk_is_one_line_and_the_next_run_goes_on(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full when the adapter is written: nothing gets its name, and the checkpoint is used again."""
    from rlhf_kit.models import backbone

    def full(tensors: Any, path: Path, metadata: Any = None) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    words = ["sft", "recipe.yaml", "output_dir=out", "sft.num_train_epochs=1"]
    with monkeypatch.context() as patch:
        patch.setattr(backbone, "save_file", full)
        assert main(words) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("disk full") and "Traceback" not in "\n".join(said)
    assert not (fresh / "out" / "sft").exists()
    assert main(words) == 0
    run = fresh / "out" / "sft"
    assert sha256_of(str(run / "adapter_model.safetensors")) == read_manifest(run).files["adapter_model.safetensors"]
    steps = [entry["step"] for entry in entries(run / "metrics.jsonl")]
    assert steps == sorted(set(steps)), "no step is logged twice"
