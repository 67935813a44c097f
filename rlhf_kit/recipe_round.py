"""The `round` section of a recipe: how often-repeated steps 2 and 3 get their labels, and what they start from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from .recipe_sections import Name, Section

__all__ = ["PAGE", "RoundSection"]

PAGE = "page"
"""`round.labels` where people rank on the page."""


class RoundSection(Section):
    """One round: sample, label, train the reward model and the policy anew, compare with all rounds before
    (arXiv 2203.02155, section 3.1: steps 2 and 3 can be iterated continuously)."""

    prompts: Name | None = Field(default=None, description="A file of prompts; data.prompts where it is left out.")
    prompts_per_round: int = Field(default=64, ge=1, description="Prompts whose answers are labelled in a round.")
    k: int = Field(default=6, ge=2, le=64, description="Answers to a prompt at most, of all policies together.")
    least: int = Field(
        default=2, ge=2, le=64, description="Prompts with fewer answers that differ and are not blank are left out."
    )
    temperature: float | None = Field(default=None, gt=0, description="Of sampling; evaluate.temperature by default.")
    policies: list[Literal["newest", "start", "base"]] = Field(
        default=["newest"],
        min_length=1,
        description="Who answers: the newest policy, the one that the rounds started from, the raw base.",
    )
    select: Literal["uncertainty", "disagreement"] | None = Field(
        default=None,
        description="Labels the prompts on whose answers the reward model of the round before is least sure, or on "
        "which its ensemble disagrees most (round.ensemble of 2 or more); where there is none yet, by chance.",
    )
    candidates: int = Field(
        default=4, ge=1, description="With select: so many prompts are sampled for each that is labelled."
    )
    labels: Name | list[Name] = Field(
        default=PAGE,
        description="Who ranks: page (people, in the browser), a file of rankings of these answers (.jsonl; {round} in "
        "its name is the number of the round), rubric (data.rubric), a function that scores (path.py:function), a "
        "reward model (a run, a directory, a Hub id), or several of these, whose mean counts.",
    )
    labelers: list[Name] = Field(default_factory=list, description="With page: who gets a link.")
    overlap: int = Field(default=1, ge=1, description="With page: labelers of each task.")
    guidelines: Name | None = Field(default=None, description="With page: a Markdown file that labelers read.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=0, description="With page: 0 is the round's own, the same each time."
    )
    ensemble: int = Field(
        default=1, ge=1, description="Reward models of a round, each with a seed of its own; the first is PPO's."
    )
    start: Literal["sft", "last"] = Field(
        default="sft", description="What PPO starts from and is held to: SFT's policy, or that of the round before."
    )

    @model_validator(mode="after")
    def _check_least(self) -> RoundSection:
        if self.least > self.k:
            context = {"at": ("least",), "k": self.k}
            raise PydanticCustomError("least", "must be at most k, which is {k}", context)
        if self.select == "disagreement" and self.ensemble < 2:
            words = "disagreement needs several reward models: set round.ensemble to 2 or more"
            raise PydanticCustomError("select", words, {"at": ("select",)})
        return self

    @property
    def judges(self) -> tuple[str, ...]:
        """`labels` as a tuple."""
        return (self.labels,) if isinstance(self.labels, str) else tuple(self.labels)
