"""What a labeler is asked, and how files become tasks.

A task is known by its content, so that the same question from two files, or from one file twice, is one task.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf_kit import files
from rlhf_kit.errors import DataError, Problem
from rlhf_kit.reasons import NON_BLANK, field_of, findings, reason_of
from rlhf_kit.records import Conversation, Message, Prompt, Ranking, Rating, Record, Text, joined_sources, prompt_name

__all__ = [
    "KINDS",
    "LETTERS",
    "Candidate",
    "Kind",
    "Task",
    "as_text",
    "blank_tasks",
    "read_tasks",
    "task_of",
    "to_json",
]

Kind: TypeAlias = Literal["rank", "compare", "rate", "demonstrate", "write"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PromptKind: TypeAlias = Literal["plain", "few_shot", "use_case"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The keys of shown answers: the first of them is A. More than there are letters cannot stand side by side."""
_CARRIED = ("category", "kind", "origin", "user_id", "id")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """One answer that is shown."""

    text: str
    ended: bool = True
    source: str | None = None
    """Who wrote it; kept from labelers."""
    rank: int | None = None
    """The known one of a gold task, 1 = best."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Such as count, tokens and score: kept, never shown. Of a gold task to rate, `overall` is the known mark."""


@dataclass(frozen=True)
class Task:
    """One question to a labeler."""

    kind: Kind
    prompt: Conversation | None
    """None where a prompt is to be written."""
    candidates: tuple[Candidate, ...] = ()
    carried: Mapping[str, Any] = field(default_factory=dict)
    """What its row says besides (category, kind, origin, user_id, id, meta), for the record. Of a prompt to write:
    `kind`, plain, few_shot or use_case, where it is not the labeler's choice, and `hint`, a text; `number` tells tasks
    apart that are alike in both."""
    gold: bool = False
    """Its answer is known; it tells how labelers do, and is never exported."""
    priority: float = 0.0
    """Higher ones are asked first."""

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits of the kind, the prompt, the texts in any order, and whether it is gold.

        Of a prompt to write, of what is carried for it.
        """
        texts = sorted(candidate.text for candidate in self.candidates)
        return _digest([self.kind, self.gold, self.prompt_id, texts])

    @cached_property
    def prompt_id(self) -> str:
        """The same for tasks that ask the same of a model."""
        if self.prompt is None:
            return _digest([self.carried.get(name) for name in ("kind", "hint", "number")])
        return _digest(prompt_name(self.prompt))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def to_json(task: Task) -> dict[str, Any]:
    """The task as JSON; `task_of` reads it."""
    prompt = task.prompt
    if prompt is not None and not isinstance(prompt, str):
        turns = [turn.model_dump() for turn in prompt]
        return {**asdict(replace(task, prompt=None)), "prompt": turns}
    return asdict(task)


def task_of(value: Mapping[str, Any]) -> Task:
    """The task that `to_json` gave."""
    prompt = value["prompt"]
    if isinstance(prompt, list):
        prompt = tuple(Message(**turn) for turn in prompt)
    candidates = tuple(Candidate(**candidate) for candidate in value["candidates"])
    return Task(**{**value, "prompt": prompt, "candidates": candidates})


def as_text(task: Task) -> str:
    """The prompt as one text: a conversation's turns with who speaks; the hint of a prompt to write."""
    if task.prompt is None:
        return str(task.carried.get("hint", ""))
    if isinstance(task.prompt, str):
        return task.prompt
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in task.prompt)


def blank_tasks(count: int, kind: PromptKind | None = None, hint: str = "") -> list[Task]:
    """`count` prompts to write, all with the same hint; their kind is the labeler's choice where none is given."""
    of_kind = {} if kind is None else {"kind": kind}
    return [Task("write", None, (), {**of_kind, "hint": hint, "number": number}) for number in range(count)]


def read_tasks(source: str, kind: Kind, *, gold: bool = False) -> list[Task]:
    """The tasks in a file, each once, in the order of its rows.

    Rows are prompts with answers in `meta.responses` (as `rlhf-kit sample` and `rlhf-kit evaluate policy --sheet` write
    them), rankings or ratings; for demonstrations any row with a prompt; for prompts to write texts, which are hints
    (`meta.kind` says for which kind of prompt; without it labelers choose one).

    A row is a task to rank; each pair of its answers whose sources differ, or are not known, is one to compare; each
    answer is one to rate. Blank answers are left out, the same text stands once, and rows in which too few are left
    make no task.

    Args:
        gold: the ranks of the rows (to rate: their marks from 1 to 7) are the known answers.

    Raises:
        DataError: every bad row; nothing to ask.
    """
    if gold and kind in ("demonstrate", "write"):
        raise DataError([Problem(source, "", "tasks with a known answer are those to rank, to compare or to rate")])
    checked = files.check(source, "text" if kind == "write" else files.guess_kind(source))
    problems, tasks, without = list(checked.problems), dict[str, Task](), 0
    for record, where in zip(checked.records, checked.wheres, strict=True):
        try:
            found = list(_tasks_of(record, kind, gold, where))
        except DataError as error:
            problems += error.problems
            continue
        without += not found
        for task in found:
            tasks.setdefault(task.id, task)
    if not tasks and not problems:
        needs = "answers with different known ranks" if gold else "different answers, not blank ones"
        problems.append(Problem(source, "", f"holds nothing to {kind}: a row needs {needs}"))
    if problems:
        raise DataError(problems)
    if without:
        log.warning("%s: %d rows have too few different answers for a task", source, without)
    return list(tasks.values())


