"""Tasks for Label Studio and Argilla, and answers that were given there or anywhere else.

What is written is what these tools import, in the layouts that `formats/label_studio.py` and `formats/argilla.py` read
back. Who wrote an answer is not told: it comes back with the answers, which are matched by prompt and text.

* Label Studio: a file of tasks, and beside it the labelling configuration (`.xml`) of `label_studio_page.py`.
* Argilla 2: a directory that `rg.Dataset.from_disk` loads, with a ranking or a rating question. Its ranking question
  has the same answers in every record, so tasks with another number of answers are a dataset of their own.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_kit import files
from rlhf_kit.checks.labelers import dense
from rlhf_kit.codes import severity_of
from rlhf_kit.errors import DataError, Problem, RlhfKitError
from rlhf_kit.guessing import Guess, guess
from rlhf_kit.outputs import Files
from rlhf_kit.records import Ranking, Rating, Record, prompt_name

from .label_studio_page import configuration
from .replies import SCALE, AnswerReply, CompareReply, RankReply, RateReply, Reply, dense_axes
from .store import Refused, Store
from .tasks import LETTERS, Task

__all__ = ["ARGILLA", "LABEL_STUDIO", "hand_over", "take"]

log = logging.getLogger(__name__)

LABEL_STUDIO, ARGILLA = "label-studio", "argilla"
_MOST_NAMED = 5  # rows that are told one by one
_AT_ONCE = 1_000  # rows that wait for the disk once; whoever serves the store waits for so many


def hand_over(tasks: Sequence[Task], to: str, out: Path) -> int:
    """Writes tasks for another tool and returns how many.

    Args:
        to: `label-studio`, or `argilla`, for which `out` is a directory.

    Raises:
        RlhfKitError: the tasks are not of one kind that the tool can show.
        DataError: they cannot be written.
    """
    kinds = sorted({task.kind for task in tasks})
    if len(kinds) != 1 or kinds[0] not in ("rank", "compare", "rate"):
        words = " and ".join(kinds) or "no"
        raise RlhfKitError(
            f"{to} can be given tasks to rank, to compare or to rate, of one kind; these are {words} tasks"
        )
    write = _for_label_studio if to == LABEL_STUDIO else _for_argilla
    contents = write(tasks, out)
    with Files(contents) as written:
        for path, content in contents.items():
            written.write(path, content.encode("utf-8"))
    return len(tasks)


def _order(task: Task) -> tuple[int, ...]:
    """The order in which the answers are shown there: the same for a task, and none that tells who wrote them."""
    order = list(range(len(task.candidates)))
    random.Random(task.id).shuffle(order)
    return tuple(order)


def _shown(task: Task) -> list[str]:
    return [task.candidates[place].text for place in _order(task)]


def _prompts(tasks: Sequence[Task]) -> list[Any]:
    """Texts, or turns where one is a conversation: a tool shows all prompts in one way."""
    if all(isinstance(task.prompt, str) for task in tasks):
        return [task.prompt for task in tasks]
    return [
        [{"role": "user", "content": task.prompt}]
        if isinstance(task.prompt, str)
        else [turn.model_dump() for turn in task.prompt or ()]
        for task in tasks
    ]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


# -------------------------------------------------------------------- Label Studio


def _for_label_studio(tasks: Sequence[Task], out: Path) -> dict[Path, str]:
    prompts, kind = _prompts(tasks), tasks[0].kind
    rows = [
        {"data": {"prompt": prompt, **_data(kind, _shown(task))}} for task, prompt in zip(tasks, prompts, strict=True)
    ]
    config = configuration(kind, chat=not isinstance(prompts[0], str))
    return {out: _json(rows), out.with_suffix(".xml"): config}


def _data(kind: str, texts: Sequence[str]) -> dict[str, Any]:
    if kind == "rank":
        return {"items": [{"id": key, "body": text} for key, text in zip(LETTERS, texts, strict=False)]}
    names = ("response",) if kind == "rate" else ("answer1", "answer2")
    return dict(zip(names, texts, strict=True))


# -------------------------------------------------------------------- Argilla


def _for_argilla(tasks: Sequence[Task], out: Path) -> dict[Path, str]:
    if out.is_file():
        raise DataError([Problem(str(out), "", "is a file; Argilla's datasets are directories, name a new one")])
    by_size = defaultdict[int, list[Task]](list)
    for task in tasks:
        by_size[len(task.candidates)].append(task)
    contents = dict[Path, str]()
    for size, group in sorted(by_size.items()):
        contents |= _dataset(group, out if len(by_size) == 1 else out / f"{size}-answers", out.name)
    return contents


def _dataset(tasks: Sequence[Task], folder: Path, name: str) -> dict[Path, str]:
    prompts, kind = _prompts(tasks), tasks[0].kind
    size = len(tasks[0].candidates)
    names = ["response"] if kind == "rate" else [f"response_{number}" for number in range(1, size + 1)]
    records = [
        {"id": task.id, "fields": {"prompt": prompt, **dict(zip(names, _shown(task), strict=True))}}
        for task, prompt in zip(tasks, prompts, strict=True)
    ]
    label = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_") or "tasks"
    dataset = {"name": f"{label}-{size}" if folder.name != name else label, "allow_extra_metadata": False}
    return {
        folder / "records.json": _json(records),
        folder / ".argilla" / "settings.json": _json(_settings(kind, names, chat=not isinstance(prompts[0], str))),
        folder / ".argilla" / "dataset.json": _json(dataset),
    }


def _settings(kind: str, names: Sequence[str], *, chat: bool) -> dict[str, Any]:
    titles = {name: name.replace("_", " ").capitalize() for name in ("prompt", *names)}
    prompt = {"type": "chat" if chat else "text", "use_markdown": True}
    fields = [_property("prompt", titles["prompt"], prompt)]
    fields += [_property(name, titles[name], {"type": "text", "use_markdown": True}) for name in names]
    if kind == "rate":
        question = _property("rating", "How good is it?", {"type": "rating", "options": _marks()})
    else:
        options = [{"value": name, "text": titles[name]} for name in names]
        question = _property("ranking", "The best answer first", {"type": "ranking", "options": options})
    return {
        "guidelines": None,
        "questions": [question],
        "fields": fields,
        "vectors": [],
        "metadata": [],
        "allow_extra_metadata": False,
        "distribution": {"strategy": "overlap", "min_submitted": 1},
        "mapping": None,
    }


def _marks() -> list[dict[str, int]]:
    return [{"value": mark} for mark in range(SCALE[0], SCALE[1] + 1)]


def _property(name: str, title: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "title": title, "required": True, "description": None, "settings": dict(settings)}


# -------------------------------------------------------------------- back


def take(store: Store, file: str) -> int:
    """Puts the rankings or ratings of a file into the store, as answers of those who gave them; returns how many are
    new. They are matched by prompt and text: a ranking of more answers than a task has orders those of the task too.

    The file is an export of Label Studio or Argilla, or of any other format that `rlhf-kit convert` knows, or rows of
    the kit's own. Answers without a labeler are those of one who is called like the file. What matches no task is told,
    and so is what cannot be used of a tool's export: people submit empty answers there.

    Raises:
        DataError: every row of the kit's own that cannot be used; nothing can; it holds neither rankings nor ratings.
        RlhfKitError: nothing in it is an answer to a task of the store.
    """
    found = guess(file)
    wanted = "rating" if store.kind() == "rate" else "ranking"
    if found.format is not None and found.kind == "prompt" and wanted in found.format.to:
        found = found._replace(kind=wanted)  # the first tasks of a project are not labelled yet
    if found.kind not in ("ranking", "rating"):
        raise DataError([Problem(file, "", f"holds no rankings or ratings: {found.why}")])
    rows, unusable = _read(file, found)
    tasks = defaultdict[Any, list[Task]](list)
    for task in store.tasks():
        if task.prompt is not None and not task.gold:
            tasks[prompt_name(task.prompt)].append(task)
    account, unnamed = _Account(store, from_tool=found.format is not None), Path(file).name.partition(".")[0]
    account.without += unusable
    for start in range(0, len(rows), _AT_ONCE):
        with store.together():
            for record, where in rows[start : start + _AT_ONCE]:
                assert isinstance(record, (Ranking, Rating))
                account.take(record, record.labeler or unnamed, tasks.get(prompt_name(record.prompt), []), where)
    account.tell(file, len(rows) + len(unusable))
    return account.new


def _read(file: str, found: Guess) -> tuple[list[tuple[Record, str]], list[str]]:
    """The records of a file with their places, and of a foreign format what cannot be used, each with the reason."""
    if found.format is None:
        checked = files.check(file, found.kind)
        if checked.problems:
            raise DataError(checked.problems)
        return list(zip(checked.records, checked.wheres, strict=True)), []
    rows, unusable, broken = list[tuple[Record, str]](), list[Problem](), list[Problem]()
    for entry in files.scan(file, found.kind, found.format):
        wrong = [problem for problem in entry.problems if severity_of(problem.code) == "error"]
        (unusable if entry.row.is_row else broken).extend(wrong)
        rows += [(record, entry.where) for record in entry.records]
    if broken or not rows:
        raise DataError(broken or unusable or [Problem(file, "", f"holds no {found.kind}: {found.why}")])
    return rows, list(map(str, unusable))


class _Account:
    """What became of the rows of a file; `from_tool` says that they were shown as `hand_over` shows them."""

    def __init__(self, store: Store, *, from_tool: bool) -> None:
        self.store, self.from_tool = store, from_tool
        self.new = self.known = 0
        self.without: list[str] = []
        """Rows that answer no task, each with the reason."""

    def take(self, record: Ranking | Rating, labeler: str, tasks: Sequence[Task], where: str) -> None:
        """Keeps what a row says of tasks with its prompt."""
        why = "no task with these answers" if tasks else "no task with this prompt"
        answers = False
        for task in tasks:
            order = _order(task) if self.from_tool else tuple(range(len(task.candidates)))
            reply = _reply(task, record, order)
            if reply is None:
                continue
            try:
                new = self.store.take(labeler, task.id, reply, order=order)
            except Refused as refusal:
                why = str(refusal)
                continue
            answers = True
            self.new += new
            self.known += not new
        if not answers:
            self.without.append(f"{where}: {why}")

    def tell(self, file: str, rows: int) -> None:
        """Says what was not taken, and raises `RlhfKitError` where nothing was."""
        named = "; ".join(self.without[:_MOST_NAMED])
        more = len(self.without) - _MOST_NAMED
        named += f"; and {more:,} more" if more > 0 else ""
        if not self.new + self.known:
            raise RlhfKitError(f"{file}: nothing in it answers a task of {self.store.path.name}: {named}")
        log.info("%s: %d of %d rows answer tasks", file, rows - len(self.without), rows)
        if self.known:
            log.info("%s: %d of the answers were there already", file, self.known)
        if self.without:
            log.warning("%s: %d rows are left out: %s", file, len(self.without), named)


def _reply(task: Task, record: Ranking | Rating, order: Sequence[int]) -> Reply | None:
    """What a record says of a task, its answers named by a shown order; None where it says nothing."""
    if isinstance(record, Rating):
        return _rated(task, record)
    said = {response.text: response for response in record.responses}
    if task.kind not in ("rank", "compare") or any(one.text not in said for one in task.candidates):
        return None
    shown = [said[task.candidates[place].text] for place in order]
    ranks = dense([response.rank for response in shown])
    if task.kind == "compare":
        return CompareReply(better="A" if ranks[0] < ranks[1] else "B" if ranks[1] < ranks[0] else "tie")
    axes = dense_axes([response.axes or {} for response in shown])
    return RankReply(
        answers={
            LETTERS[place]: AnswerReply(
                rank=ranks[place],
                overall=response.overall,
                flags=response.flags.model_dump(exclude_none=True) if response.flags else {},
                axes=axes[place],
            )
            for place, response in enumerate(shown)
        }
    )


def _rated(task: Task, record: Rating) -> RateReply | None:
    """Stars and marks on the scale of the page; a mark on another scale says nothing that could be taken over."""
    score = record.score
    if task.kind != "rate" or record.response != task.candidates[0].text or record.axis is not None or score is None:
        return None
    if record.scale not in (None, SCALE) or score not in range(SCALE[0], SCALE[1] + 1):
        return None
    return RateReply(overall=int(score))
