"""The evaluation as a step of a recipe: base, SFT and PPO, judged by the run's reward model and its rubric.

The reward model is what PPO was trained to please, so its verdict says whether PPO did its work; the rubric neither
trained nor ranked anything, so it says whether that work was worth doing.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_kit.checkpoint import write_json
from rlhf_kit.data import prompt_texts
from rlhf_kit.evaluation.evaluated import REWARD, RUBRIC
from rlhf_kit.evaluation.evaluating import Wish, evaluate
from rlhf_kit.evaluation.judges.base import Judge
from rlhf_kit.evaluation.judges.function import FunctionJudge
from rlhf_kit.evaluation.judges.reward import RewardJudge
from rlhf_kit.evaluation.policies import BASE, PPO, SFT, of_run
from rlhf_kit.measures import pooled_pair_accuracy
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Prompt, Ranking
from rlhf_kit.sampling.drawing import settings_of
from rlhf_kit.user_code import load_function

__all__ = ["EVALUATION", "evaluate_run", "own_judges"]

log = logging.getLogger(__name__)

EVALUATION = "evaluation.json"
_KEPT = "kept"


def own_judges(recipe: Recipe, reward: Path | None) -> list[Judge]:
    """The judges that a run has of its own: its reward model, where there is one, and its rubric.

    Args:
        reward: the directory of the reward stage.
    """
    found: list[Judge] = []
    if reward is not None:
        found.append(RewardJudge.of_run(reward, name=REWARD))
    if recipe.data.rubric is not None:
        found.append(FunctionJudge.named(recipe.data.rubric, name=RUBRIC))
    return found


def evaluate_run(
    recipe: Recipe, prompts: Sequence[Prompt], parents: dict[str, Path], rankings: Sequence[Ranking], work: Path
) -> dict[str, dict[str, Any]]:
    """Writes `evaluation.json` into `work`; returns the figures of each stage.

    What is done is kept in `work` until then, so that an interrupted evaluation goes on.

    Args:
        parents: the directories of the finished stages.
        rankings: of the labelers; how many of their pairs the rubric orders as they did is one of the figures.
    """
    wish = Wish(
        tuple(of_run(recipe, {name: parents[name] for name in (SFT, PPO) if name in parents})),
        prompts,
        Path(recipe.data.prompts_heldout or "").name,
        settings_of(recipe),
        own_judges(recipe, parents.get(REWARD)),
        recipe.evaluate.bootstrap,
        recipe.evaluate.confidence,
    )
    kept = work / _KEPT
    found = evaluate(wish, kept)
    found["rubric_name"] = recipe.data.rubric and recipe.data.rubric.rpartition(":")[2]
    write_json(work / EVALUATION, found)
    figures = _figures(found)
    agreement = _rubric_agreement(recipe, rankings)
    if agreement is not None:
        figures[REWARD] = {"rubric_agreement": agreement}
        log.info("evaluation: the rubric orders %.1f %% of the labelers' pairs as they did", 100 * agreement)
    shutil.rmtree(kept)
    return figures


def _figures(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What goes into `metrics.json` of each stage."""
    rates: dict[str, Any] = next((judge["win_rates"] for judge in found["judges"] if judge["name"] == RUBRIC), {})
    figures: dict[str, dict[str, Any]] = {SFT: {}, PPO: {}}
    for stage, before in ((SFT, BASE), (PPO, SFT)):
        rate = rates.get(stage, {}).get(before)
        if rate is not None:
            interval = {key: rate[key] for key in ("value", "low", "high")}
            figures[stage] |= {f"win_rate_vs_{before}": rate["value"], f"win_rate_vs_{before}_interval": interval}
    if PPO not in found["policies"]:
        return figures
    means = found["summary"][PPO]
    figures[PPO] |= {"kl": found["kl"][PPO]["value"], "eos_rate": means["eos_rate"], "tokens": means["tokens"]}
    if (gain := found["reward_gain"]) is not None:
        figures[PPO] |= {"heldout_reward_gain": gain["value"], "heldout_reward_gain_interval": gain}
    return figures


def _rubric_agreement(recipe: Recipe, rankings: Sequence[Ranking]) -> float | None:
    """How many of the labelers' pairs the rubric orders as they did; it was not used to make them."""
    if recipe.data.rubric is None or not rankings:
        return None
    rubric = load_function(recipe.data.rubric, "data.rubric")
    texts = prompt_texts([Prompt(prompt=r.prompt) for r in rankings])
    marks = [
        [float(m) for m in rubric(prompts=[text] * len(r.responses), completions=[a.text for a in r.responses])]
        for text, r in zip(texts, rankings, strict=True)
    ]
    return pooled_pair_accuracy(marks, [[a.rank for a in r.responses] for r in rankings])
