"""From the scores of several sources to one score an answer: normalised and clipped each, weighted, summed, scaled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerState

from rlhf_kit import launch
from rlhf_kit.controllers import RunningMoments, batch_moments, normalised
from rlhf_kit.errors import DataError, Problem, RlhfKitError
from rlhf_kit.ppo.answers import Answers
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.live import LiveReward
from rlhf_kit.ppo.reward_sources import FunctionReward, RewardSource


@dataclass(frozen=True)
class Scored:
    """What the sources said of B answers.

    Attributes:
        total: (B,) float32, the score that is learned from, before penalties.
        raw: (B,) of each source by name, as it said it; NaN where it does not apply.
    """

    total: Tensor
    raw: dict[str, Tensor]


class Rewards:
    """All sources of a run with what is done to their scores; `PPOConfig` says what that is.

    Raises:
        DataError: as many weights as sources are needed.
    """

    def __init__(self, sources: Sequence[RewardSource], config: PPOConfig) -> None:
        weights = config.reward_weights or [1.0] * len(sources)
        if len(weights) != len(sources):
            words = f"has {len(weights)} weights for {len(sources)} reward_funcs"
            raise DataError([Problem("PPOConfig", "reward_weights", words)])
        self.sources, self.weights, self.config = list(sources), weights, config
        self.moments = {source.name: RunningMoments() for source in sources}
        self.total_moments = RunningMoments()

    def raw(self, answers: Answers, *, held_out: bool = False) -> dict[str, Tensor]:
        """What each source says, (B,) float32 on the CPU, by name.

        Args:
            held_out: the answers are only looked at, not learned from: people are not asked.

        Raises:
            RlhfKitError: a source fails, or says something that is not finite; the sample is named.
        """
        found = {}
        for source in self.sources:
            if held_out and isinstance(source, LiveReward):
                continue
            said = source(answers).float().cpu()
            if (wrong := said.isinf() | (said.isnan() & (not source.abstains))).any():
                place = int(wrong.nonzero()[0])
                raise RlhfKitError(f"ppo: {source.name!r} gives {float(said[place])} to {answers.name(place)}")
            found[source.name] = said
        return found

    def total(self, raw: dict[str, Tensor], *, learn: bool = True) -> Tensor:
        """(B,) one score an answer from what the sources said; those that were not asked are left out.

        Args:
            raw: of one source at least.
            learn: False leaves the running moments as they are; for evaluation.
        """
        config, total = self.config, torch.zeros(())
        for source, weight in zip(self.sources, self.weights, strict=True):
            if source.name not in raw:
                continue
            said = raw[source.name]
            if config.reward_normalization == "batch":
                said = normalised(said, batch_moments(said))
            elif config.reward_normalization == "running":
                if learn:
                    self.moments[source.name].update(said)
                said = normalised(said, self.moments[source.name])
            total = total + weight * _clipped(said, config.reward_clip).nan_to_num(nan=0.0)
        if config.scale_rewards == "running":
            if learn:
                self.total_moments.update(total)
            total = total / self.total_moments.std
        return _clipped(total, config.score_clip)

    def hand_over(self, state: TrainerState, wants_to_end: Callable[[], bool]) -> None:
        """Lets functions read where the run stands, and who waits for people whether the run was told to end."""
        for source in self.sources:
            if isinstance(source, FunctionReward):
                source.state = state
            elif isinstance(source, LiveReward):
                source.update, source.wants_to_end = state.global_step, wants_to_end

    def logged(self) -> dict[str, float]:
        """What functions have logged since this was last called, on all processes."""
        said = defaultdict[str, list[float]](list)
        for source in (source for source in self.sources if isinstance(source, FunctionReward)):
            for metrics in launch.gathered([dict(source.metrics)]):
                for name, values in metrics.items():
                    said[name] += values
            source.metrics.clear()
        return {name: sum(values) / len(values) for name, values in said.items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"total": self.total_moments.state(), **{f"source.{n}": m.state() for n, m in self.moments.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        self.total_moments = RunningMoments(**state["total"])
        self.moments = {name: RunningMoments(**state[f"source.{name}"]) for name in self.moments}


def means_of(raw: dict[str, Tensor]) -> dict[str, float]:
    """The mean of each source for the log, over the answers that it applies to; none where it applies to no answer."""
    return {f"rewards/{name}": float(said.nanmean()) for name, said in raw.items() if not said.isnan().all()}


def _clipped(values: Tensor, limit: float | None) -> Tensor:
    return values if limit is None else values.clamp(-limit, limit)
