"""What a reward model says of the answers, and which is the best.

Best-of-N by the reward model's score is the simplest way to use one (arXiv 2112.09332).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from rlhf_kit.checkpoint import read_json, write_json
from rlhf_kit.errors import ModelError
from rlhf_kit.reasons import NON_BLANK
from rlhf_kit.records import Conversation, joined_sources
from rlhf_kit.sampling.drawing import Answer, Progress, silent


class Scorer(Protocol):
    """What is asked of a `RewardModel`."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    def score(
        self,
        prompts: Sequence[Conversation],
        responses: Sequence[str],
        *,
        ended: Sequence[bool] | None = None,
        progress: Callable[[int], None] = ...,
    ) -> Tensor:
        """(N,) float32 on the CPU."""


def distinct(answers: Sequence[Answer]) -> list[Answer]:
    """Each text once, with its count and all who gave it, in the order of the first ones; one that ended stands for one
    that did not."""
    found: dict[str, Answer] = {}
    for answer in answers:
        known = found.get(answer.text)
        if known is None:
            found[answer.text] = answer
            continue
        stands = answer if answer.ended and not known.ended else known
        count, source = answer.count + known.count, joined_sources(known.source, answer.source)
        found[answer.text] = replace(stands, count=count, source=source)
    return list(found.values())


def score_answers(
    reward: Scorer,
    prompts: Sequence[Conversation],
    answers: Sequence[Sequence[Answer]],
    *,
    kept: Path | None = None,
    name: str = "scores",
    chunk: int = 64,
    progress: Progress = silent,
) -> list[list[Answer]]:
    """The same answers with their scores.

    Args:
        kept: a directory where the scores of each chunk of prompts are kept, and taken from if they are there.

    Raises:
        ModelError: a score is not a number.
    """
    scored: list[list[Answer]] = []
    total = sum(map(len, answers))
    for number, start in enumerate(range(0, len(prompts), chunk)):
        rows = answers[start : start + chunk]
        asked = [prompt for prompt, row in zip(prompts[start : start + chunk], rows, strict=True) for _ in row]
        flat = [answer for row in rows for answer in row]
        file = None if kept is None else kept / f"{name}.{number:05}.json"
        if file is not None and file.is_file():
            scores = read_json(file)
            progress(name, len(flat), total)
        else:
            scores = _scores(reward, asked, flat, lambda done: progress(name, done, total))
            if file is not None:
                write_json(file, scores)
        marked = iter([replace(answer, score=score) for answer, score in zip(flat, scores, strict=True)])
        scored += [[next(marked) for _ in row] for row in rows]
    return scored


def _scores(
    reward: Scorer, prompts: Sequence[Conversation], answers: Sequence[Answer], progress: Callable[[int], None]
) -> list[float]:
    said = reward.score(prompts, [a.text for a in answers], ended=[a.ended for a in answers], progress=progress)
    scores = [float(str(value)) for value in said.float().numpy()]  # the shortest decimals that say the same float32
    for prompt, score in zip(prompts, scores, strict=True):
        if not math.isfinite(score):
            asked = prompt if isinstance(prompt, str) else prompt[-1].content
            raise ModelError(f"{reward.name}: gives the score {score} to an answer to {asked[:60]!r}")
    return scores


def best_of(answers: Sequence[Answer]) -> Answer | None:
    """The answer with the highest score, the first of equals, among those that ended; among all, if none did.

    Blank ones are none: nothing could be learnt from them.
    """
    said = [answer for answer in answers if re.search(NON_BLANK, answer.text)]
    ended = [answer for answer in said if answer.ended]
    return max(ended or said, key=lambda answer: -math.inf if answer.score is None else answer.score, default=None)
