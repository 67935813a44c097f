"""How what labelers do gets to the disk: in the order in which it came, many at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.responses import Response

from rlhf_kit.labeling.store import Store

__all__ = ["Writer"]

_T = TypeVar("_T")
_MOST = 16
"""Changes that go to the disk at once: more would make all of them wait for the last."""


@dataclass(frozen=True)
class _Job:
    change: Callable[[], Any]
    show: Callable[[Any], Response]
    done: asyncio.Future[Response]


class Writer:
    """Changes a store, one change after another; those that came while the disk was busy wait for it together.

    One thread changes, and others make the answers of all that were on the disk at once: a thread for each request
    would wait for Python's lock at each of its statements.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[_Job] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._threads = CapacityLimiter(8)  # texts that take long to show do not hold up everybody

    async def write(self, change: Callable[[], _T], show: Callable[[_T], Response]) -> Response:
        """The answer that `show` makes of what `change` gave, when that is on the disk.

        A change that raises undoes itself alone, and raises here.
        """
        job = _Job(change, show, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await job.done

    async def _work(self) -> None:
        while self._waiting:
            jobs = [self._waiting.popleft() for _ in range(min(_MOST, len(self._waiting)))]
            try:
                changed = await run_sync(self._change, jobs)
            except Exception as error:  # nothing of it is on the disk
                changed = [error] * len(jobs)
            task = asyncio.create_task(self._answer(jobs, changed))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answer(self, jobs: Sequence[_Job], changed: Sequence[Any]) -> None:
        answers = await run_sync(_show, jobs, changed, limiter=self._threads)
        for job, answer in zip(jobs, answers, strict=True):
            if job.done.done():  # nobody waits any more
                continue
            if isinstance(answer, Exception):
                job.done.set_exception(answer)
            else:
                job.done.set_result(answer)

    def _change(self, jobs: Sequence[_Job]) -> list[Any]:
        """What each change gave, or the exception that it raised."""
        with self._store.together():
            return [_tried(self._whole, job.change) for job in jobs]

    def _whole(self, change: Callable[[], _T]) -> _T:
        """All that a change writes, or nothing of it."""
        with self._store.together():
            return change()


def _show(jobs: Sequence[_Job], changed: Sequence[Any]) -> list[Response | Exception]:
    return [
        one if isinstance(one, Exception) else _tried(job.show, one) for job, one in zip(jobs, changed, strict=True)
    ]


def _tried(function: Callable[..., _T], *given: Any) -> _T | Exception:
    try:
        return function(*given)
    except Exception as error:
        return error
