"""Shapes of a row that are read as they are, most of them TRL's: what each becomes in the kit's own shape.

* demonstration, `messages`: the last assistant turn is the completion, the turns before it are the prompt;
* demonstration, `prompt` and `completion` as a list with one assistant turn: its content is the completion;
* prompt, `messages`: they are the prompt;
* ranking, `prompt`, `chosen`, `rejected` as texts or assistant turns: two responses, `chosen` rank 1, `rejected` 2;
* ranking, `chosen` and `rejected` as conversations: the same, and the turns they share are the prompt;
  a `margin` (TRL's own column) and a `weight` beside them are those of the ranking;
* ranking, `responses` as plain texts with a list `ranks` beside them (the kit's own second form).

Columns that the record has no field for are kept in its `meta`. Rows in the kit's own shape pass untouched, so that a
misspelt key is found there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["OF_PAIRS", "ShapeError", "Shaped", "adapted", "with_meta"]


class ShapeError(ValueError):
    """A row has the columns of a known shape, but what is in them does not fit together."""

    def __init__(self, field: str, reason: str, code: str = "wrong-type") -> None:
        self.field, self.reason, self.code = field, reason, code
        super().__init__(f"{field}: {reason}")


@dataclass(frozen=True, slots=True)
class Shaped:
    """A row in the kit's own shape, and what its fields were called where they came from."""

    row: dict[str, Any]
    names: dict[str, str] = field(default_factory=dict)
    """By the kit's name of a field (`responses.0.text`) the source's (`chosen`)."""
    index: int = 0
    """Which of the source's rows it comes from, where several belong together."""

    def name_of(self, name: str) -> str:
        """The name that the user gave to a field of the kit's shape."""
        for ours, theirs in self.names.items():
            if name == ours or name.startswith(f"{ours}."):
                return theirs + name[len(ours) :]
        return name


def adapted(row: dict[str, Any], kind: str) -> Shaped:
    """The row in the shape of `kind`; raises `ShapeError` where it contradicts itself."""
    if kind == "demonstration" and "messages" in row and "completion" not in row:
        return _demonstration_from_messages(row)
    if kind == "demonstration" and isinstance(row.get("completion"), list):
        turns, text, name = _split(row["completion"], "completion")
        if turns:
            reason = "must be one assistant turn; the turns before it belong to the prompt"
            raise ShapeError("completion", reason, "role-order")
        return Shaped({**row, "completion": text}, {"completion": name})
    if kind == "prompt" and "messages" in row and "prompt" not in row:
        return Shaped({"prompt": row["messages"], **with_meta(row, "messages", fields=_ASKED)}, {"prompt": "messages"})
    if kind == "ranking" and "ranks" in row:
        return _ranking_from_lists(row)
    if kind == "ranking" and "responses" not in row and ("chosen" in row or "rejected" in row):
        return _ranking_from_pair(row)
    return Shaped(row)


_FIELDS = ("labeler", "category", "user_id", "id")
_ASKED = (*_FIELDS, "kind", "origin")
OF_PAIRS = ("weight", "margin")
"""Numbers that a row of `chosen` and `rejected` may hold for its ranking; no other record has a field for both."""


def with_meta(row: dict[str, Any], *used: str, fields: tuple[str, ...] = _FIELDS) -> dict[str, Any]:
    """The fields of `row` that a record has too, as they are, and all others but `used` under `meta`."""
    found = {name: _as_text(row[name]) for name in fields if name in row and name not in used}
    rest = {name: value for name, value in row.items() if name not in (*used, *fields, "meta")}
    meta = row.get("meta")
    if isinstance(meta, dict):
        meta = {"meta": meta, **rest} if meta.keys() & rest.keys() else {**rest, **meta}  # neither hides the other
    elif meta is None:
        meta = rest
    return {**found, "meta": meta} if meta else found


