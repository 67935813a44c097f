"""What people say of some tasks, for those who wait for it: a judge's page, rewards while PPO trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from .accounts import Answered, Skipped
from .store import Store

__all__ = ["Watch"]


class Watch:
    """What people have said so far of some tasks of a store, whoever serves it.

    Args:
        tasks: by their ids.
        opinions: answers that a task waits for.
        batch: of all these tasks, to read no answers but its own.

    Attributes:
        answers: by task, those that have come; a task without any is not among them.
        count: of the tasks.
        left: tasks that are waited for. None is any longer with as many answers as are wanted, or once everybody who
            may answer has answered or skipped it.
    """

    def __init__(self, store: Store, tasks: AbstractSet[str], *, opinions: int = 1, batch: str | None = None) -> None:
        self.store, self._tasks, self._opinions, self._batch = store, tasks, opinions, batch
        self.answers: Mapping[str, Sequence[Answered]] = {}
        self.count = self.left = len(tasks)
        self._version: object = None
        self._closed: AbstractSet[tuple[str, str, float]] = frozenset()
        self.look()

    def over(self) -> bool:
        """Whether none is waited for any longer, by what there is now."""
        self.look()
        return self.left == 0

    def look(self) -> bool:
        """Reads what there is, where the file says that something has changed; whether anything was said of these
        tasks, skipped or taken back since it was last read."""
        version = self.store.version()
        if version == self._version:
            return False
        self._version = version
        answered = [one for one in self.store.answered(batch=self._batch) if one.task.id in self._tasks]
        skipped = [one for one in self.store.skipped() if one.task.id in self._tasks]
        closed: list[Answered | Skipped] = [*answered, *skipped]
        answers, through = defaultdict[str, list[Answered]](list), defaultdict[str, set[str]](set)
        for one in answered:
            answers[one.task.id].append(one)
        for each in closed:
            through[each.task.id].add(each.labeler)
        people = set(self.store.labelers())
        settled = {task for task, given in answers.items() if len(given) >= self._opinions}
        settled |= {task for task, who in through.items() if people and people <= who}
        self.answers, self.left = answers, self.count - len(settled)
        before, self._closed = self._closed, {(each.task.id, each.labeler, each.at) for each in closed}
        return self._closed != before
