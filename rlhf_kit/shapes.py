"""TRL's shapes of a row, read as they are: what each becomes in the kit's own shape.

* demonstration, `messages`: the last assistant turn is the completion, the turns before it are the prompt;
* demonstration, `prompt` and `completion` as a list with one assistant turn: its content is the completion;
* prompt, `messages`: they are the prompt;
* ranking, `prompt`, `chosen`, `rejected` as texts or assistant turns: two responses, `chosen` rank 1, `rejected` 2;
* ranking, `chosen` and `rejected` as conversations: the same, and the turns they share are the prompt.

Columns that a ranking has no field for are kept in its `meta`. A demonstration or prompt given as `messages` leaves
them behind, as TRL does. Rows in the kit's own shape pass untouched, so that a misspelt key is found there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["ShapeError", "Shaped", "adapted"]


class ShapeError(ValueError):
    """A row has the columns of a known shape, but what is in them does not fit together."""

    def __init__(self, field: str, reason: str) -> None:
        self.field, self.reason = field, reason
        super().__init__(f"{field}: {reason}")


class Shaped(NamedTuple):
    """A row in the kit's own shape, and what its fields were called where they came from."""

    row: dict[str, Any]
    names: dict[str, str]

    def name_of(self, field: str) -> str:
        """The name that the user gave to a field of the kit's shape."""
        for ours, theirs in self.names.items():
            if field == ours or field.startswith(f"{ours}."):
                return theirs + field[len(ours) :]
        return field


def adapted(row: dict[str, Any], kind: str) -> Shaped:
    """The row in the shape of `kind`; raises `ShapeError` where it contradicts itself."""
    if kind == "demonstration" and "messages" in row and "completion" not in row:
        return _demonstration_from_messages(row)
    if kind == "demonstration" and isinstance(row.get("completion"), list):
        turns, text, name = _split(row["completion"], "completion")
        if turns:
            raise ShapeError("completion", "must be one assistant turn; the turns before it belong to the prompt")
        return Shaped({**row, "completion": text}, {"completion": name})
    if kind == "prompt" and "messages" in row and "prompt" not in row:
        return Shaped({"prompt": row["messages"], **_kept(row, "category", "id")}, {"prompt": "messages"})
    if kind == "ranking" and "responses" not in row and ("chosen" in row or "rejected" in row):
        return _ranking_from_pair(row)
    return Shaped(row, {})


def _demonstration_from_messages(row: dict[str, Any]) -> Shaped:
    turns, text, name = _split(row["messages"], "messages")
    if not turns:
        raise ShapeError("messages", "holds no turn before the answer; a demonstration needs its prompt")
    shaped = {"prompt": turns, "completion": text, **_kept(row, "labeler", "category", "id")}
    return Shaped(shaped, {"prompt": "messages", "completion": name})


def _ranking_from_pair(row: dict[str, Any]) -> Shaped:
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            raise ShapeError(name, "missing; a pair needs both chosen and rejected")
    turns, best, best_name = _split(row["chosen"], "chosen")
    other_turns, worst, worst_name = _split(row["rejected"], "rejected")
    if turns != other_turns:
        raise ShapeError(
            "rejected", "its turns before the answer differ from those of chosen; both must answer one prompt"
        )
    shaped: dict[str, Any] = {"responses": [{"text": best, "rank": 1}, {"text": worst, "rank": 2}]}
    names = {"responses.0.text": best_name, "responses.1.text": worst_name}
    if turns:
        if row.get("prompt") not in (None, turns, turns[-1].get("content") if len(turns) == 1 else turns):
            raise ShapeError("prompt", "differs from the turns before the answer in chosen; keep one of the two")
        shaped["prompt"], names["prompt"] = turns, "chosen"
    elif row.get("prompt") is None:
        raise ShapeError("prompt", "missing; chosen and rejected hold only the answers")
    else:
        shaped["prompt"] = row["prompt"]
    used = {"prompt", "chosen", "rejected", "labeler", "category", "id", "meta"}
    rest = {key: value for key, value in row.items() if key not in used}
    meta = row.get("meta") or {}
    shaped["meta"] = {**rest, **meta} if isinstance(meta, dict) else meta
    return Shaped({**shaped, **_kept(row, "labeler", "category", "id")}, names)


def _split(value: object, name: str) -> tuple[list[Any], Any, str]:
    """The turns before the answer, the answer, and the answer's own name; a plain text is an answer without turns."""
    if isinstance(value, str) and name != "messages":
        return [], value, name
    last = value[-1] if isinstance(value, list) and value else None
    if not (isinstance(value, list) and isinstance(last, dict) and last.get("role") == "assistant"):
        what = "messages" if name == "messages" else "a text, or messages"
        raise ShapeError(name, f"must be {what} ending with the assistant's turn, which is the answer")
    place = f"{name}.{len(value) - 1}"
    for key in sorted(last.keys() - {"role", "content"}):  # tool calls, say: without them the answer is another one
        raise ShapeError(f"{place}.{key}", "unknown key; a message has a role and a content")
    return value[:-1], last.get("content"), f"{place}.content"


def _kept(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names if name in row}
