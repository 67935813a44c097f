"""`ppo.reward_funcs: live` in processes of their own: killed while people are waited for, and two that wait in step."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from labelers import labelers, rate
from safetensors.torch import load_file
from test_ppo_live import ONLY_LIVE, by_hand
from tiny_recipe import write_recipe

from rlhf_kit.labeling.exporting import records
from rlhf_kit.labeling.store import Store
from rlhf_kit.records import Rating

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds until a process counts as hanging


def start(directory: Path, *overrides: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rlhf_kit", "ppo", "recipe.yaml", *overrides]
    with (directory / "said.log").open("a") as log:
        return subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log, text=True)


def by_two(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What two processes that torchrun has started say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, *launcher, *words],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def entries(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("seconds_", "eval_runtime"))} for row in rows]


def test_a_killed_run_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    """Killed while it waits for people in the middle; a second run of the recipe is not disturbed."""
    write_recipe(tmp_path, ppo=ONLY_LIVE)
    store = tmp_path / "run" / "live.sqlite"
    with labelers(store, {"anna": rate}, most=20) as first:
        process = start(tmp_path)
        deadline = time.monotonic() + PATIENCE
        with closing(Store(store)) as opened:
            while len(first) < 20 or opened.progress().tasks < 20:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
        process.kill()
        process.wait()
    with labelers(store, {"anna": rate}) as second:
        assert start(tmp_path).wait(PATIENCE) == 0, (tmp_path / "said.log").read_text()[-2000:]
    other = tmp_path / "other.sqlite"
    with labelers(other, {"ben": rate}) as undisturbed:
        assert start(tmp_path, "output_dir=whole", f"ppo.live.store={other}").wait(PATIENCE) == 0
    assert len(first) == 20 and len(first) + len(second) == len(undisturbed)
    logs = [entries(tmp_path / run / "ppo" / "metrics.jsonl") for run in ("run", "whole")]
    assert logs[0] == logs[1] and len([entry for entry in logs[0] if "rewards/live" in entry]) == 4
    for name in ("adapter_model.safetensors", "value/adapter_model.safetensors"):
        one, two = (load_file(tmp_path / run / "ppo" / name) for run in ("run", "whole"))
        assert all(torch.equal(one[key], two[key]) for key in two)


def test_two_processes_wait_for_each_others_answers(tmp_path: Path) -> None:
    """Each asks for its share, in one store; nobody there ends both, and the same command goes on."""
    write_recipe(tmp_path, ppo={**ONLY_LIVE, "per_device_train_batch_size": 4})

    def run(*overrides: str) -> subprocess.CompletedProcess[str]:
        return by_two(tmp_path, "-m", "rlhf_kit", "ppo", "recipe.yaml", *overrides)

    said = run("ppo.live.timeout=1")
    assert said.returncode and "nobody has scored an answer for 1 seconds, and 16 of 16 wait" in said.stderr
    store = tmp_path / "run" / "live.sqlite"
    with labelers(store, {"anna": rate}) as done:
        said = run()
        assert said.returncode == 0, said.stderr[-2000:]
    assert "16 answers of update 2 wait for scores" in said.stderr
    marks = dict[str, list[float]]()
    with closing(Store(store)) as opened:
        assert len(done) == opened.progress().tasks == opened.progress().answered == 64
        for one in records(opened):
            assert isinstance(one, Rating) and one.score is not None
            marks.setdefault(str(one.source), []).append((one.score - 4) / 3)
    rows = [row for row in entries(tmp_path / "run" / "ppo" / "metrics.jsonl") if "rewards/live" in row]
    means = [sum(marks[f"update {number}"]) / 16 for number in (1, 2, 3, 4)]
    assert [row["rewards/live"] for row in rows] == pytest.approx(means, abs=1e-6)


SHARES = (("same", "left"), ("same", "right"))
ON_TWO_MACHINES = f"""
import json, sys
from pathlib import Path
from test_ppo_rewards import answered
from rlhf_kit import launch
from rlhf_kit.ppo.live import LiveReward
from rlhf_kit.recipe_live import LiveSection

launch.connect()
place = Path(sys.argv[1]) / f"machine-{{launch.rank()}}"
texts = {SHARES}[launch.rank()]
found = LiveReward(LiveSection(timeout=60), place / "live.sqlite")(answered([{{"prompt": "Hi"}}] * 2, list(texts)))
Path(sys.argv[1], f"{{launch.rank()}}.json").write_text(json.dumps(found.tolist()))
"""


def test_people_are_asked_where_the_main_process_is(tmp_path: Path) -> None:
    """Processes on two machines do not see each other's files, and SQLite's is for one machine alone."""
    (tmp_path / "both.py").write_text(ON_TWO_MACHINES)
    with labelers(tmp_path / "machine-0" / "live.sqlite", {"anna": rate}) as done:
        said = by_two(tmp_path, str(tmp_path / "both.py"), str(tmp_path))
    assert said.returncode == 0, said.stderr[-2000:]
    assert len(done) == 3, "the same answer of two processes is one"
    for rank, texts in enumerate(SHARES):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx([by_hand(text) for text in texts])
    assert not (tmp_path / "machine-1").exists()
