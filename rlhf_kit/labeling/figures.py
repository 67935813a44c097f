"""What the admin page shows: progress, speed, agreement, gold tasks, where labelers differ, what was skipped.

Agreement is that of `rlhf-kit stats` (`stats/agreement.py`): over all pairs of opinions of two labelers on a pair of
answers, without ties; with its bootstrap interval over prompts, and Krippendorff's alpha. Where answers are rated one
by one, two marks of a labeler order two answers to a prompt. Gold tasks have no part in it: they were chosen for being
clear, and everybody has them.

All that needs every answer is worked out once for the same answers.
"""

from __future__ import annotations

import statistics
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import gt, lt
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .accounts import Opinion, Skipped
from .replies import SCALE
from .store import Store
from .tasks import LETTERS, Task, as_text

if TYPE_CHECKING:
    from rlhf_kit.stats.figures import Share
    from rlhf_kit.stats.ranking_table import Columns

__all__ = ["figures", "gold_pairs", "task_agreement"]

_SHOWN = 50
_WORKING = 600.0
"""Seconds since the last answer within which a labeler is taken to be at work."""


def figures(store: Store) -> dict[str, Any]:
    """Everything that the page shows, as JSON.

    * `tasks`: all but gold ones; `done` are those to which no further answer can come.
    * `answers` and `skipped`: of all labelers, without gold tasks.
    * `seconds_left`: the answers that are still to come at the mean time of those that were given, by as many labelers
      as were at work in the last ten minutes (at least one). None before the first answer.
    * of a labeler: `median_seconds` and `per_hour` by the times of their answers; `gold_right` of `gold_pairs`, see
      `gold_pairs`; `agreement` with the others; `last_at` in seconds since 1970.
    * `disagreements`: tasks on which labelers differ, those with the least agreement first; see `task_agreement`.
      `ranks` of an answer by labeler, or marks where answers are rated.
    """
    found = _found(store)
    progress, count, skips = store.progress(), store.counts(), list(store.skipped())
    plain = [skip for skip in skips if not skip.task.gold]
    return {
        "paused": store.paused,
        "tasks": {"all": progress.tasks, "done": count.done, "open": progress.tasks - count.done, "gold": count.gold},
        "answers": progress.answered,
        "skipped": len(plain),
        "seconds_left": _seconds_left(progress.left, found, skips, store.now()),
        "labelers": _labelers(store, found, skips),
        "agreement": found.agreement,
        "disagreements": [_disagreement(store, one) for one in found.disagreements],
        "skips": [_skip(skip) for skip in sorted(plain, key=lambda skip: -skip.at)[:_SHOWN]],
    }


@dataclass(frozen=True)
class _Found:
    """What all answers say."""

    opinions: tuple[Opinion, ...]
    agreement: dict[str, Any] | None
    of_labelers: Mapping[str, dict[str, Any]]
    gold: Mapping[str, tuple[int, int]]
    """By labeler pairs of gold tasks, and those that are right."""
    disagreements: tuple[tuple[float, tuple[Opinion, ...]], ...]


_KEPT: WeakKeyDictionary[Store, tuple[object, _Found]] = WeakKeyDictionary()
_ONE_AT_A_TIME = threading.Lock()


def _found(store: Store) -> _Found:
    with _ONE_AT_A_TIME:
        version = store.version()
        kept = _KEPT.get(store)
        if kept is None or kept[0] != version:
            kept = version, _work_out(store)
            _KEPT[store] = kept
        return kept[1]


def _work_out(store: Store) -> _Found:
    opinions = tuple(store.opinions())
    plain, gold = [one for one in opinions if not one.gold], [one for one in opinions if one.gold]
    whole, of_labelers = _agreement(plain)
    known = {task.id: task for one in {one.task for one in gold} if (task := store.task(one)) is not None}
    counts: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for one in gold:
        pairs, right = gold_pairs(known[one.task], one)
        counts[one.labeler] = counts[one.labeler][0] + pairs, counts[one.labeler][1] + right
    return _Found(opinions, whole, of_labelers, counts, tuple(_disagreements(plain)))


# ---- agreement


def _agreement(opinions: Sequence[Opinion]) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]]]:
    sets = list(_sets(opinions))
    if not sets:
        return None, {}
    from rlhf_kit.stats.agreement import agreement

    names = sorted({labeler for _, _, labeler, _ in sets})
    whole, of_labelers = agreement(_tables(sets, names), seed=0)
    if whole is None:
        return None, {}
    shares = {names[number - 1]: _share(share) for number, share in of_labelers.items() if share.total}
    return {"pairs": _share(whole.pairs), "alpha": whole.alpha}, shares


_Set = tuple[str, str, str, tuple[int, ...]]
"""A prompt, which of its answers, a labeler, and their ranks."""


def _sets(opinions: Iterable[Opinion]) -> Iterator[_Set]:
    """What several labelers said of the same answers."""
    shared = Counter(one.task for one in opinions)
    marks: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for one in opinions:
        if shared[one.task] < 2:
            continue
        if one.ranks:
            yield one.prompt, one.task, one.labeler, one.ranks
        elif one.mark is not None:
            marks[one.prompt, one.labeler][one.task] = one.mark
    for (prompt, labeler), given in marks.items():
        for first, second in combinations(sorted(given), 2):
            yield prompt, f"{first} {second}", labeler, (-given[first], -given[second])


