"""Reward models that say how good drawn answers are, known by name and content before they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_kit.checkpoint import read_manifest
from rlhf_kit.errors import CheckpointError
from rlhf_kit.files import sha256_of
from rlhf_kit.models.sources import is_repository_name
from rlhf_kit.reward_material import known_of
from rlhf_kit.rewards import stage_of
from rlhf_kit.sampling.scoring import Scorer

__all__ = ["Judge", "judge_at"]


def _one() -> float:
    return 1.0


@dataclass(frozen=True)
class Judge:
    """A reward model that is loaded when it is needed: policy and reward model need not be in memory together.

    Attributes:
        name: what it is called in rows and accounts.
        identity: what its scores depend on, as JSON: hashes of its weights, or a name.
        load: gives the model.
        log_odds: by what a difference of scores is to be multiplied to be a log-odds; 1 of models of others.
    """

    name: str
    identity: Any
    load: Callable[[], Scorer]
    log_odds: Callable[[], float] = _one


def judge_at(place: str | Path) -> Judge:
    """The reward model of a run or of its reward stage, of a directory, or of the Hub.

    Raises:
        CheckpointError: a run without a finished reward stage, a damaged one, or neither a directory nor a Hub id.
    """
    stage, path = stage_of(place), Path(place)
    if stage is None and any((path / name).is_dir() for name in ("sft", "ppo")):
        raise CheckpointError(f"{place}: has no finished reward stage; name another run's with --reward")

    if stage is None and not path.exists() and not is_repository_name(str(place)):
        raise CheckpointError(f"{place}: no such directory, and no Hub id (owner/name) either")

    def load() -> Scorer:
        from rlhf_kit.reward_model import RewardModel

        return RewardModel.open(str(stage or place))

    if stage is not None:  # called as its run is, wherever that stands on this machine
        return Judge(stage.resolve().parent.name, read_manifest(stage).files, load, lambda: known_of(stage).log_odds)
    return Judge(str(place), sha256_of(str(path)) if path.is_dir() else None, load)
