"""What PPO bought with its KL: scores against KL over the checkpoints of a run, and where the bargain turns.

The reward model is a proxy: optimised far enough, its score goes on rising while what people want falls (Gao et al.
2022, arXiv 2210.10760). Two judges show where: the reward model, and one that training did not see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_kit.evaluation.evaluated import REWARD, Evaluated
from rlhf_kit.evaluation.policies import BASE, PPO, Policy, hash_of
from rlhf_kit.evaluation.standings import mean_scores
from rlhf_kit.measures import Floats
from rlhf_kit.tournament import Resamples

__all__ = ["Point", "frontier", "frontiers"]


@dataclass(frozen=True)
class Point:
    """A policy on the way of its training.

    Attributes:
        name: of the policy.
        step: updates of PPO so far; 0 is where it started.
        kl: (P,) nats a response from where it started, the mean of the answers to each prompt.
        scores: (P,) of each judge that scores, by its name: the mean of the answers to each prompt.
    """

    name: str
    step: int
    kl: Floats
    scores: Mapping[str, Floats]


def frontiers(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Of each run whose PPO was evaluated at more than one place, from where it started."""
    policies, found = evaluated.policies, []
    for run in dict.fromkeys(policy.run for policy in policies if policy.stage == PPO):
        trained = [policy for policy in policies if policy.run == run and policy.stage == PPO]
        start = _start(policies, trained[0])
        if start is None or all(policy.step is None for policy in trained):
            continue
        found_scores = {name: mean_scores(judgement) for name, judgement in evaluated.judgements.items()}
        columns = {name: scores for name, scores in found_scores.items() if scores is not None}
        points = [
            Point(policy.name, step, _kl(evaluated, policy, start), _of(columns, evaluated.names.index(policy.name)))
            for policy, step in _steps(start, trained)
        ]
        gold = next((name for name in columns if name != REWARD), None)
        proxy = REWARD if REWARD in columns else None
        found.append(frontier(_called(run, trained), points, proxy, gold, evaluated.draws))
    return found


def _called(run: Path | None, trained: Sequence[Policy]) -> str:
    """The label that a person gave the run's last policy, else the run's directory."""
    given = next((policy.label for policy in trained if policy.step is None and policy.name != PPO), None)
    return given or (run.resolve().name if run else "")


def _start(policies: Sequence[Policy], trained: Policy) -> Policy | None:
    """The policy that PPO started from, where it is among those evaluated."""
    same = (p for p in policies if p.step is None and p.model == trained.model)
    return next((p for p in same if (hash_of(p.adapter) or BASE) == trained.reference), None)


def _steps(start: Policy, trained: Sequence[Policy]) -> list[tuple[Policy, int]]:
    """Each with its step; the stage's own adapter last, unless a checkpoint is the same."""
    kept = [policy for policy in trained if policy.step is not None]
    last = [policy for policy in trained if policy.step is None]
    new = [policy for policy in last if all(policy.identity != other.identity for other in kept)]
    after = max(policy.updates or 0 for policy in kept) + 1
    return [(start, 0), *((p, after if p.updates is None else p.updates) for p in (*kept, *new))]


def _kl(evaluated: Evaluated, policy: Policy, start: Policy) -> Floats:
    kl = None if policy is start else evaluated.kl(policy.name)
    return np.zeros(len(evaluated.prompts)) if kl is None else kl


def _of(columns: Mapping[str, Floats], place: int) -> dict[str, Floats]:
    return {name: column[:, place] for name, column in columns.items()}


def frontier(
    run: str, points: Sequence[Point], proxy: str | None, gold: str | None, draws: Resamples
) -> dict[str, Any]:
    """The points in the order of their steps, and whether the proxy was over-optimised.

    Over-optimisation begins after the best checkpoint by the gold judge if a later one is worse by it, the interval of
    the difference below 0, while the proxy's score has not fallen. The best of several is a little too good to be true,
    so a fall that is barely sure is no proof.

    Args:
        points: at least one.
        proxy: the judge that PPO was trained on; None where it is not among the judges.
        gold: another one.
    """
    points = sorted(points, key=lambda point: point.step)
    turn = None if proxy is None or gold is None else _turn(points, proxy, gold, draws)
    return {
        "run": run,
        "points": [
            {
                "policy": point.name,
                "step": point.step,
                "kl": draws.mean(point.kl).as_dict(),
                "scores": {name: draws.mean(scores).as_dict() for name, scores in point.scores.items()},
            }
            for point in points
        ],
        "over_optimised": turn,
        "words": _words(points, proxy, gold, turn, draws),
    }


def _turn(points: Sequence[Point], proxy: str, gold: str, draws: Resamples) -> dict[str, Any] | None:
    best = max(points, key=lambda point: float(np.nanmean(point.scores[gold])))
    for point in points[points.index(best) + 1 :]:
        change = draws.mean(point.scores[gold] - best.scores[gold])
        rise = float(np.nanmean(point.scores[proxy] - best.scores[proxy]))
        if change.high < 0 and rise >= 0:
            kl = float(np.nanmean(best.kl))
            return {"proxy": proxy, "gold": gold, "step": best.step, "kl": kl, "change": change.as_dict()}
    return None


def _words(
    points: Sequence[Point], proxy: str | None, gold: str | None, turn: dict[str, Any] | None, draws: Resamples
) -> str:
    if len(points) < 3:
        return (
            "Too few checkpoints to see a curve: keep some with ppo.keep_checkpoints and evaluate with --checkpoints."
        )
    if proxy is None or gold is None:
        return (
            "Over-optimisation shows only where two judges are asked: the reward model that PPO was trained on, and "
            "another one that scores."
        )
    if turn is not None:
        return (
            f"Over-optimisation begins after update {turn['step']}, at {turn['kl']:.1f} nats: from there on {gold} "
            f"falls ({turn['change']['value']:+.2f} [{turn['change']['low']:+.2f}, {turn['change']['high']:+.2f}]) "
            f"while {proxy} does not."
        )
    last = points[-1]
    gain = draws.mean(last.scores[gold] - points[0].scores[gold])
    return (
        f"No over-optimisation up to {float(np.nanmean(last.kl)):.1f} nats: no checkpoint is surely worse by {gold} "
        f"than the best before it; from the first point to the last {gold} changes by {gain.value:+.2f} "
        f"[{gain.low:+.2f}, {gain.high:+.2f}]."
    )
