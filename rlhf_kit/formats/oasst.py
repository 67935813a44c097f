"""OpenAssistant's conversations (OASST): trees of messages, where people ranked the replies; rank 0 is the best.

Read are trees, one a row (`*.trees.jsonl`), and single messages (`*.messages.jsonl`, the Hub's version), which are
joined by `message_tree_id` and `parent_id`.

* ranking: each set of assistant messages that answer the same message, if all of them are ranked; its prompt is the
  whole conversation above. A set with some ranks is rejected (`missing-rank`), a set without any was not compared
  (`unranked`). A reply alone, and replies of prompters, are no comparison of answers.
* demonstration: the best-ranked answer of each set, or the only one; without ranks nobody said which is best.
* prompt: each conversation that ends with a prompter's message, the initial prompts among them.

The export marks spam as `deleted` or with `review_result` false: such a message is left out with all below it, and the
others of its set keep their ranks. Answers that a model wrote (`synthetic`) were ranked like the others and stay, with
`model_name` as their source. All other properties of the messages are in `meta`: of the turns of the prompt and of the
answers, each in order.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..shapes import Shaped
from .base import Format, Outcome, Unusable

__all__ = ["FORMAT"]

_ROLES = {"prompter": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class _Message:
    data: dict[str, Any]
    place: str
    """Its path in the row (`prompt.replies.0`), or its id where each message is a row."""
    row: int
    replies: list[_Message] = field(default_factory=list)

    @property
    def is_answer(self) -> bool:
        return self.data.get("role") == "assistant"

    @property
    def flaw(self) -> str | None:
        if self.data.get("deleted"):
            return "is deleted"
        return "failed its review" if self.data.get("review_result") is False else None


@dataclass(frozen=True, slots=True)
class _Path:
    """A message with all above it, the root first, and what is said of the whole tree."""

    messages: tuple[_Message, ...]
    tree: dict[str, Any]

    @property
    def last(self) -> _Message:
        return self.messages[-1]

    def answers(self) -> list[_Message]:
        return [reply for reply in self.last.replies if reply.is_answer and not reply.flaw]


def _recognise(row: dict[str, Any]) -> str | None:
    root = row.get("prompt")
    if "message_tree_id" in row and isinstance(root, dict) and root.keys() >= {"text", "role"}:
        return "is a message tree: has 'message_tree_id' and a 'prompt' with text and role"
    if row.keys() >= {"message_id", "parent_id", "text"} and row.get("role") in _ROLES:
        return "is a message of a tree: has 'message_id', 'parent_id', 'text' and a role of OpenAssistant's"
    return None


def _key(row: dict[str, Any]) -> Hashable | None:
    root = row.get("prompt")
    for key in (row.get("message_tree_id"), root.get("message_id") if isinstance(root, dict) else None):
        if isinstance(key, str):
            return key
    return None


def _rankings(rows: list[dict[str, Any]]) -> Iterator[Outcome]:
    for path in _paths(rows):
        if isinstance(path, Unusable):
            yield path
            continue
        others = [reply for reply in path.last.replies if not reply.is_answer and not reply.flaw]
        if len(others) > 1 and all(reply.data.get("rank") is None for reply in others):
            yield _about(path, "unranked", f"{len(others)} messages of prompters side by side; they are no answers")
        elif len(others) > 1:
            yield _about(path, "left-out", f"{len(others)} ranked messages of prompters; they are no answers")
        answers = path.answers()
        if len(answers) > 1:
            yield _unranked(path, answers) or _ranking(path, answers)


def _demonstrations(rows: list[dict[str, Any]]) -> Iterator[Outcome]:
    for path in _paths(rows):
        if isinstance(path, Unusable):
            yield path
        elif len(answers := path.answers()) == 1:
            yield _demonstration(path, answers[0])
        elif answers:
            yield _unranked(path, answers) or _best(path, answers)


def _prompts(rows: list[dict[str, Any]]) -> Iterator[Outcome]:
    for path in _paths(rows):
        if isinstance(path, Unusable):
            yield path
        elif not path.last.is_answer:
            names = _names(path) | {"id": f"{path.last.place}.message_id"}
            row = {**_prompt(path), **_id(path.last), "meta": _meta(path)}
            yield Shaped(row, names, path.last.row)


def _unranked(path: _Path, answers: list[_Message]) -> Unusable | None:
    missing = [answer for answer in answers if answer.data.get("rank") is None]
    if len(missing) == len(answers):
        return _about(path, "unranked", f"{len(answers)} answers side by side that nobody ranked")
    if missing:
        reason = f"missing; {len(answers) - len(missing)} of the {len(answers)} answers beside each other are ranked"
        return Unusable("missing-rank", f"{missing[0].place}.rank", reason, missing[0].row)
    return None


def _about(path: _Path, code: str, reason: str) -> Unusable:
    return Unusable(code, f"{path.last.place}.replies", reason, path.last.row)


def _ranking(path: _Path, answers: list[_Message]) -> Shaped:
    responses, names = [], dict[str, str]()
    for index, answer in enumerate(answers):
        rank = answer.data["rank"]
        response = {"rank": rank + 1 if type(rank) is int else rank}
        responses.append({**response, **_given(answer, text="text", source="model_name")})
        for ours, theirs in (("text", "text"), ("rank", "rank"), ("source", "model_name")):
            names[f"responses.{index}.{ours}"] = f"{answer.place}.{theirs}"
    names |= {"responses": f"{path.last.place}.replies", "id": f"{path.last.place}.message_id", **_names(path)}
    meta = {**_meta(path), "answers": [_rest(answer, path.tree, "rank") for answer in answers]}
    row = {**_prompt(path), "responses": responses, **_id(path.last), "meta": meta}
    return Shaped(row, names, answers[0].row)


def _best(path: _Path, answers: list[_Message]) -> Outcome:
    for answer in answers:
        if type(answer.data["rank"]) is not int:
            return Unusable("bad-rank", f"{answer.place}.rank", "must be a whole number, 0 for the best", answer.row)
    lowest = min(answer.data["rank"] for answer in answers)
    best = [answer for answer in answers if answer.data["rank"] == lowest]
    if len(best) > 1:
        return _about(path, "left-out", f"{len(best)} answers share the best rank; none of them stands alone")
    return _demonstration(path, best[0])


def _demonstration(path: _Path, answer: _Message) -> Shaped:
    places = {"completion": "text", "labeler": "user_id", "id": "message_id"}
    names = {ours: f"{answer.place}.{theirs}" for ours, theirs in places.items()} | _names(path)
    writer = {} if answer.data.get("synthetic") else _given(answer, labeler="user_id")
    row = {**_prompt(path), **_given(answer, completion="text"), **writer, **_id(answer)}
    return Shaped({**row, "meta": {**_meta(path), "answers": [_rest(answer, path.tree)]}}, names, answer.row)


def _prompt(path: _Path) -> dict[str, Any]:
    turns = []
    for message in path.messages:
        turn = _given(message, role="role", content="text")
        if isinstance(turn.get("role"), str):
            turn["role"] = _ROLES.get(turn["role"], turn["role"])
        turns.append(turn)
    return {"prompt": turns, **_given(path.last, user_id="user_id")}


def _names(path: _Path) -> dict[str, str]:
    names = {"user_id": f"{path.last.place}.user_id"}
    for index, message in enumerate(path.messages):
        names |= {f"prompt.{index}.content": f"{message.place}.text", f"prompt.{index}.role": f"{message.place}.role"}
    return names | {"prompt": path.last.place}


def _meta(path: _Path) -> dict[str, Any]:
    turns = [_rest(message, path.tree) for message in path.messages]
    return {**path.tree, **_given(path.last, lang="lang"), "turns": turns}


def _rest(message: _Message, tree: dict[str, Any], *used: str) -> dict[str, Any]:
    """What a message says beside its words, without what is said of the whole tree."""
    gone = ("text", "role", "replies", *used)
    return {k: v for k, v in message.data.items() if k not in gone and not (k in tree and tree[k] == v)}


def _id(message: _Message) -> dict[str, Any]:
    return _given(message, id="message_id")


def _given(message: _Message, **names: str) -> dict[str, Any]:
    """Fields of a message under the kit's names; a null is as good as none, but for a text."""
    data = message.data
    return {o: data[t] for o, t in names.items() if t in data and (data[t] is not None or t == "text")}