def _tables(sets: Sequence[_Set], names: Sequence[str]) -> list[Columns]:
    import numpy as np

    from rlhf_kit.stats.ranking_table import Columns

    prompts = {name: number for number, name in enumerate(dict.fromkeys(prompt for prompt, _, _, _ in sets))}
    contents = {name: number for number, name in enumerate(dict.fromkeys(content for _, content, _, _ in sets))}
    labelers = {name: number for number, name in enumerate(names, 1)}
    of_size: dict[int, list[_Set]] = defaultdict(list)
    for one in sets:
        of_size[len(one[3])].append(one)
    tables = []
    for group in of_size.values():
        none = np.zeros(len(group), dtype=np.int64)
        tables.append(
            Columns(
                np.array([prompts[prompt] for prompt, _, _, _ in group]),
                np.array([contents[content] for _, content, _, _ in group]),
                np.array([labelers[labeler] for _, _, labeler, _ in group]),
                np.array([ranks for _, _, _, ranks in group]),
                (none, none),
                (none, none),
            )
        )
    return tables


def _share(share: Share) -> dict[str, Any]:
    return {"value": share.value, "low": share.low, "high": share.high}


# ---- single tasks


def gold_pairs(task: Task, opinion: Opinion) -> tuple[int, int]:
    """How many pairs of a gold task's answers have different known ranks, and how many of them are ordered so.

    A tie is not right. Of a task to rate, the mark is one pair, and right within one step of the known one.
    """
    if opinion.mark is not None:
        return 1, int(abs(opinion.mark - int(task.candidates[0].meta["overall"])) <= 1)
    known = [candidate.rank or 0 for candidate in task.candidates]
    pairs = [(i, j) for i in range(len(known)) for j in range(len(known)) if known[i] < known[j]]
    return len(pairs), sum(opinion.ranks[i] < opinion.ranks[j] for i, j in pairs)


def task_agreement(opinions: Sequence[Opinion]) -> float | None:
    """How far labelers agree on a task: of all pairs of opinions on a pair of its answers, the share that say the same
    of better, worse and tie. Of marks, 1 less the width of their range in that of the scale.

    None where there is only one opinion, or none that ranks or rates.
    """
    if len(opinions) < 2:
        return None
    marks = [one.mark for one in opinions if one.mark is not None]
    if marks:
        return 1 - (max(marks) - min(marks)) / (SCALE[1] - SCALE[0])
    same = total = 0
    for first, second in combinations(zip(*(one.ranks for one in opinions), strict=True), 2):
        better = sum(map(lt, first, second))
        worse = sum(map(gt, first, second))
        same += sum(count * (count - 1) // 2 for count in (better, worse, len(opinions) - better - worse))
        total += len(opinions) * (len(opinions) - 1) // 2
    return same / total if total else None


def _disagreements(opinions: Iterable[Opinion]) -> list[tuple[float, tuple[Opinion, ...]]]:
    of_task: dict[str, list[Opinion]] = defaultdict(list)
    for one in opinions:
        of_task[one.task].append(one)
    found = [(value, tuple(said)) for said in of_task.values() if (value := task_agreement(said)) is not None]
    return sorted((one for one in found if one[0] < 1), key=lambda one: one[0])[:_SHOWN]


def _disagreement(store: Store, one: tuple[float, tuple[Opinion, ...]]) -> dict[str, Any]:
    value, opinions = one
    task = store.task(opinions[0].task)
    assert task is not None
    answers = []
    for index, (key, candidate) in enumerate(zip(LETTERS, task.candidates, strict=False)):
        said = {one.labeler: one.ranks[index] if one.mark is None else one.mark for one in opinions}
        answers.append({"key": key, "text": candidate.text, "source": candidate.source, "ranks": said})
    return {"task": task.id, "prompt": as_text(task), "answers": answers, "agreement": value}


def _skip(skip: Skipped) -> dict[str, Any]:
    prompt = as_text(skip.task)
    return {"task": skip.task.id, "labeler": skip.labeler, "reason": skip.reason, "note": skip.note, "prompt": prompt}


# ---- labelers


def _labelers(store: Store, found: _Found, skips: Iterable[Skipped]) -> list[dict[str, Any]]:
    skipped, opinions = defaultdict[str, list[float]](list), defaultdict[str, list[Opinion]](list)
    for skip in skips:
        skipped[skip.labeler].append(skip.at)
    for one in found.opinions:
        opinions[one.labeler].append(one)
    rows = []
    for name in dict.fromkeys([*store.labelers(), *opinions, *skipped]):
        seconds = [one.seconds for one in opinions[name] if one.seconds > 0]
        pairs, right = found.gold.get(name, (0, 0))
        rows.append(
            {
                "name": name,
                "answered": len(opinions[name]),
                "skipped": len(skipped[name]),
                "median_seconds": statistics.median(seconds) if seconds else None,
                "per_hour": 3600 / statistics.fmean(seconds) if seconds else None,
                "gold_pairs": pairs,
                "gold_right": right,
                "agreement": found.of_labelers.get(name),
                "last_at": max([*skipped[name], *(one.at for one in opinions[name])], default=None),
            }
        )
    return rows


def _seconds_left(left: int, found: _Found, skips: Iterable[Skipped], now: float) -> float | None:
    timed = [one for one in found.opinions if one.seconds > 0]  # those from elsewhere have no time
    if not timed:
        return None
    last = [(one.labeler, one.at) for one in timed] + [(skip.labeler, skip.at) for skip in skips]
    working = {labeler for labeler, at in last if now - at <= _WORKING}
    return left * statistics.fmean(one.seconds for one in timed) / max(1, len(working))
