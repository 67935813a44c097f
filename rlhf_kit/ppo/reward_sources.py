"""What scores sampled answers: an adapter on the policy's base, a model of its own, a Python function."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from transformers import TrainerState

from rlhf_kit import rewards
from rlhf_kit.data import one_line
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.models import Backbone
from rlhf_kit.ppo.answers import Answers
from rlhf_kit.reward_model import RewardModel


class RewardSource(Protocol):
    """Something that scores answers.

    Attributes:
        name: under which its scores are logged.
        abstains: whether NaN is something that it says: that it does not apply. Of another source it is a mistake.
    """

    name: str
    abstains: ClassVar[bool]

    def __call__(self, answers: Answers) -> Tensor:
        """(B,) float32 on any device; NaN where the source does not apply, if it abstains."""
        ...


@dataclass
class AdapterReward:
    """The kit's reward model as an adapter with a head on the policy's own base: no second model in memory."""

    backbone: Backbone
    micro_batch_size: int
    adapter: str = rewards.REWARD
    name: str = rewards.REWARD
    abstains: ClassVar[bool] = False

    @torch.no_grad()
    def __call__(self, answers: Answers) -> Tensor:
        """Read at the last token of the response, from the policy's own tokens."""
        parts = []
        self.backbone.eval()
        for rows in torch.arange(len(answers)).split(self.micro_batch_size):
            with rewards.autocast(self.backbone):
                parts.append(rewards.score_batch(self.backbone, answers.sequences.select(rows), self.adapter))
        return torch.cat(parts)


@dataclass
class TokenReward:
    """A sequence classification model that is given the policy's tokens, as TRL's `reward_model` was.

    Args:
        model: with one label and the policy's vocabulary.
    """

    model: nn.Module
    name: str
    micro_batch_size: int
    abstains: ClassVar[bool] = False

    @torch.no_grad()
    def __call__(self, answers: Answers) -> Tensor:
        """Read at the last token of the response."""
        parts = []
        device = next(self.model.parameters()).device
        decoder = self.model.get_decoder()
        self.model.eval()
        for rows in torch.arange(len(answers)).split(self.micro_batch_size):
            part = answers.sequences.select(rows).to(device)
            positions = (part.attention_mask.long().cumsum(1) - 1).clamp(min=0)
            hidden = decoder(
                input_ids=part.input_ids,
                attention_mask=part.attention_mask.long(),
                position_ids=positions,
                use_cache=False,
            ).last_hidden_state[part.ends]
            parts.append(self.model.score(hidden)[:, 0].float())
        return torch.cat(parts)


@dataclass
class ModelReward:
    """A reward model with a base, a tokenizer and a chat template of its own, given texts."""

    model: RewardModel
    name: str
    abstains: ClassVar[bool] = False

    def __call__(self, answers: Answers) -> Tensor:
        """Scores of `RewardModel`; plain texts are given to a classifier of others as they are."""
        if all(row.plain for row in answers.rows) and self.model.takes_texts:
            return self.model.score_texts(
                [str(row.shown) + t for row, t in zip(answers.rows, answers.texts, strict=True)]
            )
        prompts = [row.shown for row in answers.rows]
        return self.model.score(prompts, answers.texts, ended=answers.ended.tolist())


@dataclass
class FunctionReward:
    """A Python function with the signature of TRL's: called by keyword with `prompts`, `completions`,
    `completion_ids`, the dataset's other columns, `trainer_state`, `log_extra` and `log_metric`; it returns a number an
    answer, or None where it does not apply. It may be a coroutine function, and may leave out what it does not use.

    Attributes:
        state: of the trainer, for the function to read.
        metrics: what it has logged with `log_metric` since it was last emptied.
    """

    function: Callable[..., Any]
    name: str
    state: TrainerState | None = None
    abstains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.metrics: dict[str, list[float]] = {}

    def __call__(self, answers: Answers) -> Tensor:
        """Its numbers.

        Raises:
            RlhfKitError: it raises, or returns something else than a finite number an answer; the sample is named.
        """
        try:
            said = self.function(**self._arguments(answers))
            if inspect.isawaitable(said):
                said = _finished(said)
            values = list(said)
        except Exception as failure:
            kind = type(failure).__name__
            raise RlhfKitError(
                f"ppo: the reward function {self.name!r} failed on {answers.name(0)} and those beside it: "
                f"{kind}: {one_line(str(failure), 200)}"
            ) from failure
        if len(values) != len(answers):
            raise RlhfKitError(
                f"ppo: the reward function {self.name!r} returned {len(values)} numbers for {len(answers)} answers, "
                f"the first of which is {answers.name(0)}; it must return one for each"
            )
        return torch.tensor([self._number(value, answers, place) for place, value in enumerate(values)])

    def _number(self, value: Any, answers: Answers, place: int) -> float:
        if value is None:
            return math.nan
        try:
            found = float(value)
        except (TypeError, ValueError):
            found = math.inf
        if not math.isfinite(found):
            raise RlhfKitError(
                f"ppo: the reward function {self.name!r} returned {one_line(repr(value))} for {answers.name(place)}; "
                "it must return a finite number, or None where it does not apply"
            )
        return found

    def _arguments(self, answers: Answers) -> dict[str, Any]:
        given = {
            **answers.columns,
            "prompts": [row.shown for row in answers.rows],
            "completions": answers.completions,
            "completion_ids": answers.completion_ids,
            "trainer_state": self.state,
            "log_extra": lambda column, values: None,
            "log_metric": lambda name, value: self.metrics.setdefault(name, []).append(float(value)),
        }
        parameters = inspect.signature(self.function).parameters.values()
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            return given
        taken = {parameter.name for parameter in parameters}
        return {name: value for name, value in given.items() if name in taken}


def _finished(awaitable: Awaitable[Any]) -> Any:
    """What a coroutine returns; run in a thread of its own, because a notebook has a loop running in this one."""

    async def wait() -> Any:
        return await awaitable

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, wait()).result()


def names_of(sources: Sequence[str]) -> list[str]:
    """The same names, numbered where two are alike: each source is logged by its own."""
    return [
        name if list(sources).count(name) == 1 else f"{name}_{list(sources)[: place + 1].count(name)}"
        for place, name in enumerate(sources)
    ]