def _paths(rows: list[dict[str, Any]]) -> Iterator[_Path | Unusable]:
    """All messages that can be used, each with those above it, in the order of the source; and what is left out."""
    for item in _roots(rows):
        if isinstance(item, Unusable):
            yield item
            continue
        stack = [item]
        while stack:
            path = stack.pop()
            if flaw := path.last.flaw:
                yield Unusable("left-out", path.last.place, f"{flaw}; left out with all below it", path.last.row)
                continue
            yield path
            stack.extend(_Path((*path.messages, reply), path.tree) for reply in reversed(path.last.replies))


def _roots(rows: list[dict[str, Any]]) -> Iterator[_Path | Unusable]:
    flat = [(index, row) for index, row in enumerate(rows) if "prompt" not in row]
    for index, row in enumerate(rows):
        if "prompt" in row:
            yield from _tree(row, index)
    yield from _joined(flat)


def _tree(row: dict[str, Any], index: int) -> Iterator[_Path | Unusable]:
    if not isinstance(row["prompt"], dict):
        code = "null" if row["prompt"] is None else "wrong-type"
        yield Unusable(code, "prompt", "must be a mapping, the message at the root of the tree", index)
        return
    root = _Message(row["prompt"], "prompt", index)
    stack = [root]
    while stack:
        message = stack.pop()
        replies = message.data.get("replies")
        if not isinstance(replies, (list, type(None))):
            yield Unusable("wrong-type", f"{message.place}.replies", "must be a list of messages", index)
            continue
        for number, reply in enumerate(replies or ()):
            place = f"{message.place}.replies.{number}"
            if isinstance(reply, dict):
                message.replies.append(_Message(reply, place, index))
            else:
                yield Unusable("wrong-type", place, "must be a mapping, a message", index)
        stack.extend(message.replies)
    yield _Path((root,), {key: value for key, value in row.items() if key != "prompt"})


