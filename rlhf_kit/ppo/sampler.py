"""Who samples the answers of an update: the kit's own loop, or a vLLM server that is given the adapter of who plays."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from rlhf_kit import launch
from rlhf_kit.errors import EngineError, ModelError
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.prompts import PromptRow
from rlhf_kit.ppo.roles import Role
from rlhf_kit.rollout import Drawn, Ending, VllmEngine, sample_in_batches
from rlhf_kit.rollout.handshake import highest_rank

ADAPTERS = "rollout_adapters"
"""The directory below `output_dir` from which the server reads adapters, where no other is named."""

_SEEDS = 2**62
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; see `rollout.sample`."""

    ending: Ending
    temperature: float
    top_k: int
    top_p: float
    batch_size: int

    @classmethod
    def of(cls, config: PPOConfig, eos: int | None) -> Sampling:
        """As the settings say."""
        ends = (eos,) if config.stop_token == "eos" and eos is not None else ()
        tokens = ends if config.stop_token_id is None else (config.stop_token_id,)
        ending = Ending(tokens, config.response_length, tuple(config.stop), config.min_response_length)
        size = config.local_rollout_forward_batch_size
        return cls(ending, config.temperature, config.top_k, config.top_p, size)

    @property
    def options(self) -> dict[str, Any]:
        """As both engines take them."""
        return {
            "max_new_tokens": self.ending.most,
            "min_new_tokens": self.ending.least,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "stop": self.ending.texts,
            "stop_token_ids": self.ending.tokens,
        }


class OwnLoop:
    """Samples in this process.

    Args:
        in_step: the processes share the layers of one model, and must make the same passes.
    """

    def __init__(self, sampling: Sampling, precision: Callable[[Role], torch.autocast], *, in_step: bool) -> None:
        self.sampling, self.precision, self.in_step = sampling, precision, in_step

    def __call__(self, role: Role, rows: Sequence[PromptRow], generator: torch.Generator) -> list[Drawn]:
        """An answer of the role to each prompt, without log-probabilities: the trainer's own are those it is drawn
        from."""
        with role.playing(), self.precision(role):
            said = sample_in_batches(
                role.backbone,
                [row.ids for row in rows],
                batch_size=self.sampling.batch_size,
                generator=generator,
                in_step=launch.any_of if self.in_step else None,
                **self.sampling.options,
            )
        return [Drawn(tuple(ids), ()) for ids in said]

    def connect(self) -> None:
        """There is nothing to connect to."""

    def close(self) -> None:
        """Nothing is left behind."""


class Server:
    """Samples from a vLLM server. The adapter of who plays is written, named by its content and given to the server
    before anything is drawn; an answer by another version does not count. Of several processes the main one does so,
    and each asks for its share.

    Args:
        policy: whose base and adapters the server is given.

    Raises:
        ModelError: the policy has no adapter to give it.
    """

    def __init__(self, sampling: Sampling, config: PPOConfig, policy: Role) -> None:
        if policy.adapter is None:
            raise ModelError(
                "ppo.rollout.engine: vllm is given adapters, and this policy is trained as a whole; train one with "
                "peft_config, or leave the engine out"
            )
        self.sampling, self.policy = sampling, policy
        given = config.engine.adapters_dir
        self.adapters = Path(given or Path(str(config.output_dir)) / ADAPTERS)
        self._own_directory = given is None
        self.engine = VllmEngine(config.engine, policy.backbone.tokenizer, self.adapters)

    def connect(self) -> None:
        """Makes sure that there is a server that can do what is needed.

        Raises:
            EngineError: there is none, or with all that it cannot do.
        """
        backbone = self.policy.backbone
        rank = highest_rank(backbone.peft.peft_config.values())
        _of_all(lambda: self.engine.connect(temperature=self.sampling.temperature, rank=rank), when=launch.is_main())

    def __call__(self, role: Role, rows: Sequence[PromptRow], generator: torch.Generator) -> list[Drawn]:
        """An answer of the role to each prompt, with the server's log-probabilities.

        Raises:
            EngineError: the server does not answer any more, or refuses.
            ModelError: a role on another base than the policy's.
        """
        if role.backbone is not self.policy.backbone:
            raise ModelError("ppo.rollout.engine: the server has the policy's base; the reference is another model")
        version = None if role.adapter is None else self._publish(role, role.adapter)
        seeds = torch.randint(_SEEDS, (len(rows),), generator=generator).tolist()
        prompts = [row.ids for row in rows]
        return _of_all(lambda: self.engine.sample(prompts, version=version, seeds=seeds, **self.sampling.options))

    def _publish(self, role: Role, adapter: str) -> str:
        with tempfile.TemporaryDirectory(prefix="rlhf-kit-") as folder:
            role.backbone.save_adapter(adapter, Path(folder))
            version = _of_all(lambda: self.engine.publish(Path(folder)), when=launch.is_main())
        return launch.agreed(version)

    def close(self) -> None:
        """Takes the adapters from the server and from the disk."""
        if launch.is_main():
            self.engine.close()
            if self._own_directory:  # with what a run that was killed has left there
                shutil.rmtree(self.adapters, ignore_errors=True)


def _of_all(do: Callable[[], _Item], *, when: bool = True) -> _Item:
    """What `do` returns, where it is done; if it fails on one process it fails on all, so that none waits for ever."""
    failure, found = None, None
    try:
        found = do() if when else None
    except EngineError as error:
        failure = error
    if launch.any_of(failure is not None):
        raise failure or EngineError("the server failed another process")
    return found  # type: ignore[return-value]
