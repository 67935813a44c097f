"""The rows of Label Studio's JSON-MIN export as tasks of its JSON export, which `label_studio.py` reads.

A row is one annotation: the task's data, under the name of each tag what it says (`"rank": [{"ranker": {…}}]`), and
`annotator`, `annotation_id`, times. The type of a tag is not told: orders, pairs and stars are known by their shape,
thumbs are not. Skipped tasks are not in it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from .base import Outcome, Unusable

__all__ = ["is_min", "renamed", "whole"]

_TYPES = {"ranker": "ranker", "selected": "pairwise", "rating": "rating"}
"""What a result is, by the one field that it has."""
_ABOUT = ("annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement")


def is_min(row: dict[str, Any]) -> bool:
    """Whether a row is of this layout."""
    return "annotations" not in row and row.keys() >= {"annotator", "annotation_id"}


def whole(row: dict[str, Any]) -> dict[str, Any]:
    """The task with this one annotation; its id is made of both, for several people may have labelled the task."""
    said = {name: value for name, value in row.items() if _is_said(value)}
    result = [
        {"from_name": name, "to_name": "", "type": _TYPES[next(iter(one))], "value": one}
        for name, value in said.items()
        for one in value
    ]
    about = {name: row[name] for name in _ABOUT[2:] if name in row}
    annotation = {"id": row["annotation_id"], "completed_by": row["annotator"], **about, "result": result}
    data = {name: value for name, value in row.items() if name not in (*said, *_ABOUT, "id")}
    return {"id": f"{row.get('id')}-{row['annotation_id']}", "data": data, "annotations": [annotation]}


def renamed(outcome: Outcome, row: dict[str, Any]) -> Outcome:
    """What came of `whole(row)`, with the names that things have in the row."""
    places = [f"{name}.{index}" for name, value in row.items() if _is_said(value) for index in range(len(value))]

    def name_of(place: str) -> str:
        place = re.sub(r"^annotations\.0\.result\.(\d+)\.value", lambda found: places[int(found[1])], place)
        return "" if place.startswith("annotations.0") or place == "data" else place.removeprefix("data.")

    if isinstance(outcome, Unusable):
        return replace(outcome, field=name_of(outcome.field))
    return replace(outcome, names={ours: name_of(theirs) for ours, theirs in outcome.names.items()})


def _is_said(value: Any) -> bool:
    """Whether a field is what a tag says, and not the task's data."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and _has_type(one) for one in value)


def _has_type(one: dict[str, Any]) -> bool:
    return len(one) == 1 and next(iter(one)) in _TYPES
