"""How fast reward models go stale: what those of earlier rounds make of a round's fresh labels."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_kit.measures import Estimate, bootstrap_mean, pair_accuracy
from rlhf_kit.records import Ranking
from rlhf_kit.reward_evaluation import score_rankings
from rlhf_kit.reward_material import known_of
from rlhf_kit.reward_model import RewardModel
from rlhf_kit.rounds.places import Round
from rlhf_kit.seen import prompt_key

__all__ = ["freshness"]


def freshness(one: Round, rankings: Sequence[Ranking]) -> dict[str, dict[str, float]]:
    """How many of the fresh labels' pairs the reward model of each earlier round orders rightly, by round.

    The answers are of a policy that it has not seen, and PPO may have pushed them to where it errs: this is what tells
    how fast a reward model goes stale (arXiv 2204.05862, section 4.5). Prompts that it was trained on are left out.
    The mean is over prompts, with its bootstrap interval.
    """
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
