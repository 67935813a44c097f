"""Label Studio's exports JSON and JSON-MIN: tasks with `data` and the `annotations` of one or more labelers.

What each result of an annotation becomes, by its `type`:

* `ranker` (the LLM Ranker template): a ranking. `value.ranker` is `{tag: [ids]}`, the items in the labeler's order,
  **the first is the best**; the answers are `data.items` (or another list of objects with `id` and `body`, or texts).
  With `Bucket` tags there is a list for each, and `_` for what is in none. The kit's own bucket `best_first` is an
  order, others are not, for which group is better only the project knows.
* `pairwise` (Human Preference Collection for RLHF): a ranking. `value.selected` is `left` or `right`, **the better of
  the two**, `left` the one that the tag names first: `answer1`.
* `rating` (stars, more are better) and `choices` of thumbs up or down: ratings. The export does not say how many stars
  there are, so no scale.

Each annotation is one labeler's opinion: a record of its own, `labeler` from `completed_by`, the number of a user where
the export does not say more (exports of the server do not). Cancelled ones are left
out; predictions are a model's, not labels. The names in `data` are the project's: those of the templates are read,
others reported. Data, task and annotation stay in `meta`, but for the texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..shapes import Shaped, ShapeError
from .base import Format, Outcome, Unusable
from .label_studio_min import is_min, renamed, whole
from .projects import numbered, prompt_in
from .roles import unusable
from .values import number_of

__all__ = ["FORMAT", "ORDERED"]

ORDERED = "best_first"
"""The bucket of the kit's own configuration, in which answers stand in order."""
_UNPLACED = "_"

_LISTS = ("items", "responses", "answers", "completions", "candidates", "outputs")
_SIDES = (
    ("answer1", "answer2"), ("response1", "response2"), ("answer_1", "answer_2"), ("response_1", "response_2"),
    ("answer_a", "answer_b"), ("response_a", "response_b"), ("text1", "text2"), ("left", "right"),
)  # fmt: skip
_SINGLE = ("response", "answer", "completion", "output")
_BODIES = ("body", "text", "html", "title")
_UP = {"thumbs up", "thumb up", "up", "👍", "good", "like"}
_DOWN = {"thumbs down", "thumb down", "down", "👎", "bad", "dislike"}
_GENERAL = {"rating", "score", "stars", "overall", "thumb", "thumbs"}
"""Names of a tag that ask for the whole, not for one side of it."""


class _Answer(NamedTuple):
    text: Any
    place: str
    key: str
    """The item's id, or the field's name."""


class _Result(NamedTuple):
    """One result of one annotation, with all it stands in."""

    value: dict[str, Any]
    tags: tuple[str, str]
    """`from_name` and `to_name`."""
    kind: str
    place: str
    annotation: dict[str, Any]
    task: dict[str, Any]


def _recognise(row: dict[str, Any]) -> str | None:
    if is_min(row):
        return "has 'annotator' and 'annotation_id' beside a task's data"
    annotations = row.get("annotations")
    if not isinstance(row.get("data"), dict) or not isinstance(annotations, list):
        return None
    is_task = all(isinstance(one, dict) and isinstance(one.get("result"), list) for one in annotations)
    return "has 'data' and 'annotations' with results" if is_task else None


def _rankings(row: dict[str, Any]) -> Iterator[Outcome]:
    yield from numbered(_outcomes(row, ("ranker", "pairwise")))


def _ratings(row: dict[str, Any]) -> Iterator[Outcome]:
    yield from numbered(_outcomes(row, ("rating", "choices")))


def _prompts(row: dict[str, Any]) -> Iterator[Outcome]:
    if is_min(row):
        yield from (renamed(one, row) for one in _prompts(whole(row)))
        return
    data = row.get("data")
    if not isinstance(data, dict):
        yield Unusable("wrong-type", "data", "must hold the task's prompt")
        return
    try:
        prompt, names, used = prompt_in(data, "data.")
    except ShapeError as error:
        yield unusable(error)
        return
    meta = {
        "data": {name: value for name, value in data.items() if name not in used},
        "task": {name: value for name, value in row.items() if name not in ("id", "data")},
    }
    named = {"id": str(row["id"])} if row.get("id") is not None else {}
    yield Shaped({**prompt, **named, "meta": meta}, names)


