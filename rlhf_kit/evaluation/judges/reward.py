"""Reward models as judges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rlhf_kit.checkpoint import read_manifest
from rlhf_kit.data import beginning
from rlhf_kit.errors import CheckpointError, RlhfKitError
from rlhf_kit.evaluation.judges.base import Answer, Judgement, Progress, Question
from rlhf_kit.evaluation.judges.ledger import Ledger, key_of
from rlhf_kit.files import sha256_of
from rlhf_kit.measures import Floats
from rlhf_kit.records import Conversation, prompt_name
from rlhf_kit.reward_model import RewardModel
from rlhf_kit.rewards import stage_of
from rlhf_kit.tournament import Verdicts

__all__ = ["LEDGER", "RewardJudge", "Score", "table_of"]

LEDGER = "scores.jsonl"
Score = Callable[[Sequence[Conversation], Sequence[str], Sequence[bool], Progress], Sequence[float]]
"""Prompts, responses and whether each has ended, to a score for each; is told how many are done."""


@dataclass(frozen=True)
class RewardJudge:
    """A reward model, or whatever else scores one answer at a time.

    Each score is kept by its content, so that the same answer is scored once, whoever gave it.

    Attributes:
        identity: what its scores depend on, such as a hash of its weights.
        score: is called once, with all that is new; a model may be loaded in it and be gone afterwards.
    """

    name: str
    what: str
    identity: str
    score: Score
    kind: str = field(default="reward", init=False)
    compares: bool = field(default=False, init=False)

    @classmethod
    def of_run(cls, run: Path, *, name: str = "reward") -> RewardJudge:
        """The reward model of a run, or of its reward stage.

        Raises:
            CheckpointError: there is no finished reward stage.
        """
        stage = stage_of(run)
        if stage is None:
            raise CheckpointError(f"{run}: no finished reward stage in it; name the output_dir of a run")
        return cls.of_model(str(stage), name=name, what=f"the reward model of {stage.resolve().parent.name}")

    @classmethod
    def of_model(cls, place: str, *, name: str, what: str) -> RewardJudge:
        """What `RewardModel.open` opens: a run, a directory, a Hub id; loaded when there is something new to score."""

        def score(
            prompts: Sequence[Conversation], texts: Sequence[str], ended: Sequence[bool], progress: Progress
        ) -> Sequence[float]:
            model = RewardModel.open(place)
            scores: list[float] = model.score(prompts, texts, ended=ended, progress=progress).tolist()
            return scores

        return cls(name, what, _identity(place), score)

    def total(self, questions: Sequence[Question]) -> int:
        """The number of answers."""
        return sum(len(answers) for question in questions for answers in question.answers)

    def __call__(self, questions: Sequence[Question], kept: Path, progress: Progress) -> Judgement:
        """Its verdict on each answer is its score; `kept` gets the file `scores.jsonl`.

        Raises:
            RlhfKitError: a score is not a finite number, or there is not one for each answer.
            ModelError, CheckpointError: the model cannot be loaded.
        """
        ledger = Ledger(kept / LEDGER, lambda entry: isinstance(entry.get("score"), float))
        asked = {
            key: (question.prompt, answer)
            for question in questions
            for row in question.answers
            for answer in row
            if ledger.get(key := self._key(question, answer)) is None
        }
        again = self.total(questions) - len(asked)
        if again:
            progress(again)
        if asked:
            prompts, answers = [prompt for prompt, _ in asked.values()], [answer for _, answer in asked.values()]
            said = self.score(prompts, [a.text for a in answers], [a.ended for a in answers], progress)
            ledger.keep(self._entries(list(asked), prompts, said))
        scores = table_of([[[self._of(ledger, self._key(q, a)) for a in row] for row in q.answers] for q in questions])
        return Judgement(Verdicts.of_scores(scores), scores)

    def _key(self, question: Question, answer: Answer) -> str:
        return key_of(self.identity, prompt_name(question.prompt), answer.text, answer.ended)

    def _of(self, ledger: Ledger, key: str) -> float | None:
        entry = ledger.get(key)
        return None if entry is None else float(entry["score"])

    def _entries(
        self, keys: Sequence[str], prompts: Sequence[Conversation], said: Sequence[float]
    ) -> dict[str, dict[str, float | str]]:
        if len(said) != len(keys):
            raise RlhfKitError(f"{self.what}: gave {len(said)} scores for {len(keys)} answers")
        scores = [float(score) for score in said]
        for prompt, score in zip(prompts, scores, strict=True):
            if not math.isfinite(score):
                raise RlhfKitError(f"{self.what}: gives the score {score} to an answer to {beginning(prompt)!r}")
        return {key: {"judge": self.name, "score": score} for key, score in zip(keys, scores, strict=True)}


def _identity(place: str) -> str:
    """By content where it lies here; a Hub id by its name."""
    stage = stage_of(place)
    if stage is not None:
        return key_of(read_manifest(stage).files)
    return sha256_of(place) if Path(place).is_dir() else place


def table_of(rows: Sequence[Sequence[Sequence[float | None]]]) -> Floats:
    """(P, N, K) of what is said of each answer; NaN where nothing is, and where a policy gave fewer answers."""
    most = max((len(answers) for row in rows for answers in row), default=0)
    table = np.full((len(rows), max(map(len, rows), default=0), most), np.nan)
    for p, row in enumerate(rows):
        for n, answers in enumerate(row):
            table[p, n, : len(answers)] = [np.nan if score is None else score for score in answers]
    return table
