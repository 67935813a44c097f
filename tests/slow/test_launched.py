"""All stages on two processes by the launch files, as a user starts them: the figures of one process, a process that
dies, going on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from tiny_recipe import write_recipe

from rlhf_kit.checkpoint import read_manifest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FILES = ROOT / "recipes" / "accelerate"
REPLAYING = Path(__file__).with_name("replaying.py")
PATIENCE = 400  # seconds; the first start of DeepSpeed compiles its operations, a minute each
STEPS = {"sft": 8, "reward": 10, "ppo": 10}
FIGURES = ("policy_loss", "value_loss", "approx_kl", "kl", "score", "entropy", "explained_variance")
HALF = ("sft.per_device_train_batch_size=4", "reward.per_device_train_batch_size=2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and its run on one process with the rollouts that all others replay.

    Neither the 61 demonstrations nor the prompts of the rankings fill their last batches."""
    directory = tmp_path_factory.mktemp("launch")
    recipe = write_recipe(
        directory,
        sft={"num_train_epochs": 1, "save_steps": 2, "trainer": {"logging_steps": 1}},
        reward={"num_train_epochs": 1, "save_steps": 4},
        # DeepSpeed cuts the gradients of both roles together, the kit each by itself: here nothing is cut.
        ppo={"total_episodes": 320, "save_steps": 2, "max_grad_norm": 1e3},
    )
    settings = yaml.safe_load(recipe.read_text())
    settings["data"].pop("prompts_heldout")  # nothing is evaluated here
    recipe.write_text(yaml.safe_dump(settings))
    rows = (directory / "demonstrations.jsonl").read_text().splitlines()[:61]
    (directory / "demonstrations.jsonl").write_text("\n".join(rows) + "\n")
    for out in ("recorded", "one"):
        finished(start(directory, out, None, 1))
        shutil.copytree(directory / "recorded" / "sft", directory / "one" / "sft", dirs_exist_ok=True)
        shutil.copytree(directory / "recorded" / "reward", directory / "one" / "reward", dirs_exist_ok=True)
    return directory