def _outcomes(row: dict[str, Any], kinds: tuple[str, ...]) -> Iterator[Outcome]:
    if is_min(row):
        yield from (renamed(one, row) for one in _outcomes(whole(row), kinds))
        return
    annotations = row.get("annotations")
    if not isinstance(row.get("data"), dict) or not isinstance(annotations, list):
        yield Unusable("wrong-type", "", "is no task of a JSON export, with 'data' and 'annotations'")
        return
    if not annotations:
        yield Unusable("left-out", "annotations", "nobody has labelled this task")
    for index, annotation in enumerate(annotations):
        place = f"annotations.{index}"
        if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
            yield Unusable("wrong-type", place, "must be an annotation with a list 'result'")
        elif annotation.get("was_cancelled"):
            yield Unusable("left-out", f"{place}.was_cancelled", "its labeler skipped this task")
        else:
            yield from _of_annotation(row, annotation, f"{place}.result", kinds)


def _of_annotation(
    row: dict[str, Any], annotation: dict[str, Any], place: str, kinds: tuple[str, ...]
) -> Iterator[Outcome]:
    found = []
    for index, one in enumerate(annotation["result"]):
        if isinstance(one, dict) and one.get("type") in kinds and isinstance(one.get("value"), dict):
            tags = (str(one.get("from_name", "")), str(one.get("to_name", "")))
            found.append(_Result(one["value"], tags, one["type"], f"{place}.{index}.value", annotation, row))
    if not found and annotation["result"]:
        yield Unusable("left-out", place, f"holds no {' or '.join(kinds)}")
    elif not found:
        yield Unusable("no-verdict", place, "is empty; the labeler submitted nothing")
    elif "ranker" in kinds and len(found) > 1:
        yield Unusable("no-verdict", place, "holds more than one order of the answers; keep the one that counts")
    else:
        for result in found:
            try:
                yield _ranking(result) if "ranker" in kinds else _rating(result)
            except ShapeError as error:
                yield unusable(error)


def _ranking(result: _Result) -> Shaped:
    answers, ranks = _sorted_items(result) if result.kind == "ranker" else _selected(result)
    prompt, names, used = prompt_in(result.task["data"], "data.")
    responses = [{"text": answer.text, "rank": rank} for answer, rank in zip(answers, ranks, strict=True)]
    names |= {f"responses.{index}.text": answer.place for index, answer in enumerate(answers)}
    fields = _fields(result, used, answers)
    return Shaped({**prompt, "responses": responses, **fields}, names)


def _sorted_items(result: _Result) -> tuple[list[_Answer], list[int]]:
    """The items of a list in the task's order, and their ranks."""
    place, orders = f"{result.place}.ranker", result.value.get("ranker")
    if isinstance(orders, dict) and orders.keys() == {_UNPLACED, ORDERED}:
        if not orders[ORDERED]:
            raise ShapeError(place, "places none of the answers; the labeler ordered nothing", "no-verdict")
        orders = {ORDERED: orders[ORDERED]}
    if not isinstance(orders, dict) or len(orders) != 1:
        groups = ", ".join(map(str, orders)) if isinstance(orders, dict) else ""
        reason = f"sorts answers into groups ({groups}), which is no order" if groups else "must be a list of ids"
        raise ShapeError(place, reason, "no-verdict")
    (order,) = orders.values()
    items = _items(result.task["data"])
    ids = [str(one) for one in order] if isinstance(order, list) else []
    if missing := [key for key in items if key not in ids]:
        raise ShapeError(place, f"does not place {', '.join(missing)}; all answers need their place", "missing-rank")
    if len(set(ids)) != len(ids) or any(key not in items for key in ids):
        raise ShapeError(place, "places answers twice, or some that are not in the task", "no-verdict")
    return list(items.values()), [ids.index(key) + 1 for key in items]


def _items(data: dict[str, Any]) -> dict[str, _Answer]:
    """The answers of a list in the task's data, by their ids; plain texts are known by their place."""
    name = next((name for name in _LISTS if isinstance(data.get(name), list)), None)
    if name is None:
        reason = f"holds no list of answers ({', '.join(_LISTS)}), but {', '.join(data) or 'nothing'}; rename the field"
        raise ShapeError("data", reason, "missing")
    found = {}
    for index, item in enumerate(data[name]):
        place, key, text = f"data.{name}.{index}", str(index), item
        if isinstance(item, dict):
            body = _body_of(item)
            place, key, text = f"{place}.{body}", str(item.get("id", index)), item.get(body)
        if key in found:
            raise ShapeError(
                f"data.{name}.{index}.id", "stands twice; which answer is meant cannot be told", "bad-value"
            )
        found[key] = _Answer(text, place, key)
    return found


