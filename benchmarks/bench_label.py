"""How quickly `rlhf-kit label` keeps answers of many labelers at once.

    python benchmarks/bench_label.py [--labelers 50] [--answers 5000]

A real server in a process of its own, the labelers in another, all on this machine; four answers of about 300
characters to rank a task, the limits that are shipped, each answer on the disk before it is acknowledged. Twice: each
labeler pauses 0.3 s on average before an answer, and none pauses at all.

The last line is JSON: of both, milliseconds of POST /api/answer (`p50`, `p95`, `p99`, `most`), `answers_per_s`, and the
server's memory at the end in MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from label_load import Book, Server, label_all, write_tasks


def measure(labelers: int, answers: int, think: float) -> dict[str, Any]:
    """What the labelers have seen; `think` is in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        source = write_tasks(Path(folder) / "tasks.jsonl", answers)
        names = ",".join(f"labeler-{number:02d}" for number in range(labelers))
        server, book = Server(Path(folder), [str(source), "--labelers", names]), Book()
        server.start()
        begun = time.perf_counter()
        asyncio.run(label_all(server.links.items(), book, think))
        seconds = time.perf_counter() - begun
        memory = server.memory()
        server.end()
    assert len(book.answers) == answers
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "most": 1.0}
    return {
        "pause_s": think,
        **{name: round(1e3 * book.percentile(share), 1) for name, share in shares.items()},
        "answers_per_s": round(answers / seconds, 1),
        "memory_mib": round(memory / 2**20, 1),
    }


def main() -> None:
    """Prints a line for people, then the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelers", type=int, default=50)
    parser.add_argument("--answers", type=int, default=5000)
    arguments = parser.parse_args()
    found = {}
    for name, think in (("paced", 0.3), ("flat_out", 0.0)):
        found[name] = measure(arguments.labelers, arguments.answers, think)
        print(f"{name}: {found[name]}", flush=True)
    print(json.dumps({"labelers": arguments.labelers, "answers": arguments.answers, **found}))


if __name__ == "__main__":
    main()
