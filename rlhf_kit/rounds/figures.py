"""What a round has brought, in numbers: how strong its policy is, how far it went, how fast reward models go stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_kit import files
from rlhf_kit.checkpoint import read_manifest
from rlhf_kit.evaluation.evaluated import REWARD, RUBRIC
from rlhf_kit.measures import Estimate, bootstrap_mean, pair_accuracy
from rlhf_kit.records import Ranking
from rlhf_kit.reward_evaluation import score_rankings
from rlhf_kit.reward_material import known_of
from rlhf_kit.reward_model import RewardModel
from rlhf_kit.rounds.places import Round
from rlhf_kit.seen import prompt_key

__all__ = ["figures", "judge_of"]


def figures(one: Round, evaluation: dict[str, Any], labels: Path) -> dict[str, Any]:
    """What `round.json` says of a finished round.

    Args:
        evaluation: of all rounds so far.
        labels: the round's fresh rankings.
    """
    name, judge = one.name, judge_of(evaluation)
    rates = judge["win_rates"].get(name, {})
    return {
        "round": one.number,
        "judge": judge["name"],
        "elo": {who: judge["elo"].get(who) for who in evaluation["policies"]},
        "win_rates": {other: rates.get(other) for other in evaluation["policies"] if other != name},
        "kl": evaluation["kl"].get(name),
        "eos_rate": evaluation["summary"][name]["eos_rate"],
        "tokens": evaluation["summary"][name]["tokens"],
        "reward_heldout": _heldout(one),
        "reward_fresh": freshness(one, labels),
        "start": one.whole.round.start,
    }


def judge_of(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The judge that rounds are compared by: the rubric, which trained nothing; else the newest reward model."""
    judges: dict[str, dict[str, Any]] = {judge["name"]: judge for judge in evaluation["judges"]}
    return judges.get(RUBRIC) or judges.get(REWARD) or next(iter(judges.values()))


def _heldout(one: Round) -> dict[str, float] | None:
    """The accuracy of the round's reward model on prompts that were kept from it, of all rounds so far."""
    found = read_manifest(one.directory / REWARD).metrics.get("heldout_accuracy_by_prompt")
    return found if isinstance(found, dict) else None


def freshness(one: Round, labels: Path) -> dict[str, dict[str, float]]:
    """How many of the fresh labels' pairs the reward model of each earlier round orders rightly, by round.

    The answers are of a policy that it has not seen, and PPO may have pushed them to where it errs: this is what tells
    how fast a reward model goes stale (arXiv 2204.05862, section 4.5). Prompts that it was trained on are left out.
    The mean is over prompts, with its bootstrap interval.
    """
    rankings = [record for record in files.load(str(labels), "ranking") if isinstance(record, Ranking)]
    found = {}
    for other in one.earlier:
        if not other.rewards:
            continue
        stage = other.rewards[0]
        seen = known_of(stage).prompts or frozenset()
        new = [ranking for ranking in rankings if prompt_key(ranking.prompt) not in seen and ranking.pairs]
        if new:
            found[other.name] = _accuracy(str(stage), new).as_dict()
    return found


def _accuracy(reward: str, rankings: list[Ranking]) -> Estimate:
    scored = score_rankings(RewardModel.open(reward), rankings)
    counted = [pair_accuracy(one.scores, [r.rank for r in one.record.responses]) for one in scored]
    return bootstrap_mean([right / pairs for right, pairs in counted])
