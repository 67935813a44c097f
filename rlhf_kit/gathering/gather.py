"""Answers of policies to prompts, put together in a file: each text once, with who gave it."""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_kit.checkpoint import open_work
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.evaluation.judges.ledger import key_of
from rlhf_kit.evaluation.policies import Policy
from rlhf_kit.gathering.answers import answers_of
from rlhf_kit.gathering.selection import Floats, Select, disagreement, most, uncertainty
from rlhf_kit.reasons import NON_BLANK
from rlhf_kit.recipe_rollout import RolloutSection
from rlhf_kit.records import Prompt, sources_of
from rlhf_kit.sampling.drawing import Answer, Progress, Settings, only_process, silent
from rlhf_kit.sampling.judges import Judge
from rlhf_kit.sampling.scoring import distinct, score_answers
from rlhf_kit.sampling.writing import MOST_RANKED, Keep, chosen, mean_score, write_rows

__all__ = ["Gathered", "Wish", "gather"]


@dataclass(frozen=True)
class Wish:
    """What shall be gathered.

    Attributes:
        policies: who answers.
        prompts: each once.
        settings: of the sampling; its `k` is of all policies together.
        least: prompts with fewer answers that differ and are not blank are left out.
        keep: all answers in a prompt row's `meta.responses`; ranked ones by their score in a ranking; or the best one
            as a demonstration.
        judges: reward models, needed but for `all`; the score of an answer is theirs, of several the mean, as log-odds.
        select: by what prompts are chosen; None takes them by chance.
        take: how many rows are kept; None is all.
        server: a vLLM server of the policies' base, which draws; None draws here.
    """

    policies: tuple[Policy, ...]
    prompts: Sequence[Prompt]
    settings: Settings
    least: int = 1
    keep: Keep = "all"
    judges: tuple[Judge, ...] = ()
    select: Select | None = None
    take: int | None = None
    server: RolloutSection | None = None

    def __post_init__(self) -> None:
        if self.keep == "ranked" and not 2 <= self.most <= MOST_RANKED:
            raise RlhfKitError(f"sample: a ranking holds 2 to {MOST_RANKED} answers, not {self.most}")
        if not 1 <= self.least <= self.most:
            raise RlhfKitError(f"sample: --k {self.least}..{self.most}: must go from 1 or more upwards")
        needed = max((self.keep != "all") * 1, {None: 0, "uncertainty": 1, "disagreement": 2}[self.select])
        if len(self.judges) < needed:
            what = f"--select {self.select}" if self.select else "ranked and best answers"
            raise RlhfKitError(
                f"sample: {what}: reward models needed: {needed}, named: {len(self.judges)}; name them with --reward"
            )
        if self.select and self.take is None:
            raise RlhfKitError("sample: --select chooses some of the prompts; say how many with --take")

    @property
    def reward(self) -> str | None:
        """Who scores."""
        return " + ".join(judge.name for judge in self.judges) or None

    @property
    def most(self) -> int:
        """The most answers in a row: K of all together; at temperature 0, which draws the same again, one of each."""
        return len(self.policies) if self.settings.temperature == 0 else self.settings.k

    @property
    def of_each(self) -> Settings:
        """How each policy draws."""
        return replace(self.settings, k=-(-self.settings.k // len(self.policies)))

    @property
    def inputs(self) -> dict[str, Any]:
        """Everything that the rows depend on, as JSON."""
        rewards = [[judge.name, judge.identity] for judge in self.judges]
        return {
            "policies": [[policy.name, policy.identity] for policy in self.policies],
            "prompts": key_of([prompt.model_dump(mode="json") for prompt in self.prompts]),
            "settings": asdict(self.settings),
            "least": self.least,
            "keep": self.keep,
            "rewards": rewards,
            "select": self.select and [self.select, rewards],
            "take": self.take,
            **({} if self.server is None else {"engine": self.server.engine}),
        }


@dataclass(frozen=True)
class Gathered:
    """What became of the prompts.

    Attributes:
        answers: drawn in all.
        eos_rate: share of them that the model ended itself.
        tokens: their mean length, EOS included.
        distinct: of them, texts that are not blank and differ from the others to the same prompt.
        kept: answers in the file, by who gave them; a text that several gave counts for each.
        unended: best answers that were cut off, since none of their prompt ended.
        left_out: prompts with too few answers that differ and are not blank.
        not_taken: further ones that were not chosen.
        reward: who scored; None without reward models.
        score: mean of the answers that are not blank, each as often as it was drawn.
        kept_score: mean of those that stand in the file.
        value: mean of what prompts were selected by, over those that were taken, and over all.
    """

    file: str
    rows: int
    prompts: int
    answers: int
    eos_rate: float
    tokens: float
    distinct: int
    kept: dict[str, int]
    unended: int
    left_out: int
    not_taken: int
    reward: str | None
    score: float | None
    kept_score: float | None
    value: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def gather(wish: Wish, out: Path, *, kept: Path | None = None, progress: Progress = silent) -> Gathered:
    """Draws, puts together, scores, chooses and writes one row a prompt; goes on where the same was interrupted.

    Args:
        kept: where what was drawn is kept by its content and left; by default beside `out`, and gone in the end.

    Raises:
        DataError, CheckpointError: `out` cannot be written.
        ModelError, CheckpointError: a policy or a reward model cannot be loaded.
        EngineError: the server cannot be used; what it has drawn is kept.
    """
    only_process()
    work = open_work(out, wish.inputs)
    where = kept or work
    drawn = answers_of(wish.policies, wish.prompts, wish.of_each, where, server=wish.server, progress=progress)
    merged = [_merged(drawn, place, wish) for place in range(len(wish.prompts))]
    enough = [place for place, row in enumerate(merged) if len(row) >= wish.least]
    rows = [merged[place] for place in enough]
    scores = _scores(wish, [wish.prompts[place] for place in enough], rows, work, progress)
    odds = _log_odds(wish, scores) if wish.select or len(wish.judges) > 1 else scores
    rows = _marked(rows, scores if len(wish.judges) == 1 else odds)
    values = None if wish.select is None else _values(wish.select, odds)
    taken = _taken(wish, values, len(rows))
    in_file = [chosen(wish.keep, rows[place]) for place in taken]
    asked = [wish.prompts[enough[place]] for place in taken]
    written = write_rows(out, zip(asked, in_file, strict=True), wish.keep, wish.most, wish.reward)
    shutil.rmtree(work)
    every = [one for said in drawn for row in said for one in row]
    best = wish.keep == "best"
    return Gathered(
        file=str(out),
        rows=written,
        prompts=len(wish.prompts),
        answers=len(every),
        eos_rate=float(np.mean([one.ended for one in every])),
        tokens=float(np.mean([one.tokens for one in every])),
        distinct=sum(map(len, merged)),
        kept=dict(Counter(who for row in in_file for one in row for who in sources_of(one.source))),
        unended=sum(not row[0].ended for row in in_file if row) if best else 0,
        left_out=len(merged) - len(enough) + len(taken) - written,
        not_taken=len(rows) - len(taken),
        reward=wish.reward,
        score=mean_score(rows),
        # The best one stands there once, however often it was drawn.
        kept_score=mean_score([[replace(one, count=1) for one in row] for row in in_file] if best else in_file),
        value=None if values is None else (float(np.mean([values[p] for p in taken])), float(np.mean(values))),
    )


def _merged(drawn: Sequence[Sequence[Sequence[Answer]]], place: int, wish: Wish) -> list[Answer]:
    """The answers to one prompt that differ and are not blank, policies by turns, as many as its row holds.

    Who comes first changes from prompt to prompt, so that where not all have room nobody is left out more often.
    """
    rows = [said[place] for said in drawn]
    turn = place % len(rows)
    by_turns = [one for together in zip(*rows[turn:], *rows[:turn], strict=True) for one in together]
    said = [one for one in by_turns if re.search(NON_BLANK, one.text)]
    return distinct(said)[: wish.most]


def _scores(
    wish: Wish, prompts: Sequence[Prompt], rows: Sequence[Sequence[Answer]], work: Path, progress: Progress
) -> list[Floats]:
    """Of each prompt what R reward models say of its K answers, (R, K); they are loaded one after another."""
    said: list[list[list[float]]] = []
    for number, judge in enumerate(wish.judges):
        scored = score_answers(
            judge.load(),
            [prompt.prompt for prompt in prompts],
            rows,
            kept=work,
            name=f"scores-{number}" if number else "scores",
            progress=progress,
        )
        said.append([[float(one.score or 0.0) for one in row] for row in scored])
    return [np.array(of_prompt) for of_prompt in zip(*said, strict=True)] if said else [np.empty((0, 0))] * len(rows)


def _log_odds(wish: Wish, scores: Sequence[Floats]) -> list[Floats]:
    """The scores on the scale on which differences are what each model was trained to say."""
    times = np.array([[judge.log_odds()] for judge in wish.judges])
    return [times * said for said in scores]


def _marked(rows: list[list[Answer]], scores: Sequence[Floats]) -> list[list[Answer]]:
    """The answers with their scores, the mean of what several models say; without any as they are."""
    return [
        [replace(one, score=float(mark)) for one, mark in zip(row, said.mean(axis=0), strict=True)]
        if len(said)
        else row
        for row, said in zip(rows, scores, strict=True)
    ]


def _values(select: Select, scores: Sequence[Floats]) -> list[float]:
    value = {"uncertainty": uncertainty, "disagreement": disagreement}[select]
    return [value(said) if said.shape[1] > 1 else 0.0 for said in scores]


def _taken(wish: Wish, values: Sequence[float] | None, rows: int) -> list[int]:
    if wish.take is None or wish.take >= rows:
        return list(range(rows))
    if values is None:
        return sorted(random.Random(wish.settings.seed).sample(range(rows), wish.take))
    return most(values, wish.take)
