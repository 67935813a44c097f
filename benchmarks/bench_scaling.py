"""Weak and strong scaling of the three stages from one process to two, by the launch files.

    python benchmarks/bench_scaling.py [--stages sft reward ppo] [--modes cpu_ddp zero2 zero3] [--steps 4]

SmolLM2-135M of the quickstart with adapters on the upper half of its layers, one thread a process, each process on a
core of its own. Strong: the global batch stays (8 demonstrations, 4 rankings, 16 answers in mini-batches of 8), so that
two processes should take half the time of one. Weak: the batch of a process stays, so that two should take as long as
one for twice the work. What is missing is what both share: memory bandwidth, the exchange of gradients, and what all
do (collation, GAE, the optimiser). Seconds are the wall's, the median of the steps after the first; the last line is
JSON with `efficiency`: the expected time over the measured one. What was measured stands in RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARK = "SCALING "
# What one process has; `ppo` is judged by the quickstart's rubric, so that no stage needs another.
STAGES: dict[str, dict[str, int]] = {
    "sft": {"sft.per_device_train_batch_size": 8},
    "reward": {"reward.per_device_train_batch_size": 4},
    "ppo": {"ppo.per_device_train_batch_size": 4, "ppo.batch_size": 16, "ppo.mini_batch_size": 8},
}
FIXED = (
    "reward.init=base",
    "ppo.init=base",
    "ppo.reward_funcs=[recipes/quickstart/rubric.py:grade]",
    "ppo.save_steps=99",
)


def overrides(stage: str, processes: int, kind: str, steps: int) -> list[str]:
    """The settings of a run: of all processes together, or of each."""
    found = {}
    for name, value in STAGES[stage].items():
        of_each = name.endswith("per_device_train_batch_size")
        if kind == "strong":
            found[name] = value // processes if of_each and stage != "ppo" else value
        else:
            found[name] = value if of_each else value * processes
    if stage == "ppo":
        found["ppo.total_episodes"] = found["ppo.batch_size"] * steps
    more = [] if stage == "ppo" else [f"{stage}.trainer={{max_steps: {steps}}}", f"{stage}.save_steps=99"]
    return [*(f"{name}={value}" for name, value in found.items()), *more, *FIXED]


def run(stage: str, mode: str | None, kind: str, steps: int) -> float:
    """Seconds of a step in a run of its own.

    Raises:
        SystemExit: it failed; its last lines are shown.
    """
    processes = 1 if mode is None else 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    files = ROOT / "recipes" / "accelerate"
    launcher = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(files / f"{mode}.yaml"),
        "--num_processes",
        "2",
    ]
    launcher = [] if mode is None else [*launcher, "--main_process_port", port]
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as folder:
        command = [
            sys.executable,
            *launcher,
            __file__,
            "--one",
            stage,
            folder,
            *overrides(stage, processes, kind, steps),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode != 0 or not lines:
        raise SystemExit(f"{stage} {mode} {kind} failed:\n" + "\n".join(done.stderr.splitlines()[-20:]))
    found, _ = json.JSONDecoder().raw_decode(lines[-1].removeprefix(MARK))  # the other process may write behind it
    assert found["processes"] == processes
    return float(found["seconds"])


def one(stage: str, folder: str, settings: list[str]) -> None:
    """In each process: the stage by the command, its steps timed."""
    from rlhf_kit import cli
    from rlhf_kit.checkpoint import MetricsLog, read_manifest

    os.sched_setaffinity(0, {int(os.environ.get("LOCAL_RANK", "0"))})
    clocks = []

    def noted(*_: Any, **__: Any) -> None:
        clocks.append(time.perf_counter())

    MetricsLog.on_step_end = noted
    if (code := cli.main([stage, "recipes/quickstart.yaml", f"output_dir={folder}/run", *settings])) != 0:
        sys.exit(code)
    if os.environ.get("RANK", "0") == "0":
        seconds = median(after - before for before, after in pairwise(clocks))
        processes = read_manifest(Path(folder) / "run" / stage).metrics["processes"]
        print(MARK + json.dumps({"seconds": seconds, "processes": processes}), flush=True)


def main() -> None:
    """Measures and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--modes", nargs="+", default=["cpu_ddp", "zero2", "zero3"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--one", nargs=argparse.REMAINDER, help="run a stage in this process")
    options = parser.parse_args()
    if options.one:
        return one(options.one[0], options.one[1], options.one[2:])
    rows = []
    for stage in options.stages:
        alone = run(stage, None, "strong", options.steps)
        for mode in options.modes:
            for kind, expected in (("strong", alone / 2), ("weak", alone)):
                seconds = run(stage, mode, kind, options.steps)
                row = {"stage": stage, "mode": mode, "kind": kind, "one": round(alone, 3), "two": round(seconds, 3)}
                row["efficiency"] = round(expected / seconds, 3)
                print(json.dumps(row), flush=True)
                rows.append(row)
    print(json.dumps({"benchmark": "scaling", "cores": os.cpu_count(), "rows": rows}))
    return None


if __name__ == "__main__":
    main()