def _selected(result: _Result) -> tuple[list[_Answer], list[int]]:
    """Both sides of a pair, the left one first, and their ranks."""
    data = result.task["data"]
    named = tuple(name.strip() for name in result.tags[1].split(","))
    pairs = [pair for pair in (named, *_SIDES) if len(pair) == 2 and all(name in data for name in pair)]
    if not pairs:
        reason = f"holds no two answers (answer1 and answer2), but {', '.join(data) or 'nothing'}; rename the fields"
        raise ShapeError("data", reason, "missing")
    left, right = (_Answer(data[name], f"data.{name}", name) for name in pairs[0])
    selected = result.value.get("selected")
    if selected not in ("left", "right"):
        raise ShapeError(f"{result.place}.selected", "must be left or right, the better answer", "no-verdict")
    return [left, right], [1, 2] if selected == "left" else [2, 1]


def _rating(result: _Result) -> Outcome:
    data = result.task["data"]
    verdict = _verdict(result)
    if isinstance(verdict, Unusable):
        return verdict
    name = next((name for name in result.tags[1].split(",") if name in _SINGLE or name in sum(_SIDES, ())), "")
    if name not in data:
        there = [name for name in (*_SINGLE, *sum(_SIDES, ())) if name in data]
        if len(there) != 1:
            reason = f"holds no single answer ({', '.join(_SINGLE)}), but {', '.join(data) or 'nothing'}"
            raise ShapeError("data", reason, "missing")
        name = there[0]
    prompt, names, used = prompt_in(data, "data.")
    axis = {} if result.tags[0].lower() in _GENERAL or not result.tags[0] else {"axis": result.tags[0]}
    fields = _fields(result, used, [_Answer(data[name], f"data.{name}", name)])
    names |= {"response": f"data.{name}", "score": f"{result.place}.rating"}
    return Shaped({**prompt, "response": data[name], **verdict, **axis, **fields}, names)


def _verdict(result: _Result) -> dict[str, Any] | Unusable:
    if result.kind == "rating":
        score = number_of(result.value.get("rating"))
        if score is None or score <= 0:  # no star was given
            return Unusable("no-verdict", f"{result.place}.rating", "must be a number of stars from 1")
        return {"score": score}
    choices = result.value.get("choices")
    words = [str(one).lower() for one in choices] if isinstance(choices, list) else []
    said = {" ".join(re.split(r"[\s_-]+", word.strip())) for word in words} & (_UP | _DOWN)
    if len(said) != 1:
        return Unusable("left-out", f"{result.place}.choices", "is no thumb up or down")
    return {"thumb": said <= _UP}


def _fields(result: _Result, used: tuple[str, ...], answers: list[_Answer]) -> dict[str, Any]:
    """The labeler, the task's id, and in `meta` all that is neither prompt nor answer."""
    row, annotation = result.task, result.annotation
    source, items = answers[0].place.split(".")[1] if answers else "", {}
    if result.kind == "pairwise":
        used = (*used, answers[1].key)
    elif isinstance(row["data"].get(source), list):
        items = {source: rest} if any(rest := [_rest_of(item) for item in row["data"][source]]) else {}
    by = annotation.get("completed_by")
    who = next((by[name] for name in ("email", "id") if by.get(name)), None) if isinstance(by, dict) else by
    meta = {
        "answers": [answer.key for answer in answers],
        "data": {name: value for name, value in row["data"].items() if name not in (*used, source)} | items,
        "task": {name: value for name, value in row.items() if name not in ("id", "data", "annotations")},
        "annotation": annotation,
    }
    named = {name: str(value) for name, value in (("labeler", who), ("id", row.get("id"))) if value is not None}
    return {**named, "meta": {name: value for name, value in meta.items() if value}}


def _body_of(item: dict[str, Any]) -> str:
    return next((body for body in _BODIES if body in item), _BODIES[0])


def _rest_of(item: Any) -> dict[str, Any]:
    """What an item of a list holds besides its text."""
    return {name: value for name, value in item.items() if name != _body_of(item)} if isinstance(item, dict) else {}


FORMAT = Format(
    name="label-studio",
    about="Label Studio's JSON and JSON-MIN: rankings by drag and drop, pairs, stars and thumbs, one record a labeler",
    orientation="the first id of a ranker is the best; the selected side of a pair is better; more stars are better",
    documentation="https://labelstud.io/tags/ranker.html",
    recognise=_recognise,
    to={"ranking": _rankings, "rating": _ratings, "prompt": _prompts},
)
