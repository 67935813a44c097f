"""What a labeler says, as the page sends it: strict, and bounded in every size.

Answers are named by the letters of the order in which they were shown, A first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator
from pydantic.functional_validators import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from rlhf_kit.checks.labelers import dense
from rlhf_kit.errors import DataError, Problem
from rlhf_kit.reasons import NON_BLANK, field_of, findings, reason_of
from rlhf_kit.records import Flags

from .tasks import LETTERS, Kind

__all__ = [
    "AXES",
    "FLAGS",
    "SCALE",
    "SKIP_REASONS",
    "AnswerReply",
    "CompareReply",
    "DemonstrationReply",
    "Example",
    "PromptReply",
    "RankReply",
    "RateReply",
    "Reply",
    "check_reply",
    "dense_axes",
    "parse_reply",
]

AXES = ("helpful", "truthful", "harmless")
FLAGS = tuple(Flags.model_fields)
SCALE = (1, 7)
SKIP_REASONS = ("unclear", "all_bad", "too_hard", "harmful", "broken", "other")
MOST_NOTE = 4_000
MOST_TEXT = 50_000
"""Characters."""


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _known(names: tuple[str, ...]) -> AfterValidator:
    def check(value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name not in names:
                context = {"at": (name,), "known": ", ".join(names)}
                raise PydanticCustomError("unknown_name", "unknown; known are {known}", context)
        return value

    return AfterValidator(check)


def _line_ends(value: Any) -> Any:
    return value.replace("\r\n", "\n").replace("\r", "\n") if isinstance(value, str) else value


_Note = Annotated[str, Field(max_length=MOST_NOTE)]
_Written = Annotated[str, BeforeValidator(_line_ends), Field(pattern=NON_BLANK, max_length=MOST_TEXT)]
_Mark = Annotated[int, Field(ge=SCALE[0], le=SCALE[1])]
_Place = Annotated[int, Field(ge=1, le=len(LETTERS))]
_Key = Annotated[str, Field(pattern=r"^[A-Z]$")]
_Flags = Annotated[dict[str, bool], _known(FLAGS)]


class AnswerReply(_Reply):
    """What is said of one of several answers."""

    rank: _Place
    """1 = best; equal ranks are a tie, and gaps mean nothing."""
    overall: _Mark | None = None
    flags: _Flags = Field(default_factory=dict)
    axes: Annotated[dict[str, _Place], _known(AXES)] = Field(default_factory=dict)
    """Its ranks on single axes."""


class RankReply(_Reply):
    """Several answers in order."""

    answers: Annotated[dict[_Key, AnswerReply], Field(min_length=2, max_length=len(LETTERS))]
    note: _Note = ""


class CompareReply(_Reply):
    """Which of two answers is better."""

    better: Literal["A", "B", "tie"]
    note: _Note = ""


class RateReply(_Reply):
    """How good one answer is by itself."""

    overall: _Mark
    flags: _Flags = Field(default_factory=dict)
    note: _Note = ""


class DemonstrationReply(_Reply):
    """An answer that a labeler wrote."""

    completion: _Written
    note: _Note = ""


class Example(_Reply):
    """One of the examples of a few-shot prompt."""

    query: _Written
    response: _Written


class PromptReply(_Reply):
    """A prompt that a labeler wrote: any task, an instruction with examples of it, or one after a use case."""

    kind: Literal["plain", "few_shot", "use_case"]
    prompt: _Written
    examples: Annotated[tuple[Example, ...], Strict(False), Field(max_length=20)] = ()
    use_case: Annotated[str, Field(max_length=200)] = ""
    note: _Note = ""

    @model_validator(mode="after")
    def _check_kind(self) -> PromptReply:
        wrong = {
            "examples": bool(self.examples) != (self.kind == "few_shot"),
            "use_case": bool(self.use_case.strip()) != (self.kind == "use_case"),
        }
        words = {"examples": "few_shot", "use_case": "use_case"}
        for name, is_wrong in wrong.items():
            if is_wrong:
                needed = self.kind == words[name]
                text = "needed for a prompt of this kind" if needed else f"goes with a prompt of the kind {words[name]}"
                raise PydanticCustomError("prompt_kind", "{text}", {"at": (name,), "text": text})
        return self


Reply: TypeAlias = RankReply | CompareReply | RateReply | DemonstrationReply | PromptReply

_MODELS: dict[Kind, type[Reply]] = {
    "rank": RankReply,
    "compare": CompareReply,
    "rate": RateReply,
    "demonstrate": DemonstrationReply,
    "write": PromptReply,
}


def parse_reply(kind: Kind, value: Any) -> Reply:
    """The reply to a task of `kind` in JSON that was parsed; raises `DataError` with all that is wrong with it."""
    model = _MODELS[kind]
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise DataError(Problem("", field_of(e), reason_of(e, model)) for e in findings(error)) from None


def check_reply(reply: Reply, kind: Kind, count: int) -> None:
    """Raises `DataError` where a reply is not one to a task of `kind` with `count` answers."""
    if type(reply) is not _MODELS[kind]:
        raise DataError([Problem("", "", f"this task takes another kind of reply: it is one to {kind}")])
    if isinstance(reply, RankReply):
        shown = LETTERS[:count]
        problems = [
            Problem("", f"answers.{key}", "missing; rank every answer") for key in shown if key not in reply.answers
        ]
        problems += [Problem("", f"answers.{key}", "no such answer") for key in reply.answers if key not in shown]
        if problems:
            raise DataError(problems)


def dense_axes(given: Sequence[Mapping[str, int]]) -> list[dict[str, int]]:
    """The ranks of answers on single axes without gaps, among those answers that have one on the axis."""
    found = [dict[str, int]() for _ in given]
    for axis in AXES:
        places = [place for place, ranks in enumerate(given) if axis in ranks]
        on_axis = dense([given[place][axis] for place in places]) if places else ()
        for place, rank in zip(places, on_axis, strict=True):
            found[place][axis] = rank
    return found