def _as_text(value: Any) -> Any:
    """Numbers are names too, in other people's data: 17 becomes "17". Anything else is left to be found wrong."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _demonstration_from_messages(row: dict[str, Any]) -> Shaped:
    turns, text, name = _split(row["messages"], "messages")
    if not turns:
        reason = "holds no turn before the answer; a demonstration needs its prompt"
        raise ShapeError("messages", reason, "no-user-turn")
    shaped = {"prompt": turns, "completion": text, **with_meta(row, "messages", fields=_ASKED)}
    return Shaped(shaped, {"prompt": "messages", "completion": name})


def _ranking_from_lists(row: dict[str, Any]) -> Shaped:
    texts, ranks = row.get("responses"), row["ranks"]
    if not isinstance(texts, list) or not isinstance(ranks, list):
        raise ShapeError("ranks", "must be a list, beside the list 'responses'")
    if len(texts) != len(ranks):
        raise ShapeError("ranks", f"{len(ranks)} given for {len(texts)} responses", "rank-count")
    if any(isinstance(text, dict) for text in texts):
        raise ShapeError("ranks", "given beside responses that are no plain texts; put each rank into its response")
    shaped = {name: value for name, value in row.items() if name != "ranks"}
    shaped["responses"] = [{"text": text, "rank": rank} for text, rank in zip(texts, ranks, strict=True)]
    names = {f"responses.{i}.text": f"responses.{i}" for i in range(len(texts))}
    return Shaped(shaped, names | {f"responses.{i}.rank": f"ranks.{i}" for i in range(len(texts))})


def _ranking_from_pair(row: dict[str, Any]) -> Shaped:
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            code = "null" if name in row else "missing"
            raise ShapeError(name, "missing; a pair needs both chosen and rejected", code)
    turns, best, best_name = _split(row["chosen"], "chosen")
    other_turns, worst, worst_name = _split(row["rejected"], "rejected")
    if turns != other_turns:
        reason = "its turns before the answer differ from those of chosen; both must answer one prompt"
        raise ShapeError("rejected", reason, "prompt-differs")
    shaped: dict[str, Any] = {"responses": [{"text": best, "rank": 1}, {"text": worst, "rank": 2}]}
    names = {"responses.0.text": best_name, "responses.1.text": worst_name}
    if turns:
        if row.get("prompt") not in (None, turns, _content(turns[0]) if len(turns) == 1 else turns):
            reason = "differs from the turns before the answer in chosen; keep one of the two"
            raise ShapeError("prompt", reason, "prompt-differs")
        shaped["prompt"], names["prompt"] = turns, "chosen"
    elif row.get("prompt") is None:
        raise ShapeError("prompt", "missing; chosen and rejected hold only the answers", "missing")
    else:
        shaped["prompt"] = row["prompt"]
    shaped |= {name: row[name] for name in OF_PAIRS if name in row}
    return Shaped({**shaped, **with_meta(row, "prompt", "chosen", "rejected", *OF_PAIRS)}, names)


def _content(turn: object) -> object:
    return turn.get("content") if isinstance(turn, dict) else None


def _split(value: object, name: str) -> tuple[list[Any], Any, str]:
    """The turns before the answer, the answer, and the answer's own name; a plain text is an answer without turns."""
    if isinstance(value, str) and name != "messages":
        return [], value, name
    last = value[-1] if isinstance(value, list) and value else None
    if not (isinstance(value, list) and isinstance(last, dict) and last.get("role") == "assistant"):
        what = "messages" if name == "messages" else "a text, or messages"
        reason = f"must be {what} ending with the assistant's turn, which is the answer"
        raise ShapeError(name, reason, "no-answer" if isinstance(value, list) else "wrong-type")
    place = f"{name}.{len(value) - 1}"
    for key in sorted(last.keys() - {"role", "content"}):  # tool calls, say: without them the answer is another one
        raise ShapeError(f"{place}.{key}", "unknown key; a message has a role and a content", "unknown-key")
    return value[:-1], last.get("content"), f"{place}.content"
