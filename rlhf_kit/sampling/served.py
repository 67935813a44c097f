"""Answers drawn by a vLLM server: tokens and prompts are made here, and no model is in this process's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from peft import LoraConfig
from transformers import AutoConfig

from rlhf_kit.errors import ModelError
from rlhf_kit.models import context_length, load_tokenizer, resolve
from rlhf_kit.recipe import ModelSection
from rlhf_kit.recipe_rollout import RolloutSection
from rlhf_kit.rollout.handshake import highest_rank
from rlhf_kit.rollout.vllm import Drawn, VllmEngine
from rlhf_kit.sampling.drawing import Settings

__all__ = ["Server", "server_at"]


def server_at(url: str, adapters: Path | None, section: RolloutSection | None = None) -> RolloutSection:
    """A server for sampling; what is not said is as in a recipe's `ppo.rollout`.

    Args:
        url: what stands before /v1.
        adapters: a directory that this process and the server both see.

    Raises:
        pydantic.ValidationError: the URL is none.
    """
    said = (section or RolloutSection()).model_dump() | {"engine": "vllm", "base_url": url}
    return RolloutSection.model_validate(said | ({} if adapters is None else {"adapters_dir": str(adapters)}))


class Server:
    """A vLLM server with a base, whose adapters are given to it as they are asked for.

    Args:
        section: where it is.
        model: the base, of which the tokenizer and the configuration are read here.
        adapters: of all who will answer; None is the base.
        scratch: where adapters are written for the server, unless the section names a directory.

    Raises:
        ModelError: no such tokenizer or configuration.
    """

    def __init__(
        self, section: RolloutSection, model: ModelSection, adapters: Sequence[Path | None], scratch: Path
    ) -> None:
        place = Path(section.adapters_dir or scratch)
        place.mkdir(parents=True, exist_ok=True)
        self.section, self.tokenizer = section, load_tokenizer(model)
        self.context_length = _context_length(model)
        self._engine = VllmEngine(section, self.tokenizer, place)
        configs = (LoraConfig.from_pretrained(str(adapter)) for adapter in adapters if adapter is not None)
        self._rank, self._temperature = highest_rank(configs), -1.0

    def draw_chunk(
        self,
        adapter: Path | None,
        prompts: Sequence[list[int]],
        settings: Settings,
        chunk: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Drawn]:
        """K answers to each prompt of a chunk, those to the same prompt in a row.

        Args:
            chunk: its number, which decides the seed of each answer with the settings' seed.
            progress: is told how many answers more are done.

        Raises:
            EngineError: the server does not answer, is not made for this, or cannot load the adapter.
        """
        if self._temperature != settings.temperature:  # asked once
            self._engine.connect(temperature=settings.temperature, rank=self._rank)
            self._temperature = settings.temperature
        version = None if adapter is None else self._engine.publish(adapter)
        asked = [prompt for prompt in prompts for _ in range(settings.k)]
        return self._engine.sample(
            asked,
            version=version,
            seeds=_seeds(settings.seed, chunk, len(asked)),
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            progress=progress,
        )

    def close(self) -> None:
        """Takes the adapters from the server again."""
        self._engine.close()


def _seeds(seed: int, chunk: int, count: int) -> list[int]:
    """Of 63 bits, which is what vLLM takes."""
    return [int(value) >> 1 for value in np.random.SeedSequence([seed, chunk]).generate_state(count, np.uint64)]


def _context_length(model: ModelSection) -> int:
    """The most tokens that the base takes, as `Backbone.context_length` has it."""
    try:
        config = AutoConfig.from_pretrained(
            resolve(model.name_or_path, model.sha256),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
        )
    except (OSError, ValueError) as failure:
        raise ModelError(f"{model.name_or_path}: its configuration cannot be read: {failure}") from failure
    return context_length(config)