def _tasks_of(record: Record, kind: Kind, gold: bool, where: str) -> Iterator[Task]:
    if isinstance(record, Text):
        if kind != "write":
            reason = "is a hint for a prompt that is to be written; --task write asks for them"
            raise DataError([Problem(where, "", reason)])
        yield _to_write(record, where)
        return
    carried: dict[str, Any] = {name: value for name in _CARRIED if (value := getattr(record, name, None)) is not None}
    if meta := {name: value for name, value in record.meta.items() if name != "responses"}:
        carried["meta"] = meta
    if kind == "demonstrate":
        yield Task(kind, record.prompt, (), carried)
        return
    candidates = _merged(_candidates(record, gold, where), where)
    if kind == "rate":
        sets: Sequence[tuple[Candidate, ...]] = [(candidate,) for candidate in candidates]
    elif kind == "compare":
        pairs = combinations(candidates, 2)
        sets = [(one, other) for one, other in pairs if one.source is None or one.source != other.source]
    else:
        sets = [tuple(candidates)] if len(candidates) > 1 else []
        if len(candidates) > len(LETTERS):
            reason = f"{len(candidates)} different answers; a page shows at most {len(LETTERS)} side by side"
            raise DataError([Problem(where, "responses", reason)])
    if gold:
        _check_gold(candidates, kind, where)
        sets = [one for one in sets if kind == "rate" or len({candidate.rank for candidate in one}) > 1]
    for one in sets:
        yield Task(kind, record.prompt, one, carried, gold)


def _to_write(record: Text, where: str) -> Task:
    kind = record.meta.get("kind")
    if kind not in (None, *get_args(PromptKind)):
        raise DataError([Problem(where, "meta.kind", f"must be one of {', '.join(get_args(PromptKind))}")])
    meta = {name: value for name, value in record.meta.items() if name != "kind"}
    of_kind = {} if kind is None else {"kind": kind}
    carried = {**of_kind, "hint": record.text, **({"id": record.id} if record.id else {})}
    return Task("write", None, (), {**carried, **({"meta": meta} if meta else {})})


class _Answer(BaseModel):
    """An element of `meta.responses`; whatever else it holds is kept."""

    model_config = ConfigDict(strict=True, extra="allow")

    text: str
    ended: bool = True
    source: str | None = None
    rank: Annotated[int, Field(ge=1)] | None = None


def _candidates(record: Record, gold: bool, where: str) -> list[Candidate]:
    if isinstance(record, Prompt):
        return _of_sheet(record, gold, where)
    if isinstance(record, Ranking):
        said = record.responses
        marks: list[dict[str, Any]] = [
            {} if one.overall is None or not gold else {"overall": one.overall} for one in said
        ]
        return [
            Candidate(one.text, one.ended, one.source, one.rank if gold else None, mark)
            for one, mark in zip(said, marks, strict=True)
        ]
    if isinstance(record, Rating):
        known = {"overall": record.score} if gold and record.score is not None and record.scale == (1, 7) else {}
        return [Candidate(record.response, source=record.source, meta=known)]
    raise DataError(
        [Problem(where, "", "holds no answers; draw some first (rlhf-kit sample), or ask for demonstrations")]
    )


def _of_sheet(record: Prompt, gold: bool, where: str) -> list[Candidate]:
    responses, policy = record.meta.get("responses"), record.meta.get("policy")
    if not isinstance(responses, list):
        reason = "must be a list of answers, as rlhf-kit sample writes it"
        raise DataError(
            [Problem(where, "meta.responses", reason if "responses" in record.meta else f"missing; {reason}")]
        )
    found, problems = list[Candidate](), list[Problem]()
    for index, response in enumerate(responses):
        try:
            answer = _Answer.model_validate(response)
        except ValidationError as error:
            for e in findings(error):
                name = ".".join(part for part in (f"meta.responses.{index}", field_of(e)) if part)
                problems.append(Problem(where, name, reason_of(e, _Answer)))
            continue
        if re.search(NON_BLANK, answer.text):
            source = answer.source or (policy if isinstance(policy, str) and policy else None)
            rank = answer.rank if gold else None
            found.append(Candidate(answer.text, answer.ended, source, rank, dict(answer.model_extra or {})))
    if problems:
        raise DataError(problems)
    return found


def _merged(candidates: Sequence[Candidate], where: str) -> list[Candidate]:
    """Each text once, with all who gave it, in the order of the first; one that ended stands for one that did not."""
    found: dict[str, Candidate] = {}
    for candidate in candidates:
        known = found.get(candidate.text)
        if known is None:
            found[candidate.text] = candidate
            continue
        if known.rank != candidate.rank:
            raise DataError([Problem(where, "responses", "the same text stands twice, with different ranks")])
        stands = candidate if candidate.ended and not known.ended else known
        found[candidate.text] = replace(stands, source=joined_sources(known.source, candidate.source))
    return list(found.values())


def _check_gold(candidates: Sequence[Candidate], kind: Kind, where: str) -> None:
    if kind == "rate":
        marks = [candidate.meta.get("overall") for candidate in candidates]
        if not all(mark in range(1, 8) for mark in marks):
            raise DataError([Problem(where, "", "a known answer needs a whole mark, from 1 to 7")])
    elif any(candidate.rank is None for candidate in candidates):
        raise DataError([Problem(where, "", "a known answer needs the rank of each response")])
