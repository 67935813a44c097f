"""What is answered, as JSON: never the source of an answer, its score, or anything of another labeler."""

from __future__ import annotations

from typing import Any

from rlhf_kit.labeling.replies import AXES, FLAGS, SCALE, SKIP_REASONS
from rlhf_kit.labeling.store import Assignment, Progress
from rlhf_kit.labeling.tasks import LETTERS
from rlhf_kit.labeling.web.markdown import safe_html
from rlhf_kit.labeling.web.security import Person
from rlhf_kit.records import Conversation

__all__ = ["me_json", "state_json"]


def me_json(person: Person, *, title: str, guidelines: str, language: str) -> dict[str, Any]:
    """Who asks, and what the page needs to know once."""
    return {
        "name": person.name,
        "role": person.role,
        "csrf": person.csrf,
        "title": title,
        "guidelines": guidelines,
        "flags": list(FLAGS),
        "axes": list(AXES),
        "scale": list(SCALE),
        "skip_reasons": list(SKIP_REASONS),
        "language": language,
    }


def state_json(assignment: Assignment | None, progress: Progress, *, paused: bool, waiting: bool) -> dict[str, Any]:
    """The task that is open, how far its labeler is, and whether there may be more later."""
    return {
        "task": None if assignment is None else _task(assignment),
        "waiting": waiting,
        "paused": paused,
        "progress": {
            "answered": progress.answered,
            "skipped": progress.skipped,
            "left": progress.left,
            "can_undo": progress.can_undo,
        },
    }


def _task(assignment: Assignment) -> dict[str, Any]:
    task = assignment.task
    shown = zip(LETTERS, (task.candidates[index] for index in assignment.order), strict=False)
    writes = task.kind == "write"
    return {
        "assignment": assignment.id,
        "kind": task.kind,
        "prompt": [] if task.prompt is None else _turns(task.prompt),
        "answers": [{"key": key, **_text(answer.text), "ended": answer.ended} for key, answer in shown],
        "hint": safe_html(str(task.carried.get("hint") or "")) if writes else "",
        "prompt_kind": task.carried.get("kind") if writes else None,
        "draft": assignment.draft,
    }


def _turns(prompt: Conversation) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", **_text(prompt)}]
    return [{"role": turn.role, **_text(turn.content)} for turn in prompt]


def _text(text: str) -> dict[str, str]:
    return {"html": safe_html(text), "text": text}
