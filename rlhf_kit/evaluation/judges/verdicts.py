"""What people said: rankings of the policies' answers as a judge."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from rlhf_kit import files
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.evaluation.judges.base import Judgement, Progress, Question
from rlhf_kit.evaluation.judges.sheet import holds_sheet, read_sheet
from rlhf_kit.measures import Floats
from rlhf_kit.records import Flags, Ranking, Response, prompt_name
from rlhf_kit.tournament import Verdicts

__all__ = ["RankingsJudge"]

log = logging.getLogger(__name__)

_Slot = tuple[int, int, Response]
"""A policy, which of its answers, and what a ranking says of it."""


@dataclass(frozen=True)
class RankingsJudge:
    """Rankings of the answers, by any number of people.

    They are matched by prompt and by the text of the answers. Each ranking of the same two answers counts, by its
    `weight`; their mean is the verdict. Answers that are the same have the same rank, and tie.

    Attributes:
        file: where the rankings are from, for people.
        axis: which ranks count: those on this axis, such as truthful; None for the ranks over all.
    """

    name: str
    what: str
    file: str
    rankings: tuple[Ranking, ...]
    axis: str | None = None
    kind: str = field(default="verdicts", init=False)
    compares: bool = field(default=True, init=False)

    @classmethod
    def read(cls, file: str, *, name: str | None = None, axis: str | None = None) -> RankingsJudge:
        """A file of rankings, or of a sheet in which people have written `rank` beside answers.

        Raises:
            DataError: every bad row.
        """
        rankings = tuple(read_sheet(file) if holds_sheet(file) else files.load(file, "ranking"))
        people = len({ranking.labeler for ranking in rankings} - {None})
        by = f" by {people} people" if people > 1 else ""
        on = f" on the axis {axis}" if axis else ""
        stem = Path(file).name.partition(".")[0] + (f"-{axis}" if axis else "")
        return cls(name or stem, f"the rankings in {Path(file).name}{by}{on}", file, rankings, axis)

    def total(self, questions: Sequence[Question]) -> int:
        """The number of pairs of policies on all prompts."""
        return sum(len(q.answers) * (len(q.answers) - 1) // 2 for q in questions)

    def __call__(self, questions: Sequence[Question], kept: Path, progress: Progress) -> Judgement:
        """A verdict on all answers that a ranking orders; `missing` counts pairs of policies on a prompt without one.

        Flags are those of the rankings' answers, by the names of the fields of `records.Flags`.

        Raises:
            RlhfKitError: none of the rankings is of these answers.
        """
        places = defaultdict[object, list[int]](list)
        for p, question in enumerate(questions):
            places[prompt_name(question.prompt)].append(p)
        votes, marks, without = _Votes(), dict[str, _Votes](), Counter[str]()
        for ranking in self.rankings:
            weight = 1.0 if ranking.weight is None else ranking.weight
            asked = places.get(prompt_name(ranking.prompt), [])
            found = [(p, self._slots(ranking, questions[p])) for p in asked]
            pairs = [(p, one, other) for p, slots in found for one, other in combinations(slots, 2)]
            pairs = [(p, one, other) for p, one, other in pairs if one[0] != other[0]]
            without["prompt" if not asked else "answers" if not pairs else "nothing"] += 1
            for p, one, other in pairs:
                first, second = self._rank(one[2]), self._rank(other[2])
                votes.add((p, one[0], other[0], one[1], other[1]), (first < second) + 0.5 * (first == second), weight)
            for p, slots in found:
                _mark(marks, p, slots, weight)
        self._tell(without)
        rows = votes.means()
        progress(self.total(questions))
        prompt, ours, theirs, our_answer, their_answer = np.asarray(list(rows), dtype=np.int64).reshape(-1, 5).T
        outcome = np.asarray(list(rows.values()), dtype=np.float64)
        verdicts = Verdicts(prompt, ours, theirs, our_answer, their_answer, outcome)
        missing = self.total(questions) - len({row[:3] for row in rows})
        return Judgement(verdicts, flags=_shares(marks, questions) or None, missing=missing)

    def _rank(self, response: Response) -> int:
        return response.rank if self.axis is None else (response.axes or {})[self.axis]

    def _slots(self, ranking: Ranking, question: Question) -> list[_Slot]:
        """The policies' answers that the ranking is of, policies in order."""
        said = {r.text: r for r in ranking.responses if self.axis is None or self.axis in (r.axes or {})}
        return [
            (n, k, said[answer.text])
            for n, answers in enumerate(question.answers)
            for k, answer in enumerate(answers)
            if answer.text in said
        ]

    def _tell(self, without: Counter[str]) -> None:
        of = f"of {len(self.rankings)} rankings"
        if not without["nothing"]:
            axis = f" on the axis {self.axis}" if self.axis else ""
            raise RlhfKitError(
                f"{self.file}: none {of} orders answers of two of these policies{axis}: {without['prompt']} are to "
                f"other prompts, {without['answers']} of other answers or of those of one policy; rank the answers of "
                "this evaluation, which its sheet holds, and leave their texts as they are"
            )
        if without["prompt"]:
            log.warning("%s: %d %s are to prompts that were not asked", self.file, without["prompt"], of)
        if without["answers"]:
            log.warning("%s: %d %s order no answers of two of the policies", self.file, without["answers"], of)


class _Votes:
    """Weighted means by key."""

    def __init__(self) -> None:
        self._sums = defaultdict[tuple[int, ...], float](float)
        self._weights = defaultdict[tuple[int, ...], float](float)

    def add(self, key: tuple[int, ...], value: float, weight: float) -> None:
        self._sums[key] += weight * value
        self._weights[key] += weight

    def means(self) -> dict[tuple[int, ...], float]:
        return {key: total / self._weights[key] for key, total in self._sums.items()}


def _mark(marks: dict[str, _Votes], prompt: int, slots: Sequence[_Slot], weight: float) -> None:
    for n, k, response in slots:
        for flag in Flags.model_fields if response.flags is not None else ():
            if (value := getattr(response.flags, flag)) is not None:
                marks.setdefault(flag, _Votes()).add((prompt, n, k), float(value), weight)


def _shares(marks: dict[str, _Votes], questions: Sequence[Question]) -> dict[str, Floats]:
    """By flag (P, N): the mean over a policy's marked answers, NaN where none is."""
    found = {}
    for flag in Flags.model_fields:
        if flag in marks:
            by_policy = defaultdict[tuple[int, ...], list[float]](list)
            for (p, n, _), share in marks[flag].means().items():
                by_policy[p, n].append(share)
            found[flag] = np.full((len(questions), max(len(q.answers) for q in questions)), np.nan)
            for place, shares in by_policy.items():
                found[flag][place] = np.mean(shares)
    return found
