"""People as a source of rewards: fresh answers are put where `rlhf-kit label` shows them, and their scores waited for.

After TAMER (Knox and Stone 2009): a person who watches gives a number, and that number is the reward.
"""

from __future__ import annotations

import logging
import math
import re
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import ValidationError
from torch import Tensor

from rlhf_kit import launch
from rlhf_kit.errors import EngineError, RlhfKitError
from rlhf_kit.labeling.replies import RateReply
from rlhf_kit.labeling.store import Store
from rlhf_kit.labeling.tasks import Candidate, Task
from rlhf_kit.labeling.watching import Watch
from rlhf_kit.ppo.answers import Answers
from rlhf_kit.reasons import NON_BLANK
from rlhf_kit.recipe_live import LIVE, LiveSection
from rlhf_kit.records import Prompt

__all__ = ["STORE", "TERMINATED", "LiveReward"]

log = logging.getLogger(__name__)

STORE = "live.sqlite"
"""The file in `output_dir` through which answers and scores go, where no other is named."""
TERMINATED = 143
"""The exit code after SIGTERM, as a shell reports it."""

_MIDDLE, _STEPS = 4.0, 3.0  # of a scale from 1 to 7
_LOWEST = -1.0
_POLL = 0.5  # seconds
_TOLD_EVERY = 15.0  # seconds


@dataclass
class LiveReward:
    """A person's score of 1 to 7 for each answer, as a number of -1 to 1; the mean where several score the same.

    Each distinct answer to a prompt is asked for once in the life of the store, by its content: a run that was killed
    goes on with what was said before. An answer without any text gets the lowest score, and nobody is asked.

    Attributes:
        section: how people are asked.
        path: of the store.
        update: that the answers are of, for those who read the scores later.
        wants_to_end: whether the run was told to end; of several processes all must ask.
    """

    section: LiveSection
    path: Path
    name: str = LIVE
    update: int = 0
    wants_to_end: Callable[[], bool] = lambda: False
    abstains: ClassVar[bool] = True
    _asked: bool = field(default=False, init=False)

    @property
    def command(self) -> str:
        """Opens the page on which the answers are scored."""
        words = ["rlhf-kit", "label", "--store", str(self.path), "--stay", "--task", "rate"]
        return shlex.join([*words, "--out", str(self.path.with_suffix(".jsonl"))])

    def __call__(self, answers: Answers) -> Tensor:
        """(B,) float32; NaN for what was skipped.

        Raises:
            EngineError: nobody has scored anything for too long, and `on_timeout` is stop.
            RlhfKitError: a prompt that no page can show, or a store that cannot be used.
            SystemExit: the run was told to end.
        """
        tasks = [self._task(answers, place) for place in range(len(answers))]
        asked = {task.id: task for task in launch.gathered([task for task in tasks if task is not None])}
        # A file in WAL mode is for the processes of one machine (https://www.sqlite.org/wal.html).
        with closing(Store(self.path)) if launch.is_main() else nullcontext() as store:
            watch = None if store is None else self._put(store, asked)
            self._wait(watch, len(asked))
            scores = launch.agreed({} if watch is None else _means(watch))
        return torch.tensor([_LOWEST if task is None else scores.get(task.id, math.nan) for task in tasks])

    def _put(self, store: Store, asked: Mapping[str, Task]) -> Watch:
        """Puts them where the page finds them."""
        store.configure(replace(store.settings, overlap=self.section.overlap))
        batch = f"{LIVE} {self.update}"  # to read no more than these
        for name in (LIVE, batch):
            store.add(asked.values(), batch=name)
        return Watch(store, asked.keys(), opinions=self.section.overlap, batch=batch)

    def _task(self, answers: Answers, place: int) -> Task | None:
        """None for an answer without text."""
        text = answers.texts[place]
        if not re.search(NON_BLANK, text):
            return None
        try:
            prompt = Prompt.model_validate({"prompt": answers.rows[place].shown}).prompt
        except ValidationError as error:
            words = error.errors()[0]["msg"]
            raise RlhfKitError(f"ppo: {self.name}: nobody can be shown {answers.name(place)}: {words}") from None
        candidate = Candidate(text, bool(answers.ended[place]), f"update {self.update + 1}")
        return Task("rate", prompt, (candidate,), priority=float(self.update))  # the newest are waited for

    def _wait(self, watch: Watch | None, count: int) -> None:
        """Until each of the tasks has all that it gets, or nobody is waited for any longer. Of several processes the
        main one has the watch, and all go on in step."""
        told, silent = launch.agreed(0 if watch is None else watch.left), 0.0
        before = spoke = time.monotonic()
        if told:
            self._ask(told)
        while left := launch.agreed(0 if watch is None else watch.left):
            if self.wants_to_end():
                raise SystemExit(TERMINATED)
            time.sleep(_POLL)
            now = time.monotonic()
            if watch is not None:
                silent = 0.0 if watch.look() else silent + (now - before) * (not watch.store.paused)
            before = now
            if launch.agreed(silent) >= self.section.timeout:
                self._give_up(f"{left} of {count}")
                break
            if now - spoke > _TOLD_EVERY and left < told:
                spoke, told = now, left
                log.info("ppo: %s: %d of %d answers are scored", self.name, count - left, count)

    def _ask(self, left: int) -> None:
        how = "" if self._asked else f"; ask for them with: {self.command}"
        log.info("ppo: %s: %d answers of update %d wait for scores%s", self.name, left, self.update + 1, how)
        self._asked = True

    def _give_up(self, left: str) -> None:
        words = f"nobody has scored an answer for {self.section.timeout:g} seconds"
        if self.section.on_timeout == "stop":
            raise EngineError(
                f"{self.name}: {words}, and {left} wait. Open the page with `{self.command}`, and the same command "
                "goes on with what is scored"
            )
        log.warning("ppo: %s: %s; %s answers do without", self.name, words, left)


def _means(watch: Watch) -> dict[str, float]:
    """Of the marks, by task, from -1 to 1; those without a mark are not among them."""
    marks = {
        task: [(one.reply.overall - _MIDDLE) / _STEPS for one in answers if isinstance(one.reply, RateReply)]
        for task, answers in watch.answers.items()
    }
    return {task: sum(said) / len(said) for task, said in marks.items()}
