"""The row types of Hugging Face's TRL, each with texts or with messages.

* preference, `prompt`, `chosen`, `rejected`, or without `prompt` where both sides are whole conversations: a ranking,
  with its `margin` where there is one;
* unpaired preference, `prompt`, `completion`, `label`: a rating, where label true is a thumb up;
* prompt-completion, and language modelling with `messages`: a demonstration;
* prompt-only: a prompt.

A demonstration is also what was chosen, and what has label true; a completion with label false is none. Every type has
a prompt. Preference rows of plain texts without `prompt` are rejected: where the prompt ends could only be guessed.
Stepwise rows judge steps, not answers, and have no place here. All columns that TRL does not know go into `meta`, but
for a `weight` of the ranking, which is the kit's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..shapes import OF_PAIRS, Shaped, ShapeError, adapted, with_meta
from .base import Format, Outcome, Unusable
from .transcripts import is_transcript, last_answer

__all__ = ["FORMAT"]

_COMMON = {"labeler", "category", "user_id", "id", "meta"}


def _recognise(row: dict[str, Any]) -> str | None:
    if row.keys() & {"chosen", "rejected"}:
        return _recognise_pair(row)
    kind = _kind(row.get("prompt"))
    if kind and kind == _kind(row.get("completion")):
        label = row.get("label", True)
        return "has 'prompt' and 'completion'" if isinstance(label, bool) else None
    return "has a 'prompt' and nothing else" if kind and row.keys() <= {"prompt", *_COMMON} else None


def _recognise_pair(row: dict[str, Any]) -> str | None:
    sides = [row.get(name) for name in ("chosen", "rejected")]
    kind = _kind(sides[0])
    if kind is None or kind != _kind(sides[1]):
        return None
    if row.get("prompt") is None:  # plain texts without a prompt could be anything
        return "has 'chosen' and 'rejected' as messages" if kind == "messages" else None
    if all(map(is_transcript, sides)) or _kind(row["prompt"]) is None:
        return None
    return "has 'prompt', 'chosen' and 'rejected'"


def _kind(value: object) -> str | None:
    if isinstance(value, str):
        return "text"
    is_list = isinstance(value, list) and bool(value)
    if is_list and all(isinstance(turn, dict) and turn.keys() >= {"role", "content"} for turn in value):  # type: ignore[attr-defined]
        return "messages"
    return None


def _rankings(row: dict[str, Any]) -> Iterator[Outcome]:
    if not row.keys() & {"chosen", "rejected"}:
        yield Unusable("left-out", "", "has no 'chosen' and 'rejected'; it is no comparison")
        return
    try:
        yield _pair(row, *OF_PAIRS)
    except ShapeError as error:
        yield Unusable(error.code, error.field, error.reason)


def _ratings(row: dict[str, Any]) -> Iterator[Outcome]:
    if "label" not in row or "completion" not in row:
        yield Unusable("left-out", "", "has no 'completion' with a 'label'; it is no rating")
        return
    if not isinstance(row["label"], bool):
        yield Unusable("no-verdict", "label", "must be true (a good answer) or false (a bad one)")
        return
    try:
        shaped = _completion(row, "label")
    except ShapeError as error:
        yield Unusable(error.code, error.field, error.reason)
        return
    rating = {"thumb": row["label"], **shaped.row}
    rating["response"] = rating.pop("completion")
    yield Shaped(rating, {"response": shaped.names.get("completion", "completion")})


def _demonstrations(row: dict[str, Any]) -> Iterator[Outcome]:
    try:
        if row.keys() & {"chosen", "rejected"}:
            yield _chosen(_pair(row))
        elif "completion" in row and row.get("label", True) is True:
            yield _completion(row)
        elif "completion" in row:
            yield Unusable("left-out", "label", "only what has label true is an answer to imitate")
        elif "messages" in row:
            yield adapted({"messages": row["messages"], **with_meta(row, "messages")}, "demonstration")
        else:
            yield Unusable("left-out", "", "has no 'completion', 'messages' or 'chosen'; there is no answer to imitate")
    except ShapeError as error:
        yield Unusable(error.code, error.field, error.reason)


def _prompts(row: dict[str, Any]) -> Iterator[Outcome]:
    answers = ("chosen", "rejected", "completion", "completions", "messages", "label", "labels")
    if row.get("prompt") is not None:
        yield Shaped({"prompt": row["prompt"], **with_meta(row, "prompt", *answers)})
    elif row.keys() & {"chosen", "rejected"}:
        try:
            shaped = _pair(row)
        except ShapeError as error:
            yield Unusable(error.code, error.field, error.reason)
            return
        fields = {name: value for name, value in shaped.row.items() if name != "responses"}
        yield Shaped(fields, {"prompt": shaped.names.get("prompt", "prompt")})
    elif "messages" in row:
        turns = row["messages"]
        turns = turns[:-1] if isinstance(turns, list) and last_answer(turns) else turns
        yield Shaped({"prompt": turns, **with_meta(row, *answers)}, {"prompt": "messages"})
    else:
        yield Unusable("missing", "prompt", "missing; there is no prompt in this row")


def _pair(row: dict[str, Any], *fields: str) -> Shaped:
    """The row as a ranking; `fields` are read beside its answers, all others are kept in `meta`."""
    names = ("prompt", "chosen", "rejected", *fields)
    return adapted(_only(row, *names, used=("messages",)), "ranking")


def _completion(row: dict[str, Any], *used: str) -> Shaped:
    return adapted(_only(row, "prompt", "completion", used=used), "demonstration")


def _only(row: dict[str, Any], *names: str, used: tuple[str, ...] = ()) -> dict[str, Any]:
    """The row's fields of these names, and all others that are not used up as the record keeps them."""
    return {**{name: row[name] for name in names if name in row}, **with_meta(row, *names, *used)}


def _chosen(shaped: Shaped) -> Shaped:
    row = {name: value for name, value in shaped.row.items() if name != "responses"}
    names = {"completion": shaped.names["responses.0.text"], "prompt": shaped.names.get("prompt", "prompt")}
    return Shaped({**row, "completion": shaped.row["responses"][0]["text"]}, names)


FORMAT = Format(
    name="trl",
    about="the row types of Hugging Face's TRL: preference, unpaired preference, prompt-completion, prompt-only",
    orientation="chosen is preferred to rejected; label true is good, false is bad",
    documentation="https://huggingface.co/docs/trl/dataset_formats",
    recognise=_recognise,
    to={"ranking": _rankings, "rating": _ratings, "demonstration": _demonstrations, "prompt": _prompts},
)
