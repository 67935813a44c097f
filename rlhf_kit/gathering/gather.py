"""Answers of several policies to a file of prompts, put together for labelers: each text once, with who gave it.

Policies draw by `evaluation.answering`: base by base, the same sampling and seeds, kept by content, so that what was
interrupted goes on and a policy that answers again draws nothing twice.
"""

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
from rlhf_kit.evaluation.answering import answer, crews
from rlhf_kit.evaluation.judges.ledger import key_of
from rlhf_kit.evaluation.policies import Policy
from rlhf_kit.gathering.selection import Floats, Select, disagreement, most, uncertainty
from rlhf_kit.reasons import NON_BLANK
from rlhf_kit.recipe_rollout import RolloutSection
from rlhf_kit.records import Prompt, sources_of
from rlhf_kit.sampling.drawing import Answer, Progress, Settings, silent
from rlhf_kit.sampling.judges import Judge
from rlhf_kit.sampling.policy import only_process
from rlhf_kit.sampling.scoring import distinct, score_answers
from rlhf_kit.sampling.writing import MOST_RANKED, Keep, chosen, mean_score, write_rows

__all__ = ["Gathered", "Wish", "gather"]

ANSWERS, ADAPTERS = "answers", "adapters"


@dataclass(frozen=True)
class Wish:
    """What shall be gathered.

    Attributes:
        policies: who answers.
        prompts: each once.
        settings: of the sampling; its `k` is the most answers that a prompt's row holds, of all policies together.
        least: prompts with fewer answers that differ and are not blank are left out.
        keep: all answers in a prompt's row, ranked ones, or the best, as in `sampling.sample_file`.
        judges: reward models; the score of an answer is the mean of theirs, as log-odds.
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
        if not 1 <= self.least <= self.settings.k <= MOST_RANKED:
            raise RlhfKitError(
                f"sample: --k {self.least}..{self.settings.k}: must go from 1 or more up to {MOST_RANKED} at most"
            )
        needed = max((self.keep != "all") * 1, {None: 0, "uncertainty": 1, "disagreement": 2}[self.select])
        if len(self.judges) < needed:
            what = f"--select {self.select}" if self.select else "ranked and best answers"
            raise RlhfKitError(
                f"sample: {what}: reward models needed: {needed}, named: {len(self.judges)}; name them with --reward"
            )
        if self.select and self.take is None:
            raise RlhfKitError("sample: --select chooses some of the prompts; say how many with --take")

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
        distinct: of them, texts that differ from the others to the same prompt.
        kept: answers in the file, by who gave them; a text that several gave counts for each.
        left_out: prompts with too few answers that differ and are not blank.
        not_taken: further ones that were not chosen.
        score: mean of all distinct answers; None without reward models.
        value: mean of what prompts were selected by, over those that were taken, and over all.
    """

    file: str
    rows: int
    prompts: int
    answers: int
    distinct: int
    kept: dict[str, int]
    left_out: int
    not_taken: int
    score: float | None
    value: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def gather(wish: Wish, out: Path, *, kept: Path | None = None, progress: Progress = silent) -> Gathered:
    """Draws, puts together, scores, chooses and writes one row a prompt; goes on where the same was interrupted.

    Args:
        kept: where what was drawn is kept by its content and left; by default beside `out`, and gone in the end.

    Raises:
        DataError: `out` cannot be written.
        ModelError, CheckpointError: a policy or a reward model cannot be loaded.
        EngineError: the server cannot be used; what it has drawn is kept.
    """
    only_process()
    out.parent.mkdir(parents=True, exist_ok=True)
    work = open_work(out, wish.inputs)
    drawn = _drawn(wish, work if kept is None else kept, progress)
    merged = [_merged(drawn, place, wish) for place in range(len(wish.prompts))]
    enough = [place for place, row in enumerate(merged) if len(row) >= wish.least]
    rows = [merged[place] for place in enough]
    scores = _scores(wish, [wish.prompts[place] for place in enough], rows, work, progress)
    if wish.judges:
        rows = [
            [replace(one, score=float(s)) for one, s in zip(row, said.mean(axis=0), strict=True)]
            for row, said in zip(rows, scores, strict=True)
        ]
    values = _values(wish.select, scores)
    taken = _taken(wish, values, len(rows))
    kept_rows = [(wish.prompts[enough[place]], chosen(wish.keep, rows[place])) for place in taken]
    reward = " + ".join(judge.name for judge in wish.judges)
    written = write_rows(out, kept_rows, wish.keep, wish.settings.k, None, reward)
    shutil.rmtree(work)
    return Gathered(
        file=str(out),
        rows=written,
        prompts=len(wish.prompts),
        answers=sum(len(row) for said in drawn for row in said),
        distinct=sum(map(len, merged)),
        kept=dict(Counter(who for _, row in kept_rows for one in row for who in sources_of(one.source))),
        left_out=len(merged) - len(enough) + len(taken) - written,
        not_taken=len(rows) - len(taken),
        score=mean_score(rows),
        value=None if values is None else (float(np.mean([values[p] for p in taken])), float(np.mean(values))),
    )


def _drawn(wish: Wish, kept: Path, progress: Progress) -> list[list[list[Answer]]]:
    """Of each policy, in their order, its answers to each prompt."""
    found: dict[str, list[list[Answer]]] = {}
    total = len(wish.prompts) * wish.of_each.k
    # A policy as such, whatever stage it is of: what it is held to would be loaded and asked too.
    others = [replace(policy, stage="other") for policy in wish.policies]
    for crew in crews(others, wish.server, kept / ADAPTERS):
        said = answer(
            crew, wish.prompts, wish.of_each, kept / ANSWERS, lambda who, done: progress(f"{who} answers", done, total)
        )
        for who, rows in said.items():
            found[who] = [[Answer(a.text, a.ended, a.tokens, source=who) for a in row] for row in rows]
    return [found[policy.name] for policy in wish.policies]


def _merged(drawn: Sequence[Sequence[Sequence[Answer]]], place: int, wish: Wish) -> list[Answer]:
    """The answers to one prompt that differ and are not blank, policies by turns, as many as its row holds.

    Who comes first changes from prompt to prompt, so that where not all have room nobody is left out more often.
    """
    rows = [said[place] for said in drawn]
    turn = place % len(rows)
    by_turns = [one for together in zip(*rows[turn:], *rows[:turn], strict=True) for one in together]
    said = [one for one in by_turns if re.search(NON_BLANK, one.text)]
    return distinct(said)[: wish.settings.k]


def _scores(
    wish: Wish, prompts: Sequence[Prompt], rows: Sequence[Sequence[Answer]], work: Path, progress: Progress
) -> list[Floats]:
    """Of each prompt what R reward models say of its K answers, (R, K) log-odds; they are loaded one after another."""
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
        times = judge.log_odds()
        said.append([[times * float(one.score or 0.0) for one in row] for row in scored])
    return [np.array(of_prompt) for of_prompt in zip(*said, strict=True)] if said else [np.empty((0, 0))] * len(rows)


def _values(select: Select | None, scores: Sequence[Floats]) -> list[float] | None:
    if select is None:
        return None
    value = {"uncertainty": uncertainty, "disagreement": disagreement}[select]
    return [value(said) if said.shape[1] > 1 else 0.0 for said in scores]


def _taken(wish: Wish, values: Sequence[float] | None, rows: int) -> list[int]:
    if wish.take is None or wish.take >= rows:
        return list(range(rows))
    if values is None:
        return sorted(random.Random(wish.settings.seed).sample(range(rows), wish.take))
    return most(values, wish.take)
