"""Many questions to something that may fail: a few at once, asked again with patience, and given up in time."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Generic, TypeVar

__all__ = ["Hopeless", "Outcome", "Patience", "Unanswered", "ask_all"]

_T = TypeVar("_T")
_GRACE = 5.0  # seconds that what is under way gets when everything stops; its answer is paid for
_CHANCE = random.Random()  # its own, so that a seeded program draws the same numbers as without it


class Unanswered(Exception):
    """One question got no answer, which may be different next time.

    Attributes:
        wait: seconds after which to ask again, if the other side said so; nobody asks it before.
        again: how often at most to ask again after failures of this kind; None: as often as after any.
    """

    def __init__(self, reason: str, *, wait: float | None = None, again: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.again = reason, wait, again


class Hopeless(Exception):
    """No question will get an answer: nothing more must be asked."""


@dataclass(frozen=True)
class Patience:
    """How much is asked at once, and how long one bears with failures.

    Attributes:
        threads: questions under way at the same time.
        retries: how often one question is asked again.
        backoff: seconds before it is asked again the first time; each time twice as long.
        longest: seconds waited at most, also where the other side asks for more.
        in_a_row: so many questions without an answer, one after the other, and no more are asked.
    """

    threads: int = 4
    retries: int = 5
    backoff: float = 1.0
    longest: float = 60.0
    in_a_row: int = 8


@dataclass(frozen=True)
class Outcome:
    """Why questions have no answer.

    Attributes:
        reasons: of those that were asked in vain, and how many have it.
        stopped: why the rest was not asked; None where all were.
    """

    reasons: Counter[str]
    stopped: str | None


def ask_all(
    tasks: Sequence[_T], ask: Callable[[_T], None], patience: Patience, told: Callable[[], None] = lambda: None
) -> Outcome:
    """Asks all questions; returns when each is answered or given up.

    Args:
        ask: asks one, in a thread of its own, and keeps the answer; raises `Unanswered` or `Hopeless`.
        told: is called in this thread after each answer.

    Raises:
        KeyboardInterrupt: nothing more is asked; what is under way gets a few seconds to end.
        Exception: whatever else `ask` or `told` raises.
    """
    return _Asking(list(tasks), ask, patience).run(told)


@dataclass
class _Asking(Generic[_T]):
    tasks: list[_T]
    ask: Callable[[_T], None]
    patience: Patience
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    quiet_until: float = 0.0  # on time.monotonic: the other side has asked everybody to wait

    def __post_init__(self) -> None:
        self.queue = iter(self.tasks)
        # What threads say: None after an answer, why there is none, what they died of, or themselves when they end.
        self.said: SimpleQueue[str | BaseException | threading.Thread | None] = SimpleQueue()

    def run(self, told: Callable[[], None]) -> Outcome:
        # Daemons, so that a program that is interrupted need not wait for a server that does not answer.
        number = min(self.patience.threads, len(self.tasks))
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(number)]
        for thread in threads:
            thread.start()
        try:
            return self._listen(len(threads), told)
        except BaseException:
            self.stop.set()
            until = time.monotonic() + _GRACE
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
            raise

    def _listen(self, alive: int, told: Callable[[], None]) -> Outcome:
        reasons, stopped, row = Counter[str](), None, 0
        while alive:
            said = self.said.get()
            if isinstance(said, threading.Thread):
                alive -= 1
            elif isinstance(said, Hopeless):
                stopped = stopped or str(said)
            elif isinstance(said, BaseException):
                raise said
            elif said is None:
                row = 0
                told()
            else:
                reasons[said] += 1
                row += 1
                if row >= self.patience.in_a_row and stopped is None:
                    self.stop.set()
                    stopped = f"{row} in a row had no answer"
        return Outcome(reasons, stopped)

    def _work(self) -> None:
        try:
            while not self.stop.is_set():
                with self.lock:
                    task = next(self.queue, self)
                if isinstance(task, _Asking):
                    break
                self._one(task)
        except BaseException as failure:
            self.stop.set()
            self.said.put(failure)
        finally:
            self.said.put(threading.current_thread())

    def _one(self, task: _T) -> None:
        """Asks one question until it is answered, given up, or everything stops."""
        failures, by_limit = 0, Counter[int]()
        while self._may_ask():
            try:
                self.ask(task)
            except Unanswered as failure:
                failures += 1
                if failure.again is not None:
                    by_limit[failure.again] += 1
                if failures > self.patience.retries or any(n > limit for limit, n in by_limit.items()):
                    self.said.put(failure.reason)
                    return
                self._hold(failures, failure.wait)
            else:
                self.said.put(None)
                return

    def _may_ask(self) -> bool:
        """Waits until nobody has asked for silence; False where everything stops."""
        while not self.stop.is_set():
            with self.lock:
                left = self.quiet_until - time.monotonic()
            if left <= 0:
                return True
            self.stop.wait(left)
        return False

    def _hold(self, failures: int, wait: float | None) -> None:
        if wait is not None:
            with self.lock:
                until = time.monotonic() + min(wait, self.patience.longest)
                self.quiet_until = max(self.quiet_until, until)
            return
        seconds = min(self.patience.backoff * 2 ** (failures - 1), self.patience.longest)
        self.stop.wait(seconds * _CHANCE.uniform(0.5, 1.0))  # not all threads at the same moment