def _joined(rows: list[tuple[int, dict[str, Any]]]) -> Iterator[_Path | Unusable]:
    """The trees that single messages make."""
    messages: dict[str, _Message] = {}
    for index, row in rows:
        name = row.get("message_id")
        if not isinstance(name, str):
            yield Unusable("no-part", "message_id", "must be a text; trees are joined by it", index)
        elif name in messages:
            yield Unusable("duplicate-id", "message_id", f"'{name}' is already the id of another message", index)
        else:
            messages[name] = _Message(row, name, index)
    for message in messages.values():
        parent = messages.get(str(message.data.get("parent_id")))
        if parent is not None:
            parent.replies.append(message)
    roots = [message for message in messages.values() if not message.data.get("parent_id")]
    reached = list(roots)
    for message in reached:  # grows while it is read
        reached += message.replies
    found = {message.place for message in reached}
    for lost in (message for message in messages.values() if message.place not in found):
        reason = "leads up to no initial prompt; the messages above it are not in the file"
        yield Unusable("no-part", "parent_id", reason, lost.row)
    for root in roots:
        tree = {name: value for name, value in root.data.items() if name in ("message_tree_id", "tree_state")}
        yield _Path((root,), tree)


FORMAT = Format(
    name="oasst",
    about="OpenAssistant's message trees: replies side by side, ranked by people",
    orientation="rank 0 is the best",
    documentation="https://huggingface.co/datasets/OpenAssistant/oasst1",
    recognise=_recognise,
    to={"ranking": _rankings, "demonstration": _demonstrations, "prompt": _prompts},
    key=_key,
)
