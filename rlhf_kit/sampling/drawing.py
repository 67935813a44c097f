"""Draws K answers to each prompt of a chunk.

A chunk is a few prompts with all their answers. Each has a generator of its own, seeded by the seed and the chunk's
number, so that what was interrupted goes on and ends with the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState

from rlhf_kit.errors import RlhfKitError
from rlhf_kit.models import Backbone
from rlhf_kit.recipe import Recipe
from rlhf_kit.rewards import autocast
from rlhf_kit.rollout import sample_in_batches

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how many answers more are done, and how many there are in all."""


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` for nobody."""


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: without EOS.
        ended: whether the model ended it, or it was cut off at the limit.
        tokens: its length, EOS included.
        count: how often it was drawn, once the same texts are taken together.
        score: the reward model's, once it was asked.
        source: who gave it, where several answer.
    """

    text: str
    ended: bool
    tokens: int
    count: int = 1
    score: float | None = None
    source: str | None = None


@dataclass(frozen=True)
class Settings:
    """How answers are drawn.

    Attributes:
        k: answers to a prompt.
        temperature: 0 takes the likeliest token.
        max_new_tokens: where an answer is cut off.
        seed: the same seed draws the same answers.
        batch_size: answers drawn side by side.
        top_k: draws from the likeliest tokens only; 0 is all.
        top_p: draws from the likeliest tokens that make up this share; 1 is all.
    """

    k: int
    temperature: float
    max_new_tokens: int
    seed: int
    batch_size: int = 64
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.k < 1 or self.max_new_tokens < 1:
            raise RlhfKitError("sampling: needs at least one answer of at least one token")
        if self.k > 1 and self.temperature == 0:
            raise RlhfKitError(f"sampling: temperature 0 would draw the same answer {self.k} times; use --k 1")

    @property
    def prompts_of_a_chunk(self) -> int:
        """As many prompts as fill a batch."""
        return max(1, self.batch_size // self.k)


def settings_of(recipe: Recipe, **given: float | int | None) -> Settings:
    """The settings given; those that are None as in the recipe's evaluation."""
    own = {
        "k": recipe.evaluate.samples_per_prompt,
        "temperature": recipe.evaluate.temperature,
        "max_new_tokens": recipe.ppo.response_length,
        "seed": recipe.seed,
        "batch_size": recipe.evaluate.per_device_eval_batch_size,
    }
    return Settings(**own | {name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def only_process() -> PartialState:
    """Accelerate's state of this process.

    Raises:
        RlhfKitError: several processes were launched; each would draw the same answers and write the same files.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.num_processes > 1:
        raise RlhfKitError(
            f"launched on {state.num_processes} processes, which would all draw the same answers; "
            "start it without torchrun, or with --num_processes 1"
        )
    return state


def seed_of(seed: int, chunk: int) -> int:
    """64 bits that differ for every seed and chunk."""
    return int(np.random.SeedSequence([seed, chunk]).generate_state(1, np.uint64)[0])


def draw_chunk(
    backbone: Backbone,
    prompts: Sequence[list[int]],
    settings: Settings,
    chunk: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """The tokens of K answers to each prompt of a chunk under the active role, those to the same prompt in a row.

    Args:
        chunk: its number, which decides the random numbers with the seed.
        progress: is told how many answers more are done.
    """
    with autocast(backbone):
        return sample_in_batches(
            backbone,
            [prompt for prompt in prompts for _ in range(settings.k)],
            batch_size=settings.batch_size,
            progress=progress,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            generator=torch.Generator().manual_seed(seed_of(settings.seed, chunk)),
        )
