"""How time and memory of a step grow with the model, K, the prompt and the batch, each beside its law.

    python benchmarks/bench_growth.py [--only size|answers|prompt|batch] [--steps 2]

Llamas of random weights (33M, 70M and 144M parameters, vocabulary 49,152) in float32 on one thread, LoRA (r = 16) on
every linear layer, sdpa, no gradient checkpointing: a step of SFT, a step of the reward model on packed answers, an
update of PPO (value adapter, one pass in one mini-batch, answers of full length). `growth/law.py` says what each
should grow with; only its rates and bytes a unit are fitted, one set a stage over all its points, so that what deviates
is the growth and not the machine.

Each point is measured in a process of its own: the first step warms up, the median of the others counts. Seconds are
the processor's, so that others on the machine matter little; memory is the peak (VmHWM) above the process with
everything imported. `exponent` is the slope of log(value) over log(size) in a sweep, beside the law's; `ratio` is
measured over law. The last line is JSON. What was measured stands in RESULTS.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from growth.law import Point, expected_bytes, expected_seconds, exponent
from reward_speed.common import MARK

HERE = Path(__file__).resolve().parent
MIB = 2.0**20
SIZES = ((384, 1024, 8), (512, 1408, 14), (768, 2048, 15))  # hidden, inner, layers
STAGES = ("sft", "reward", "ppo")
SMALL = Point("sft", *SIZES[0], batch=4, answers=4, prompt=64, response=32)


def sweeps() -> dict[str, dict[str, list[Point]]]:
    """The points of each sweep by stage; all start at `SMALL` or pass through it."""
    of = {stage: replace(SMALL, stage=stage) for stage in STAGES}
    by_size = [{stage: replace(point, hidden=h, inner=i, layers=n) for stage, point in of.items()} for h, i, n in SIZES]
    return {
        "size": {stage: [points[stage] for points in by_size] for stage in STAGES},
        "answers": {"reward": [replace(of["reward"], answers=k) for k in (2, 4, 8)]},
        "prompt": {stage: [replace(of[stage], prompt=p) for p in (64, 128, 256, 512)] for stage in STAGES},
        "batch": {stage: [replace(of[stage], batch=b) for b in (4, 8, 16)] for stage in STAGES},
    }


def size_of(sweep: str, point: Point) -> float:
    """What a sweep changes."""
    return float(point.linear + point.head if sweep == "size" else getattr(point, sweep))


def measure(point: Point, steps: int) -> dict[str, Any]:
    """What a process of its own measured.

    Raises:
        SystemExit: it failed; its last lines are shown.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "growth.child", json.dumps(dataclasses.asdict(point)), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode != 0 or not lines:
        raise SystemExit(f"{point} failed ({done.returncode}):\n" + "\n".join(done.stderr.splitlines()[-15:]))
    found: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
    seconds, above = median(found["cpu_seconds"]), found["peak_mib"] - found["imported_mib"]
    print(f"{point}: {seconds:.2f} s, {above:.0f} MiB, load {os.getloadavg()[0]:.1f}", flush=True)
    return {**found, "seconds": seconds, "bytes": above * MIB}


def rows_of(sweep: str, points: list[Point], measured: dict[Point, Any], laws: dict[Point, Any]) -> dict[str, Any]:
    """One sweep of one stage: its points beside their law, and both exponents."""
    sizes = [size_of(sweep, point) for point in points]
    table: dict[str, Any] = {"sizes": sizes}
    for what, unit in (("seconds", 1.0), ("bytes", MIB)):
        found, law = [measured[p][what] / unit for p in points], [laws[p][what] / unit for p in points]
        table["seconds" if what == "seconds" else "mib"] = {
            "measured": [round(value, 3) for value in found],
            "law": [round(value, 3) for value in law],
            "ratio": [round(a / b, 3) for a, b in zip(found, law, strict=True)],
            "exponent": round(exponent(sizes, found), 3),
            "law_exponent": round(exponent(sizes, law), 3),
        }
    return table


def fitted(points: list[Point], measured: dict[Point, Any]) -> tuple[dict[Point, Any], dict[str, float]]:
    """The law at each point of a stage, and the constants that were fitted."""
    seconds, times = expected_seconds(points, [measured[p]["seconds"] for p in points])
    size, sizes = expected_bytes(points, [measured[p]["bytes"] for p in points])
    laws = {p: {"seconds": s, "bytes": b} for p, s, b in zip(points, seconds, size, strict=True)}
    constants = {"gflop_a_second": 1e-9 / times[0], "bytes_a_token_layer_hidden": sizes[0]}
    if len(times) > 1:
        constants["nanoseconds_a_token_word"] = 1e9 * times[1]
    if len(times) > 2:
        constants["seconds_a_gigabyte_read"] = 1e9 * times[2]
    if len(sizes) > 2:
        constants["bytes_a_token_word"] = sizes[1]
    constants["mib_once"] = sizes[-1] / MIB
    return laws, {name: round(value, 3) for name, value in constants.items()}


def main() -> None:
    """Measures all points, fits each stage's constants, prints the sweeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(sweeps()), help="one sweep")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each process")
    options = parser.parse_args()
    wanted = {name: of for name, of in sweeps().items() if options.only in (None, name)}
    points = dict.fromkeys(point for of in wanted.values() for some in of.values() for point in some)
    measured = {point: measure(point, options.steps) for point in points}
    laws: dict[Point, Any] = {}
    constants: dict[str, dict[str, float]] = {}
    for stage in STAGES:
        if mine := [point for point in points if point.stage == stage]:
            found, constants[stage] = fitted(mine, measured)
            laws |= found
    tables = {
        name: {stage: rows_of(name, some, measured, laws) for stage, some in of.items()} for name, of in wanted.items()
    }
    for name, of in tables.items():
        for stage, table in of.items():
            print(f"{name} {stage}: {json.dumps(table)}")
    machine = {"machine": platform.processor() or platform.machine(), "load": os.getloadavg()[0]}
    print(json.dumps({"benchmark": "growth", **machine, "fitted": constants, "sweeps": tables}))


if __name__ == "__main__":
    main()
