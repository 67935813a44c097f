"""From drawn answers to a file: all answers of a prompt, ranked ones, or the best one.

Answers that nobody ranked yet are no ranking, and the format has no kind of their own for them: they stand in the
`meta` of a prompt row, which every reader of prompts takes. The best answers are demonstrations: another round of SFT
on them is rejection sampling (arXiv 2307.09288, section 3.2.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlhf_kit.outputs import Files, json_line, row_of
from rlhf_kit.records import Demonstration, Prompt, Ranking, Record, Response
from rlhf_kit.sampling.drawing import Answer
from rlhf_kit.sampling.scoring import best_of

Keep = Literal["all", "ranked", "best"]
MOST_RANKED = 64


def mean_score(answers: Sequence[Sequence[Answer]]) -> float | None:
    """Over all draws; None where there are no scores."""
    flat = [(answer.score, answer.count) for row in answers for answer in row if answer.score is not None]
    return float(np.average([s for s, _ in flat], weights=[count for _, count in flat])) if flat else None


def chosen(keep: Keep, answers: Sequence[Answer]) -> list[Answer]:
    """The answers of one prompt that stand in its row; none where there is no row: a ranking needs two."""
    if keep == "best":
        best = best_of(answers)
        return [] if best is None else [best]
    return list(answers) if keep == "all" or len(answers) > 1 else []


def write_rows(
    out: Path, kept: Iterable[tuple[Prompt, Sequence[Answer]]], keep: Keep, of: int, reward: str | None
) -> int:
    """Writes a row for each prompt of whose answers some were `chosen`; returns how many.

    Args:
        of: how many answers to a prompt were drawn.
        reward: who scored them.

    Raises:
        DataError: the file cannot be written.
    """
    rows = 0
    with Files([out]) as written:
        for prompt, answers in kept:
            if answers:
                written.write(out, json_line(row_of(_row(keep, prompt, answers, of, str(reward)))))
                rows += 1
    return rows


def _row(keep: Keep, prompt: Prompt, kept: Sequence[Answer], of: int, reward: str) -> Record:
    if keep == "all":
        return prompt_row(prompt, kept)
    return ranking_row(prompt, kept, reward) if keep == "ranked" else demonstration_row(prompt, kept[0], of, reward)


def prompt_row(prompt: Prompt, answers: Sequence[Answer]) -> Prompt:
    """The prompt with all its answers in `meta.responses`, for people to rank: text, ended, tokens, count, and score
    and source where they are known. A `meta.policy` of its own, which would tell who answered, is taken out."""
    responses = [{name: value for name, value in asdict(answer).items() if value is not None} for answer in answers]
    meta = {key: value for key, value in prompt.meta.items() if key != "policy"}
    return prompt.model_copy(update={"meta": {**meta, "responses": responses}})


def ranking_row(prompt: Prompt, answers: Sequence[Answer], reward: str) -> Ranking:
    """The answers ranked by their scores, equal ones tied; `meta.scores` has the scores in the order of the answers."""
    scores = [float(answer.score or 0.0) for answer in answers]
    better = sorted(set(scores), reverse=True)
    responses = tuple(
        Response(text=answer.text, rank=better.index(score) + 1, source=answer.source, ended=answer.ended)
        for answer, score in zip(answers, scores, strict=True)
    )
    meta = {**prompt.meta, "scores": scores}
    return Ranking(responses=responses, labeler=f"reward:{reward}", meta=meta, **_shared(prompt, Ranking))


def demonstration_row(prompt: Prompt, best: Answer, of: int, reward: str) -> Demonstration:
    """The best answer, with its score, how many it is the best of, whether it ended, and who wrote and judged it."""
    said = {"score": best.score, "of": of, "ended": best.ended, "policy": best.source, "reward": reward}
    return Demonstration(completion=best.text, meta={**prompt.meta, **said}, **_shared(prompt, Demonstration))


def _shared(prompt: Prompt, kind: type[Record]) -> dict[str, Any]:
    kept = {"prompt", "category", "kind", "origin", "user_id", "id"} & set(kind.model_fields)
    return {name: getattr(prompt, name) for name in kept}
