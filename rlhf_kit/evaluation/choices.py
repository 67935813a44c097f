"""Questions with several answers to choose from, of one's own: how often a policy finds the right answer likeliest.

The stand-in for lm-eval where there is no network, scored as lm-eval scores a task of output type `multiple_choice`:
the choices are not shown, each is written after the question, and the likeliest one is the policy's choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, cast

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from rlhf_kit.codes import severity_of
from rlhf_kit.errors import DataError, Problem
from rlhf_kit.evaluation.tax import Items, kept_items, names_of, nats
from rlhf_kit.files import iter_rows, sha256_of
from rlhf_kit.models import Backbone
from rlhf_kit.reasons import NON_BLANK, field_of, findings, reason_of

__all__ = ["Question", "choices_tax", "load_questions", "log_likelihoods", "right"]

_IGNORED = -100
_HINTS = {
    "question": "every row needs its question",
    "choices": "a question needs 2 choices or more",
    "answer": "the place of the right choice, counted from 0",
}
NonBlank = Annotated[str, Field(pattern=NON_BLANK)]


class Question(BaseModel):
    """One question; a row of the file."""

    # Strict, as the records are: neither "2" nor 2.0 is the place 2.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    question: NonBlank
    choices: Annotated[tuple[NonBlank, ...], Strict(False), Field(min_length=2)]
    answer: Annotated[int, Field(ge=0)]
    """The place of the right choice, counted from 0."""
    id: str | None = None
    category: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Question:
        for place, choice in enumerate(self.choices):
            if (first := self.choices.index(choice)) < place:
                context = {"first": first, "at": ("choices", place)}
                raise PydanticCustomError("twin", "the same as choice {first}; one of the two cannot be right", context)
        if self.answer >= len(self.choices):
            context = {"answer": self.answer, "last": len(self.choices) - 1, "at": ("answer",)}
            words = "must be at most {last}, not {answer}: the place of the right choice, counted from 0"
            raise PydanticCustomError("beyond", words, context)
        return self


def load_questions(source: str) -> list[Question]:
    """The questions of a source.

    Raises:
        DataError: every problem; that a question or an id stands twice is one of them.
    """
    questions, problems, seen = list[Question](), list[Problem](), dict[tuple[str, object], str]()
    for row in iter_rows(source):
        if not isinstance(row.value, dict):
            problems += [row.value] if row.value is not None and severity_of(row.value.code) == "error" else []
            continue
        try:
            question = Question.model_validate(row.value)
        except ValidationError as error:
            problems += [Problem(row.where, field_of(e), reason_of(e, Question, _HINTS)) for e in findings(error)]
            continue
        # "Which of these is a fruit?" may be asked of several choices.
        for field, value in (("question", (question.question, *question.choices)), ("id", question.id)):
            if value is not None and (first := seen.setdefault((field, value), row.where)) != row.where:
                problems.append(Problem(row.where, field, f"stands in {first} already"))
        questions.append(question)
    if not questions and not problems:
        problems.append(Problem(source, "", "holds no rows"))
    if problems:
        raise DataError(problems)
    return questions


def choices_tax(
    backbone: Backbone,
    roles: Mapping[str, str | None],
    sources: Sequence[str],
    kept: Path,
    identities: Mapping[str, str],
    *,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, list[Items]]:
    """The accuracy of each policy on files of questions: lm-eval's `acc_norm`, see `right`.

    Args:
        roles: by the policy's name, the adapter that plays it; None is the base.
        sources: files of questions.
        kept: the directory for what has been measured already.
        identities: by the policy's name, a hash of everything that decides what it says.
        progress: is called with the number of questions done.

    Returns:
        For each policy, the items of each source, in the order given.

    Raises:
        DataError: every problem of all sources.
    """
    questions, problems = dict[str, list[Question]](), list[Problem]()
    for source in sources:
        try:
            questions[source] = load_questions(source)
        except DataError as failure:
            problems += failure.problems
    if problems:
        raise DataError(problems)
    hashes = {source: sha256_of(source) for source in sources}
    found: dict[str, list[Items]] = {policy: [] for policy in roles}
    for policy, role in roles.items():
        for source, name in names_of(sources).items():
            key = {"questions": hashes[source], "policy": identities[policy], "metric": "acc_norm"}
            measure = partial(_measure, backbone, role, name, questions[source], batch_size)
            found[policy] += [replace(items, name=name) for items in kept_items(kept, "choices", key, measure)]
            progress(len(questions[source]))
    return found


def _measure(
    backbone: Backbone, role: str | None, name: str, questions: Sequence[Question], batch_size: int
) -> list[Items]:
    with backbone.role(role):
        likelihoods = log_likelihoods(backbone, questions, batch_size)
    values = tuple(right(question, row) for question, row in zip(questions, likelihoods, strict=True))
    return [Items(name, "acc_norm", values, (1.0,) * len(values))]


def log_likelihoods(backbone: Backbone, questions: Sequence[Question], batch_size: int = 16) -> list[list[float]]:
    """log p(" " + choice | "Question: ...\\nAnswer:") of each choice in nats, under the active role.

    Plain text without a chat template, as in pretraining: what the base knows is asked for, not how it converses. Text
    is cut into tokens as lm-eval cuts it: question and choice together, the choice's are what the question's leave.
    What the context does not hold is cut off at the beginning.
    """
    limit, items = backbone.context_length, []
    for question in questions:
        context = f"Question: {question.question}\nAnswer:"
        before = len(_ids(backbone, context))
        for choice in question.choices:
            ids = _ids(backbone, f"{context} {choice}")
            labels = [_IGNORED] * before + ids[before:]
            items.append({"input_ids": ids[-limit:], "labels": labels[-limit:]})
    values = iter(nats(backbone, items, batch_size))
    return [[-next(values) for _ in question.choices] for question in questions]


def _ids(backbone: Backbone, text: str) -> list[int]:
    return list(cast("list[int]", backbone.tokenizer(text)["input_ids"]))


def right(question: Question, likelihoods: Sequence[float]) -> float:
    """1 where the right choice is the likeliest for its length in characters, lm-eval's `acc_norm`; else 0.

    Without the length, the shortest choice would mostly win. Where m choices share the first place and the right one is
    among them, it is 1 / m: lm-eval takes the first of them, which would make the order of the choices count.
    """
    scores = [value / len(choice) for value, choice in zip(likelihoods, question.choices, strict=True)]
    best = Counter(scores)[max(scores)]
    return 1.0 / best if scores[question.answer] == max(scores) else 0.0
