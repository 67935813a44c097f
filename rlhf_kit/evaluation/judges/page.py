"""People as a judge, on the page of `rlhf-kit label`: shown two answers, and nothing of who gave them."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rlhf_kit.errors import RlhfKitError
from rlhf_kit.evaluation.judges.base import Judgement, Progress, Question
from rlhf_kit.evaluation.judges.pairs import Pair, pairs_of
from rlhf_kit.labeling.exporting import ranks_of
from rlhf_kit.labeling.replies import CompareReply
from rlhf_kit.labeling.serving import Serving, lingering, serve
from rlhf_kit.labeling.store import Store
from rlhf_kit.labeling.tasks import Candidate, Task
from rlhf_kit.labeling.watching import Watch
from rlhf_kit.reasons import NON_BLANK
from rlhf_kit.tournament import Verdicts

__all__ = ["LABELER", "PAGE", "STORE", "PageJudge"]

log = logging.getLogger(__name__)

PAGE = "page"
LABELER = "labeler"
"""What the one is called who judges, where no names are given."""
STORE = "page.sqlite"
"""The file of tasks and answers, among what is kept."""


@dataclass(frozen=True)
class PageJudge:
    """Serves the page until all comparisons are made, each by one of the labelers.

    What was said is in the store at once, by prompt and texts: nothing is asked twice, also of other policies that give
    the same answers. The same text twice is a tie, and nothing loses to something; nobody is asked.

    Attributes:
        labelers: who judges; each gets a link.
        comparisons: of two policies on one prompt: so many of their answers, the first with the first and so on.
        partial: go on with what was judged where somebody ends the page before.
        serve: shows the page until `done` says so, or somebody ends it.
    """

    name: str = PAGE
    labelers: tuple[str, ...] = (LABELER,)
    comparisons: int = 1
    partial: bool = False
    serve: Callable[..., None] = serve
    kind: str = field(default="verdicts", init=False)
    compares: bool = field(default=True, init=False)

    @property
    def what(self) -> str:
        """How many people; their names are nobody's business who reads the report."""
        return "people on the page" if len(self.labelers) == 1 else f"{len(self.labelers)} people on the page"

    def total(self, questions: Sequence[Question]) -> int:
        """The number of different comparisons."""
        return len(self._tasks(questions))

    def __call__(self, questions: Sequence[Question], kept: Path, progress: Progress) -> Judgement:
        """Asks for the comparisons that nobody has made yet.

        Raises:
            RlhfKitError: the page was ended before all were made, unless part is enough; those that were are kept.
        """
        tasks = self._tasks(questions)
        with closing(Store(kept / STORE)) as store:
            store.set_labelers(self.labelers)
            watch = Watch(store, tasks.keys())
            done = _told(watch, progress)
            if not done():
                fresh = float(store.progress().tasks)  # those of other evaluations that nobody has made come last
                store.add(Task("compare", t.prompt, t.candidates, priority=fresh) for t in tasks.values())
                log.info("judge %s: %d comparisons are wanted; open the page", self.name, watch.left)
                over = lingering(done, log.info, "all comparisons are made; the last can be undone for {}")
                self.serve(store, Serving(title="Which answer is better?"), done=over, told=log.info)
            if not done():
                self._go_on_without(watch)
            return self._judgement(questions, _better(watch))

    def _tasks(self, questions: Sequence[Question]) -> dict[str, Task]:
        """By their ids."""
        made = (_task(questions[pair.prompt], pair) for pair in pairs_of(questions, self.comparisons))
        return {task.id: task for task in made if task is not None}

    def _go_on_without(self, watch: Watch) -> None:
        have = watch.count - watch.left
        words = f"judge {self.name}: {have} of {watch.count} comparisons are made and kept in {watch.store.path}"
        if not self.partial or not have:
            raise RlhfKitError(f"{words}. The same command asks for the rest; with --partial it goes on without")
        log.warning("%s. Goes on with those that there are", words)

    def _judgement(self, questions: Sequence[Question], better: Mapping[str, Mapping[str, float]]) -> Judgement:
        rows, missing = list[tuple[int, int, int, int, float]](), 0
        for pair in pairs_of(questions, self.comparisons):
            outcome = _outcome(questions[pair.prompt], pair, better)
            if outcome is None:
                missing += 1
            else:
                rows.append((pair.prompt, pair.ours, pair.theirs, pair.answer, outcome))
        table = np.asarray(rows, dtype=np.float64).reshape(-1, 5)
        prompt, ours, theirs, answer = table[:, :4].astype(np.int64).T
        return Judgement(Verdicts(prompt, ours, theirs, answer, answer, table[:, 4]), missing=missing)


def _texts(question: Question, pair: Pair) -> tuple[str, str]:
    ours, theirs = (question.answers[policy][pair.answer].text for policy in (pair.ours, pair.theirs))
    return ours, theirs


def _task(question: Question, pair: Pair) -> Task | None:
    """None where nobody need be asked."""
    ours, theirs = (question.answers[policy][pair.answer] for policy in (pair.ours, pair.theirs))
    if ours.text == theirs.text or not all(re.search(NON_BLANK, one.text) for one in (ours, theirs)):
        return None
    return Task("compare", question.prompt, tuple(Candidate(one.text, one.ended) for one in (ours, theirs)))


def _outcome(question: Question, pair: Pair, better: Mapping[str, Mapping[str, float]]) -> float | None:
    """1 where ours is better, 0 where theirs is; None where nobody has said."""
    task, (ours, theirs) = _task(question, pair), _texts(question, pair)
    if task is None:
        something = [bool(re.search(NON_BLANK, text)) for text in (ours, theirs)]
        return 0.5 + 0.5 * (something[0] - something[1])
    return better.get(task.id, {}).get(ours)


def _told(watch: Watch, progress: Progress) -> Callable[[], bool]:
    """Whether all are made, or skipped by everybody; each time it is asked the bar learns how many."""
    known = 0

    def done() -> bool:
        nonlocal known
        over = watch.over()
        if (made := watch.count - watch.left) > known:  # fewer are made where one was taken back
            progress(made - known)
            known = made
        return over

    return done


def _better(watch: Watch) -> dict[str, dict[str, float]]:
    """By task, how often each of the two texts was the better one, as a share; a tie is half."""
    votes = defaultdict[str, dict[str, list[float]]](dict)
    for task, answers in watch.answers.items():
        for one in answers:
            assert isinstance(one.reply, CompareReply)
            first, second = ranks_of(one.reply, one.order)
            won = (first < second) + 0.5 * (first == second)
            for candidate, share in zip(one.task.candidates, (won, 1 - won), strict=True):
                votes[task].setdefault(candidate.text, []).append(share)
    return {
        task: {text: sum(shares) / len(shares) for text, shares in by_text.items()} for task, by_text in votes.items()
    }
