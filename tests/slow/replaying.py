"""The command line with the answers of every rollout taken from a file, or written to it where there is none.

    python replaying.py FILE run recipe.yaml ...

What is learned from the same rollouts can be compared however many processes there are; what they sample cannot. With
`RLHF_KIT_TEST_FSDP` set, accelerate is told that the processes have GPUs: else it leaves FSDP out on a CPU, where
torch's own can do all of it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule

from rlhf_kit import cli, launch
from rlhf_kit.ppo import sampler
from rlhf_kit.ppo.trainer import PPOTrainer
from rlhf_kit.rollout import sample_in_batches


def replay(file: Path) -> None:
    kept: list[list[list[int]]] = json.loads(file.read_text()) if file.is_file() else []
    recording, update = not kept, [0]
    step = PPOTrainer.training_step

    def training_step(self: PPOTrainer, model: nn.Module, inputs: dict[str, Any], *rest: Any) -> Any:
        update[0] = inputs["update"]
        return step(self, model, inputs, *rest)

    def answers(backbone: Any, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
        if not recording:
            said = kept[update[0]]
            return said[launch.share(len(said))]
        said = sample_in_batches(backbone, prompts, **options)
        kept.append(said)
        file.write_text(json.dumps(kept))
        return said

    PPOTrainer.training_step = training_step
    sampler.sample_in_batches = answers


def allow_fsdp() -> None:
    original, serve = PartialState.__init__, launch.serve

    def init(self: PartialState, *args: Any, **options: Any) -> None:
        fresh = PartialState._shared_state == {}
        original(self, *args, **options)
        if fresh and self.distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    def watched(engine: nn.Module, play: Any, **options: Any) -> Any:
        parts = [module for module in engine.modules() if isinstance(module, FSDPModule)]
        assert len(parts) > 2, "accelerate has sharded nothing"
        return serve(engine, play, **options)

    PartialState.__init__ = init
    launch.serve = watched
    launch._refuse_what_is_not_as_asked = lambda: None


if __name__ == "__main__":
    if "RLHF_KIT_TEST_FSDP" in os.environ:
        allow_fsdp()
    replay(Path(sys.argv[1]))
    sys.exit(cli.main(sys.argv[2:]))
