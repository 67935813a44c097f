"""An evaluation as JSON: `evaluation.json`, for the page and for machines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_kit import diversity
from rlhf_kit.evaluation.answering import Said
from rlhf_kit.evaluation.evaluated import REWARD, RUBRIC, Evaluated
from rlhf_kit.evaluation.frontier import frontiers
from rlhf_kit.evaluation.gain import gain_in_words, summary
from rlhf_kit.evaluation.policies import PPO, SFT
from rlhf_kit.evaluation.standings import by_policy, standings
from rlhf_kit.measures import Floats
from rlhf_kit.records import Message, Prompt
from rlhf_kit.tournament import Resamples

__all__ = ["VERSION", "to_json"]

VERSION = 1
"""Of the keys; a reader of another version should not guess."""


def to_json(evaluated: Evaluated) -> dict[str, Any]:
    """Every figure with its interval, and the answers themselves; docs/evaluation.md says what each key means."""
    answers, draws, shown = evaluated.answers, evaluated.draws, evaluated.shown
    scores = evaluated.scores
    lengths = np.array([[[float(len(a.text)) for a in row] for row in rows] for rows in answers.values()])
    kl = [evaluated.kl(name) for name in answers]
    measured = {policy.name: diversity.measures(answers[policy.name]) for policy in shown}
    return {
        "version": VERSION,
        "policies": [policy.name for policy in shown],
        "labels": {policy.name: policy.label for policy in evaluated.policies},
        "checkpoints": [policy.name for policy in evaluated.policies if policy.step is not None],
        "prompts_file": evaluated.prompts_file,
        **_settings(evaluated),
        "judges": [
            standings(
                judge,
                evaluated.judgements[judge.name],
                [policy.name for policy in shown],
                lengths.swapaxes(0, 1),
                draws,
                evaluated.settings.seed,
            )
            for judge in evaluated.judges
        ],
        "summary": summary({policy.name: answers[policy.name] for policy in shown}, _shown(scores)),
        "measures": {
            name: {measure: draws.mean(values).as_dict() for measure, values in measures.items()}
            for name, measures in measured.items()
        },
        "changes": _changes(measured, draws),
        "kl": by_policy(list(answers), [None if found is None else draws.mean(found) for found in kl]),
        "frontier": frontiers(evaluated),
        "tax": evaluated.tax,
        "gain": _gain(evaluated, scores.get(REWARD)),
        "reward_gain": _reward_gain(evaluated, scores.get(REWARD)),
        "prompts": _prompts(evaluated),
    }


def _shown(scores: Mapping[str, Mapping[str, Floats]]) -> dict[str, Mapping[str, Floats]]:
    """Under the names that they have beside an answer."""
    return {"score" if judge == REWARD else judge: found for judge, found in scores.items()}


def _settings(evaluated: Evaluated) -> dict[str, Any]:
    settings = evaluated.settings
    return {
        "samples_per_prompt": settings.k,
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "max_new_tokens": settings.max_new_tokens,
        "seed": settings.seed,
        "confidence": evaluated.draws.confidence,
    }


def _changes(measured: Mapping[str, Mapping[str, Floats]], draws: Resamples) -> dict[str, Any]:
    """How far the text measures of each policy are from SFT's, or from the first policy's; paired by prompt."""
    anchor = SFT if SFT in measured else next(iter(measured))
    return {
        name: {
            measure: draws.mean(values - measured[anchor][measure]).as_dict()
            for measure, values in measures.items()
            if measure in measured[anchor]
        }
        for name, measures in measured.items()
        if name != anchor
    }


def _before_and_after(evaluated: Evaluated) -> tuple[str, str] | None:
    """The names of SFT and of the first policy of PPO; None where one is missing."""
    found = [next((p.name for p in evaluated.shown if p.stage == stage), None) for stage in (SFT, PPO)]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def _gain(evaluated: Evaluated, scores: Mapping[str, Floats] | None) -> dict[str, Any]:
    names = _before_and_after(evaluated)
    if scores is None or names is None:
        return {}
    (sft, ppo), answers = names, evaluated.answers
    return gain_in_words(answers[sft], answers[ppo], (scores[sft], scores[ppo]))


def _reward_gain(evaluated: Evaluated, scores: Mapping[str, Floats] | None) -> dict[str, Any] | None:
    """Mean score of PPO minus SFT, in standard deviations of the SFT policy's scores."""
    names = _before_and_after(evaluated)
    if scores is None or names is None:
        return None
    sft, ppo = (scores[name] for name in names)
    return evaluated.draws.mean((ppo.mean(axis=1) - sft.mean(axis=1)) / (float(sft.std()) or 1.0)).as_dict()


def _prompts(evaluated: Evaluated) -> list[dict[str, Any]]:
    scores = evaluated.scores

    def row(policy: str, prompt: int, sample: int, said: Said) -> dict[str, Any]:
        given = {judge: float(found[policy][prompt, sample]) for judge, found in scores.items()}
        marks = {judge: mark for judge, mark in given.items() if not math.isnan(mark)}  # a function may give none
        return {
            "text": said.text,
            "ended": said.ended,
            "tokens": said.tokens,
            "score": marks.pop(REWARD, None),
            "rubric": marks.pop(RUBRIC, None),
            "kl": said.kl,
            "scores": marks,
        }

    return [
        {
            "prompt": _turns(prompt),
            "answers": {
                policy.name: [row(policy.name, i, k, said) for k, said in enumerate(evaluated.answers[policy.name][i])]
                for policy in evaluated.shown
            },
        }
        for i, prompt in enumerate(evaluated.prompts)
    ]


def _turns(prompt: Prompt) -> str | list[dict[str, str]]:
    def turn(message: Message) -> dict[str, str]:
        return {"role": message.role, "content": message.content}

    return prompt.prompt if isinstance(prompt.prompt, str) else [turn(message) for message in prompt.prompt]