@dataclass(frozen=True)
class Started:
    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def start(place: Path, out: str, file: str | None, processes: int, *more: str, words: tuple[str, ...] = ()) -> Started:
    """`run recipe.yaml output_dir=OUT ...` under one of the launch files, or without a launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = (
        [] if file is None else ["-m", "accelerate.commands.launch", "--config_file", str(FILES / f"{file}.yaml")]
    )
    launcher += [] if file is None else ["--num_processes", str(processes), "--main_process_port", port]
    command = [
        *launcher,
        *words,
        str(REPLAYING),
        str(place / "answers.json"),
        "run",
        "recipe.yaml",
        f"output_dir={out}",
    ]
    command += HALF if processes == 2 else ()
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if file == "fsdp2":
        environment["RLHF_KIT_TEST_FSDP"] = "1"
    log = place / f"{out}.log"
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, *command, *more], cwd=place, env=environment, stdout=stream, stderr=stream
        )
    return Started(process, log)


def ended(started: Started) -> int:
    try:
        return started.process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        started.process.terminate()  # the launcher ends its workers
        started.process.wait(40)
        raise AssertionError(f"hangs:\n{started.said()[-3000:]}") from None


def finished(started: Started) -> None:
    assert ended(started) == 0, started.said()[-3000:]


def kill_one(started: Started, line: str) -> float:
    """SIGKILL to the second process once a line is in the log; returns after how many seconds all had ended."""
    deadline = time.monotonic() + PATIENCE
    while line not in started.said():
        assert started.process.poll() is None and time.monotonic() < deadline, started.said()[-3000:]
        time.sleep(0.1)
    workers = [one for one in psutil.Process(started.process.pid).children(True) if one.environ().get("RANK") == "1"]
    os.kill(workers[0].pid, signal.SIGKILL)
    killed = time.monotonic()
    assert ended(started) != 0
    return time.monotonic() - killed


def curves(place: Path, out: str, stage: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (place / out / stage / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", *(FIGURES if stage == "ppo" else ()))
    return [{name: row[name] for name in names} for row in rows if "loss" in row]


def assert_same_curves(place: Path, out: str, stage: str) -> None:
    expected, found = curves(place, "one", stage), curves(place, out, stage)
    assert len(expected) == len(found) == STEPS[stage]
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, abs=1e-4, rel=1e-4), f"{stage} step {one['step']}"


def processes_of(place: Path, out: str, stage: str) -> tuple[int, str]:
    metrics = read_manifest(place / out / stage).metrics
    return metrics["processes"], metrics["distributed"]


@pytest.mark.parametrize(
    ("file", "mode"), [("cpu_ddp", "ddp"), ("zero2", "zero2"), ("zero3", "zero3"), ("fsdp2", "fsdp")]
)
def test_killed_and_gone_on_two_processes_have_the_curves_of_one(place: Path, file: str, mode: str) -> None:
    started = start(place, file, file, 2)
    seconds = kill_one(started, "ppo step=5/")
    assert seconds < 40, "the other process must not wait for the one that is gone"
    assert "Signal 9 (SIGKILL) received by PID" in started.said(), "the cause stands in the log"
    assert not (place / file / "ppo").exists()
    kept = place / f"{file}_interrupted"
    shutil.copytree(place / file, kept)
    finished(start(place, file, file, 2))
    went_on = re.findall(r"ppo: goes on after update (\d+) of 10", started.said())
    assert len(went_on) == 1, "the main process alone says what all do"
    assert went_on[0] in ("4", "6", "8"), "where the kill comes late, another update or two were saved"
    for stage in STEPS:
        assert processes_of(place, file, stage) == (2, mode)
        assert_same_curves(place, file, stage)
    assert sorted(path.name for path in (place / file).iterdir()) == [
        *("export", "metrics.json", "ppo", "report.html", "report.json", "reward", "sft")
    ]
    assert (place / file / "ppo" / "adapter_model.safetensors").stat().st_size == (
        place / "one" / "ppo" / "adapter_model.safetensors"
    ).stat().st_size


def test_one_process_goes_on_where_two_were_interrupted(place: Path) -> None:
    finished(start(place, "cpu_ddp_interrupted", None, 1, *HALF))
    assert processes_of(place, "cpu_ddp_interrupted", "ppo") == (1, "ddp")
    assert_same_curves(place, "cpu_ddp_interrupted", "ppo")


def test_a_step_stays_as_large_when_sft_goes_on_with_fewer_processes(place: Path) -> None:
    kill_one(start(place, "fewer", "cpu_ddp", 2), "sft step=4/")
    finished(start(place, "fewer", None, 1, *HALF))
    assert_same_curves(place, "fewer", "sft")


@pytest.mark.parametrize("file", ["zero2", "zero3"])
def test_deepspeeds_state_is_refused_to_another_number_of_processes_in_one_line(place: Path, file: str) -> None:
    mode = file
    started = start(place, f"{file}_interrupted", None, 1, *HALF)
    assert ended(started) == 2
    lines = [line for line in started.said().splitlines() if "was begun by" in line]
    assert len(lines) == 1
    assert f"was begun by 2 processes ({mode}), and the state of its optimiser is kept so; this is 1 (ddp)" in lines[0]
    assert "Traceback" not in started.said().split(lines[0])[-1]


def test_zero3_offloaded_has_the_curves_of_one_process(place: Path) -> None:
    """Parameters and optimiser in the memory of the machine; compiles DeepSpeed's own Adam at the first start."""
    finished(start(place, "zero3_offload", "zero3_offload", 2))
    for stage in STEPS:
        assert processes_of(place, "zero3_offload", stage) == (2, "zero3")
        assert_same_curves(place, "zero3_offload", stage)


def test_two_machines(place: Path) -> None:
    """Two launchers of one process each, that only know the first one's address; and layer by layer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = str(free.getsockname()[1])
    more = ("ppo.ds3_gather_for_generation=false", "ppo.total_episodes=64")
    both = [
        start(place, "nodes", "multi_node", 2, *more, words=("--machine_rank", rank, "--main_process_port", number))
        for rank in ("0", "1")
    ]
    for one in both:
        finished(one)
    assert processes_of(place, "nodes", "ppo") == (2, "zero3")
    assert_same_curves(place, "nodes", "sft")


def test_a_reward_function_that_fails_on_one_process_ends_the_run_with_its_words(place: Path) -> None:
    (place / "broken.py").write_text(
        "import os\n\n\ndef judge(completions, **columns):\n"
        "    if os.environ.get('RANK') == '1':\n        raise ValueError('no such scale')\n"
        "    return [0.0] * len(completions)\n"
    )
    started = start(place, "broken", "cpu_ddp", 2, "ppo.reward_funcs=[broken.py:judge]", "ppo.total_episodes=64")
    assert ended(started) != 0
    assert "[process 1] ppo: the reward function 'judge' failed on" in started.said()


def test_accelerates_cpu_launcher_which_starts_one_process_is_refused(place: Path) -> None:
    command = [
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    command = [sys.executable, "-m", "accelerate.commands.launch", *command, "-m", "rlhf_kit", "sft", "recipe.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "output_dir=silent"], cwd=place, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode != 0
    assert "accelerate was asked for several processes on CPUs and has started one" in done.stderr
    assert not (place / "silent").exists() and not list(place.glob("silent/.sft*"))
