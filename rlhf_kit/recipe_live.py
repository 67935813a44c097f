"""The `ppo.live` section of a recipe: people who score the answers of an update while PPO waits for them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .recipe_sections import Name, Section

__all__ = ["LIVE", "LiveSection"]

LIVE = "live"
"""The name of that source in `ppo.reward_funcs`."""


class LiveSection(Section):
    """How people are asked for the scores of fresh answers (`reward_funcs: live`; after TAMER, Knox and Stone 2009)."""

    store: Name | None = Field(
        default=None,
        description="The file through which answers and scores go, which rlhf-kit label opens; by default live.sqlite "
        "in output_dir.",
    )
    timeout: float = Field(
        default=3600.0,
        gt=0,
        description="Seconds in which nobody scores anything until it gives up. Each score starts them anew, and they "
        "do not run while labeling is paused.",
    )
    on_timeout: Literal["stop", "skip"] = Field(
        default="stop",
        description="stop: the run is saved and ends, and the same command goes on. skip: what has no score does "
        "without.",
    )
    overlap: int = Field(default=1, ge=1, description="Labelers who score each answer; their mean counts.")
