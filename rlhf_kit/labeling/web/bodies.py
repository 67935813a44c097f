"""What may stand in the body of a request: strict, with bounds, and everything that is wrong with it at once."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf_kit.errors import DataError, Problem
from rlhf_kit.json_rows import Fault, strict
from rlhf_kit.labeling.replies import MOST_NOTE, SKIP_REASONS, Reply, parse_reply
from rlhf_kit.labeling.tasks import Kind
from rlhf_kit.reasons import field_of, findings, reason_of

__all__ = [
    "AnswerBody",
    "DraftBody",
    "LeaveBody",
    "MoreBody",
    "PauseBody",
    "SessionBody",
    "SkipBody",
    "UndoBody",
    "parse_body",
    "reply_in",
]

_Name = Annotated[str, Field(min_length=1, max_length=100)]
_Seconds = Annotated[float, Field(ge=0, le=1e6)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class SessionBody(_Body):
    """A token, which a link has behind its `#`."""

    token: Annotated[str, Field(max_length=500)]


class DraftBody(_Body):
    """What stands on the page so far; the page alone understands it."""

    assignment: _Name
    draft: dict[str, Any]


class LeaveBody(_Body):
    """A task whose page was closed."""

    assignment: _Name


class AnswerBody(_Body):
    """An answer; `reply` is parsed by the kind of its task."""

    assignment: _Name
    reply: dict[str, Any]
    seconds: _Seconds


class SkipBody(_Body):
    """A task that is left out, and why."""

    assignment: _Name
    reason: Literal[SKIP_REASONS]  # type: ignore[valid-type]
    note: Annotated[str, Field(max_length=MOST_NOTE)] = ""
    seconds: _Seconds


class UndoBody(_Body):
    """Nothing: what is undone is the last thing that one did."""


class PauseBody(_Body):
    """Whether tasks are held back."""

    paused: bool


class MoreBody(_Body):
    """A task that one more labeler shall see."""

    task: _Name


_Any = TypeVar("_Any", bound=_Body)


def parse_body(body: bytes, model: type[_Any]) -> _Any:
    """The body as the model says; raises `DataError` with all that is wrong."""
    try:
        value = strict(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise _broken("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _broken(f"broken JSON at character {error.pos + 1}") from None
    except Fault as fault:
        raise _broken(str(fault)) from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [Problem("", field_of(found), reason_of(found, model)) for found in findings(error)]
        raise DataError(problems) from None


def _broken(reason: str) -> DataError:
    return DataError([Problem("", "", reason)])


_TELLING: dict[str, Kind] = {
    "answers": "rank",
    "better": "compare",
    "overall": "rate",
    "completion": "demonstrate",
    "prompt": "write",
}
"""The field that only a reply of that kind has. Whether it is of the task's kind, the store says."""


def reply_in(body: AnswerBody) -> Reply:
    """The reply that the page sent; raises `DataError` with all that is wrong with it."""
    for name, kind in _TELLING.items():
        if name in body.reply:
            return parse_reply(kind, body.reply)
    raise DataError([Problem("", "", f"no reply; one has {', '.join(_TELLING)}")])
