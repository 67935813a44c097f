"""What every sampler is given: the same prompts of mixed length, the same model and adapter, the same settings."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from rlhf_kit import Recipe, load, load_backbone
from rlhf_kit.data import Encoder
from rlhf_kit.models import Backbone
from rlhf_kit.models.loading import lora_config
from rlhf_kit.records import Message

__all__ = ["POLICY", "Asked", "backbone_with", "prompts_of"]

POLICY = "policy"


@dataclass(frozen=True)
class Asked:
    """One round's work.

    Attributes:
        prompts: token ids.
        most: tokens of a response at most.
        temperature: of the sampling, from the whole vocabulary.
        beside: rows that are answered side by side.
    """

    prompts: list[list[int]]
    most: int
    temperature: float
    beside: int


def prompts_of(recipe: Recipe, encoder: Encoder, rows: int, shortest: int, longest: int) -> list[list[int]]:
    """The quickstart's prompts, behind as many earlier turns (its demonstrations) as make their lengths evenly spread,
    as near as that goes. Long and short ones stand beside each other."""
    asked = [prompt.prompt for prompt in load(recipe.data.prompts, "prompt") if isinstance(prompt.prompt, str)]
    turns = [
        (Message(role="user", content=one.prompt), Message(role="assistant", content=one.completion))
        for one in load(recipe.data.demonstrations, "demonstration")
        if isinstance(one.prompt, str)
    ]
    lengths = [shortest + (longest - shortest) * row // max(1, rows - 1) for row in range(rows)]
    random.Random(0).shuffle(lengths)
    return [_as_long(encoder, asked[row % len(asked)], turns, length) for row, length in enumerate(lengths)]


def _as_long(encoder: Encoder, asked: str, turns: list[tuple[Message, Message]], length: int) -> list[int]:
    """The prompt behind the turn, or two, that come nearest to the length and are not above it."""
    last, before = Message(role="user", content=asked), list[Message]()
    found = encoder.prompt(asked)
    for _ in range(2):
        longer = [encoder.prompt((*before, *turn, last)) for turn in turns]
        fitting = [turn for turn, one in enumerate(longer) if len(one) <= length]
        if not fitting:
            break
        best = max(fitting, key=lambda turn: len(longer[turn]))
        before, found = [*before, *turns[best]], longer[best]
    return found


def backbone_with(recipe: Recipe, run: Path | None, scratch: Path) -> tuple[Backbone, Path]:
    """The quickstart's base under a run's policy, and the policy's directory.

    Args:
        run: a finished quickstart; its PPO policy, or its SFT adapter. None: an untrained adapter of the recipe's
            shape, which costs the same and answers as the base does; it is put into `scratch`.

    Raises:
        SystemExit: the run has neither.
    """
    backbone = load_backbone(recipe.model)
    if run is None:
        backbone.add_adapter(POLICY, lora_config(recipe.lora))
        backbone.save_adapter(POLICY, scratch / POLICY)
        return backbone, scratch / POLICY
    place = next((run / name for name in ("ppo", "sft") if (run / name / "adapter_config.json").is_file()), None)
    if place is None:
        raise SystemExit(f"{run}: has no finished ppo or sft")
    backbone.load_adapter(POLICY, place)
    return backbone, place
