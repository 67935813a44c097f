"""From answers to records: rows that `rlhf-kit validate` passes.

Gold tasks and skips are left out. `meta` has what the record has no field for: `seconds`, the order in which the
answers were `shown` (indices into them), a `note`, `late` for an answer more than was wanted, and what the task's row
said. Ranks have no gaps: 1, 3, 3 becomes 1, 2, 2.

A few-shot prompt is written as people write them: the instruction, the examples as `Q:` and `A:`, and of the last one
the question alone, which is what the model has to answer (so InstructGPT made a prompt of K - 1 of K pairs, arXiv
2203.02155, appendix A.1). All examples are in `meta.examples`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_kit.checks.labelers import dense
from rlhf_kit.errors import DataError, Problem
from rlhf_kit.outputs import Files, json_line, row_of
from rlhf_kit.records import Conversation, Demonstration, Flags, Prompt, Ranking, Rating, Record, Response

from .accounts import SAID, Answered, in_order
from .replies import SCALE, CompareReply, DemonstrationReply, PromptReply, RankReply, RateReply, dense_axes
from .store import Store
from .tasks import LETTERS, Candidate

__all__ = ["few_shot", "ranks_of", "records", "write_records"]


def records(store: Store, *, batch: str | None = None) -> list[Record]:
    """What was answered, or of it what belongs to a batch, in the order of the tasks."""
    found = [one for one in store.answered(batch=batch) if not one.task.gold]
    return [_record(one, name) for one, name in zip(found, _names(found), strict=True)]


def write_records(store: Store, out: Path, *, batch: str | None = None) -> int:
    """Writes them as JSON Lines, whole or not at all, and returns how many. Where there are none, nothing is written.

    Raises:
        DataError: the file cannot be written, or the answers are of several kinds, which a file cannot hold.
    """
    rows = records(store, batch=batch)
    kinds = sorted({type(row).__name__.lower() for row in rows})
    if len(kinds) > 1:
        reason = (
            f"holds answers of several kinds ({', '.join(kinds)}); a file of rows takes one, so use a store for each"
        )
        raise DataError([Problem(str(store.path), "", reason)])
    if rows:
        with Files([out]) as files:
            for row in rows:
                files.write(out, json_line(row_of(row)))
    return len(rows)


def _names(found: Sequence[Answered]) -> list[str | None]:
    """A name for each: its row's own, with the labeler's and if need be the task's where one row has several."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, one in enumerate(found):
        if isinstance(name := one.task.carried.get("id"), str):
            groups[name].append(index)
    names: list[str | None] = [None] * len(found)
    for name, group in groups.items():
        labelers = Counter(found[index].labeler for index in group)
        for index in group:
            one = found[index]
            by_labeler = f"{name}/{one.labeler}"
            if len(group) == 1:
                names[index] = name
            elif max(labelers.values()) == 1 and by_labeler not in groups:
                names[index] = by_labeler
            else:
                names[index] = f"{name}/{one.task.id}/{one.labeler}"
    return names


def _record(one: Answered, name: str | None) -> Record:
    reply, task = one.reply, one.task
    said: dict[str, Any] = {"labeler": one.labeler, "id": name}
    if isinstance(reply, PromptReply):
        return _prompt(one, reply, said)
    assert task.prompt is not None
    if isinstance(reply, DemonstrationReply):
        fields = _fields(one, ("category", "kind", "origin", "user_id"), {})
        return Demonstration(prompt=task.prompt, completion=reply.completion, **said, **fields)
    if isinstance(reply, RateReply):
        return _rating(one, reply, task.prompt, said)
    return _ranking(one, reply, task.prompt, said)


def _ranking(one: Answered, reply: RankReply | CompareReply, prompt: Conversation, said: Mapping[str, Any]) -> Ranking:
    candidates = one.task.candidates
    ranks = ranks_of(reply, one.order)
    responses = [
        Response(text=candidate.text, rank=rank, source=candidate.source, ended=candidate.ended)
        for candidate, rank in zip(candidates, ranks, strict=True)
    ]
    if isinstance(reply, RankReply):
        answers = [reply.answers[LETTERS[one.order.index(index)]] for index in range(len(candidates))]
        axes = dense_axes([answer.axes for answer in answers])
        for index, answer in enumerate(answers):
            flags = Flags(**answer.flags) if answer.flags else None
            marked = {"overall": answer.overall, "flags": flags, "axes": axes[index] or None}
            responses[index] = responses[index].model_copy(update=marked)
    kept = [dict(candidate.meta) for candidate in candidates]
    fields = _fields(one, ("category", "user_id"), {"answers": kept} if any(kept) else {})
    return Ranking(prompt=prompt, responses=tuple(responses), **said, **fields)


def ranks_of(reply: RankReply | CompareReply, order: Sequence[int]) -> tuple[int, ...]:
    """The ranks, without gaps, in the order of the task's candidates and not of the page."""
    if isinstance(reply, CompareReply):
        return in_order(SAID[reply.better], order)
    return in_order(dense([reply.answers[key].rank for key in LETTERS[: len(order)]]), order)


def _rating(one: Answered, reply: RateReply, prompt: Conversation, said: Mapping[str, Any]) -> Rating:
    candidate: Candidate = one.task.candidates[0]
    more: dict[str, Any] = {
        **({"flags": dict(reply.flags)} if reply.flags else {}),
        **({} if candidate.ended else {"ended": False}),
        **({"answers": [dict(candidate.meta)]} if candidate.meta else {}),
    }
    fields = _fields(one, ("category", "user_id"), more)
    scale = (float(SCALE[0]), float(SCALE[1]))
    score = float(reply.overall)
    return Rating(
        prompt=prompt, response=candidate.text, score=score, scale=scale, source=candidate.source, **said, **fields
    )


def _prompt(one: Answered, reply: PromptReply, said: Mapping[str, Any]) -> Prompt:
    examples = [example.model_dump() for example in reply.examples]
    hint = one.task.carried.get("hint")
    more = {**({"examples": examples} if examples else {}), **({"hint": hint} if hint else {})}
    fields = _fields(one, ("category", "user_id"), more)
    if reply.use_case:
        fields["category"] = reply.use_case.strip()
    text = few_shot(reply) if reply.examples else reply.prompt
    return Prompt(prompt=text, kind=reply.kind, origin="labeler", **said, **fields)


def few_shot(reply: PromptReply) -> str:
    """The instruction, the examples, and the question of the last one left open."""
    *shown, last = reply.examples
    parts = [reply.prompt, *(f"Q: {example.query}\nA: {example.response}" for example in shown), f"Q: {last.query}\nA:"]
    return "\n\n".join(parts)


def _fields(one: Answered, names: Sequence[str], more: Mapping[str, Any]) -> dict[str, Any]:
    """What the task's row said, in the record's fields of these `names` and else in `meta`, with what is told of the
    answer; where both have a name, the row's `meta` is in `meta.meta`."""
    carried = one.task.carried
    other = ("kind", "origin") if one.task.kind != "write" else ()
    rest = {name: carried[name] for name in other if name in carried and name not in names}
    own: dict[str, Any] = {"seconds": round(one.seconds, 1), **rest, **more}
    if one.order:
        own["shown"] = list(one.order)
    if one.reply.note:
        own["note"] = one.reply.note
    if one.late:
        own["late"] = True
    meta = carried.get("meta", {})
    meta = {"meta": meta, **own} if meta.keys() & own.keys() else {**meta, **own}
    return {**{name: carried[name] for name in names if name in carried}, "meta": meta}
