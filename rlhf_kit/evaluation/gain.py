"""What PPO's gain over SFT consists of, in numbers and in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_kit.evaluation.answering import Said
from rlhf_kit.measures import Floats, explain_gain

__all__ = ["gain_in_words", "summary"]

Answers = Mapping[str, Sequence[Sequence[Said]]]
"""By policy: for each prompt its answers."""


def summary(answers: Answers, scores: Mapping[str, Mapping[str, Floats]]) -> dict[str, dict[str, float]]:
    """Means of each policy that a reader can check by eye.

    Args:
        scores: by judge and policy, (P, K).
    """
    rows = {}
    for name, by_prompt in answers.items():
        flat = [answer for row in by_prompt for answer in row]
        rows[name] = {
            **{judge: float(np.nanmean(found[name])) for judge, found in scores.items() if _any(found[name])},
            "tokens": float(np.mean([a.tokens for a in flat])),
            "eos_rate": float(np.mean([a.ended for a in flat])),
            "sentences": float(np.mean([len(re.findall(r"[.!?。！？]+(?:\s|$)", a.text)) for a in flat])),
            "distinct": float(np.mean([len({a.text for a in row}) / len(row) for row in by_prompt])),
        }
    return rows


def _any(scores: Floats) -> bool:
    """A function may have no opinion of a whole policy."""
    return not np.isnan(scores).all()


def gain_in_words(
    before: Sequence[Sequence[Said]], after: Sequence[Sequence[Said]], scores: tuple[Floats, Floats]
) -> dict[str, Any]:
    """How much of the rise of the mean score lengths and endings explain, and what is left.

    Args:
        before: SFT's answers; after: PPO's.
        scores: (P, K) of the reward model for both.
    """
    sft, ppo = ([answer for row in rows for answer in row] for rows in (before, after))
    parts = explain_gain(
        *((_features(group), found.ravel().tolist()) for group, found in zip((sft, ppo), scores, strict=True))
    )
    rows = summary({"sft": before, "ppo": after}, {})
    old, new = rows["sft"], rows["ppo"]
    total = sum(parts.values())
    words = [
        f"The mean score rose by {total:.2f} standard deviations of SFT's scores."
        if total > 0
        else f"The mean score fell by {-total:.2f} standard deviations of SFT's scores.",
        f"Answers went from {old['tokens']:.1f} to {new['tokens']:.1f} tokens and from {old['sentences']:.1f} "
        f"to {new['sentences']:.1f} sentences on average; {new['eos_rate']:.0%} end by themselves "
        f"({old['eos_rate']:.0%} before).",
        f"Of the change, {parts['length']:+.2f} is what these lengths and {parts['ended']:+.2f} what these endings "
        f"were worth among SFT's own answers; {parts['rest']:+.2f} is neither: manner and content.",
        f"Of the samples of one prompt {new['distinct']:.0%} are distinct ({old['distinct']:.0%} before).",
    ]
    return {"parts": parts, "words": words}


def _features(answers: Sequence[Said]) -> dict[str, list[list[float]]]:
    return {
        "length": [[float(a.tokens), float(a.tokens) ** 2] for a in answers],
        "ended": [[float(a.ended)] for a in answers],
    }
