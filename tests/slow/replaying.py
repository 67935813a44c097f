"""Runs the command line with the answers of every rollout taken from a file, or written to it.

    python replaying.py FILE ppo recipe.yaml ...

What is learned from the same rollouts can be compared however many processes there are; what they sample cannot.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_kit import cli, launch
from rlhf_kit.ppo import experience
from rlhf_kit.rollout import sample_in_batches


def replay(file: Path) -> None:
    kept: list[list[list[int]]] = json.loads(file.read_text()) if file.is_file() else []
    recording = not kept
    calls = iter(kept)

    def answers(backbone: Any, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
        if not recording:
            said = next(calls)
            return said[launch.share(len(said))]
        said = sample_in_batches(backbone, prompts, **options)
        kept.append(said)
        file.write_text(json.dumps(kept))
        return said

    experience.sample_in_batches = answers


if __name__ == "__main__":
    replay(Path(sys.argv[1]))
    sys.exit(cli.main(sys.argv[2:]))
