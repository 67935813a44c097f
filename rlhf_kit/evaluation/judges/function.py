"""Python functions as judges: of one answer, or of two."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_kit.data import beginning, one_line, prompt_texts
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.evaluation.judges.base import Judgement, Progress, Question
from rlhf_kit.evaluation.judges.pairs import pairs_of, verdicts_of
from rlhf_kit.evaluation.judges.reward import table_of
from rlhf_kit.records import Prompt
from rlhf_kit.tournament import Verdicts
from rlhf_kit.user_code import load_function

__all__ = ["OTHERS", "FunctionJudge"]

OTHERS = "others"
"""The parameter by which a function says that it compares."""


@dataclass(frozen=True)
class FunctionJudge:
    """A function that is called by keyword as TRL calls reward functions.

    It gets `prompts`, `completions` and the columns of the prompts' rows, as far as its signature takes them, and
    returns a finite number an answer, more for a better one, or None where it does not apply. One with a parameter
    `others` gets another policy's answers there and returns a number above 0 where the completion is better, below 0
    where the other is, and 0 for a tie; it is asked in both orders.

    Attributes:
        texts: conversations are shown as one text and answers as plain texts, as a recipe's `data.rubric` gets them.
            Otherwise, as in PPO and TRL, a conversation is a list of turns and an answer to it a list of one.
    """

    name: str
    what: str
    function: Callable[..., Any]
    texts: bool = False
    kind: str = field(default="function", init=False)

    @classmethod
    def named(cls, place: str, *, name: str | None = None, texts: bool = True) -> FunctionJudge:
        """The function `path.py:function` or `module:function`, called by its own name where no other is given.

        Raises:
            DataError: no such file, module or function.
        """
        function = load_function(place, "judge")
        return cls(name or place.rpartition(":")[2], f"the function {Path(place).name}", function, texts)

    @property
    def compares(self) -> bool:
        """Whether it is shown two answers."""
        return OTHERS in inspect.signature(self.function).parameters

    def total(self, questions: Sequence[Question]) -> int:
        """The number of answers, or of comparisons, both orders counted."""
        if self.compares:
            return 2 * len(pairs_of(questions))
        return sum(len(answers) for question in questions for answers in question.answers)

    def __call__(self, questions: Sequence[Question], kept: Path, progress: Progress) -> Judgement:
        """Asks all at once, or each order at once; keeps nothing, because nobody knows what a function depends on.

        Raises:
            RlhfKitError: it raises, or returns something else than it should; the function and the prompt are named.
        """
        if self.compares:
            return self._compare(questions, progress)
        places = [
            (p, n, k) for p, q in enumerate(questions) for n, row in enumerate(q.answers) for k in range(len(row))
        ]
        asked = [questions[p] for p, _, _ in places]
        said = self._ask(asked, completions=[questions[p].answers[n][k].text for p, n, k in places])
        progress(len(places))
        numbers = iter(said)
        scores = table_of([[[next(numbers) for _ in answers] for answers in q.answers] for q in questions])
        if places and all(number is None for number in said):
            raise self._wrong("returned None for every answer; it must apply to some")
        return Judgement(Verdicts.of_scores(scores), scores)

    def _compare(self, questions: Sequence[Question], progress: Progress) -> Judgement:
        pairs = pairs_of(questions)
        asked = [questions[pair.prompt] for pair in pairs]
        ours, theirs = (
            [questions[p.prompt].answers[n][p.answer].text for p, n in zip(pairs, policies, strict=True)]
            for policies in ([p.ours for p in pairs], [p.theirs for p in pairs])
        )
        said: dict[tuple[int, str, str], float | None] = {}
        for first, second in ((ours, theirs), (theirs, ours)):
            values = self._ask(asked, completions=first, others=second)
            progress(len(pairs))
            for pair, one, other, value in zip(pairs, first, second, values, strict=True):
                said[pair.prompt, one, other] = None if value is None else (value > 0) + 0.5 * (value == 0)
        verdicts, missing = verdicts_of(questions, pairs, lambda p, one, other: said[p, one, other])
        return Judgement(verdicts, missing=missing)

    def _ask(self, asked: Sequence[Question], **answers: list[str]) -> list[float | None]:
        if not asked:
            return []
        try:
            said = list(self.function(**self._arguments(asked, answers)))
        except Exception as failure:
            raise self._wrong(f"raised {type(failure).__name__}: {one_line(str(failure), 200)}") from failure
        if len(said) != len(asked):
            raise self._wrong(f"returned {len(said)} numbers for {len(asked)} answers; it must return one for each")
        return [self._number(value, question) for value, question in zip(said, asked, strict=True)]

    def _number(self, value: Any, question: Question) -> float | None:
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self._wrong(
                f"returned {one_line(repr(value))} for an answer to {beginning(question.prompt)!r}; it must return a "
                "finite number, or None where it does not apply"
            )
        return number

    def _arguments(self, asked: Sequence[Question], answers: dict[str, list[str]]) -> dict[str, Any]:
        given: dict[str, Any] = {
            name: [question.columns.get(name) for question in asked] for question in asked for name in question.columns
        }
        if self.texts:
            given["prompts"] = prompt_texts([Prompt(prompt=question.prompt) for question in asked])
            given |= answers
        else:
            given["prompts"] = [
                q.prompt if isinstance(q.prompt, str) else [turn.model_dump() for turn in q.prompt] for q in asked
            ]
            given |= {name: list(map(_shown, asked, texts)) for name, texts in answers.items()}
        parameters = inspect.signature(self.function).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return given
        return {name: value for name, value in given.items() if name in parameters}

    def _wrong(self, said: str) -> RlhfKitError:
        return RlhfKitError(f"the judge {self.name!r} ({self.what}) {said}")


def _shown(question: Question, text: str) -> str | list[dict[str, str]]:
    return text if isinstance(question.prompt, str) else [{"role": "assistant", "content": text}]
