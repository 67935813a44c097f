"""An evaluation from the first answer to the last figure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from rlhf_kit.data import columns_of
from rlhf_kit.evaluation.answering import Crew, Said, answer, crews
from rlhf_kit.evaluation.cost import Cost, Tally
from rlhf_kit.evaluation.evaluated import Evaluated
from rlhf_kit.evaluation.judges.base import Answer, Judge, Judgement, Question
from rlhf_kit.evaluation.policies import Policy
from rlhf_kit.evaluation.results import to_json
from rlhf_kit.recipe_rollout import RolloutSection
from rlhf_kit.records import Prompt
from rlhf_kit.sampling.drawing import Settings
from rlhf_kit.tournament import Resamples

__all__ = ["Wish", "answers_of", "evaluate", "questions_of"]

log = logging.getLogger(__name__)

ANSWERS, VERDICTS, COST, ADAPTERS = "answers", "verdicts", "cost", "adapters"


@dataclass(frozen=True)
class Wish:
    """What shall be evaluated.

    Attributes:
        policies: in the order in which they are shown, checkpoints behind all others.
        prompts: that nothing was trained on, at least one.
        prompts_file: their file, for people.
        settings: of the sampling, the same for all.
        judges: with names of their own.
        resamples, confidence: of the intervals.
        cost: what else the policies are measured on.
        server: a vLLM server of the policies' base, which draws their answers; None draws them here.
    """

    policies: tuple[Policy, ...]
    prompts: Sequence[Prompt]
    prompts_file: str
    settings: Settings
    judges: Sequence[Judge]
    resamples: int = 2000
    confidence: float = 0.95
    cost: Cost = field(default_factory=Cost)
    server: RolloutSection | None = None


def evaluate(wish: Wish, kept: Path) -> dict[str, Any]:
    """Answers, judges, compares: what stands in `evaluation.json`.

    Args:
        kept: the directory of what need not be done twice: answers and verdicts by content.

    Raises:
        ModelError, CheckpointError: a policy cannot be loaded.
        EngineError: the server cannot be used; what it has drawn is kept.
        RlhfKitError: a judge cannot judge; what it has judged is kept.
    """
    tally = Tally(wish.cost, kept / COST)
    answers = answers_of(wish, kept, tally.measure)
    judgements = _judged(wish, answers, kept / VERDICTS)
    resamples, confidence, seed = wish.resamples, wish.confidence, wish.settings.seed
    found = to_json(
        Evaluated(
            wish.policies,
            wish.prompts,
            wish.prompts_file,
            wish.settings,
            answers,
            wish.judges,
            judgements,
            Resamples.draw(len(wish.prompts), resamples=resamples, confidence=confidence, seed=seed),
            tally.section(wish.policies, resamples=resamples, confidence=confidence, seed=seed),
        )
    )
    return found if wish.server is None else {**found, "engine": wish.server.engine}


def answers_of(
    wish: Wish, kept: Path, first: Callable[[Crew], None] = lambda crew: None
) -> dict[str, list[list[Said]]]:
    """What each policy says to each prompt, by the policies' names in their order.

    Args:
        first: is done with the policies of each base before they answer.
    """
    answers: dict[str, list[list[Said]]] = {}
    with _bars() as bars:
        total = len(wish.prompts) * wish.settings.k
        tasks = {p.name: bars.add_task(f"{p.label} answers", total=total, visible=False) for p in wish.policies}
        for crew in crews(wish.policies, wish.server, kept / ADAPTERS):
            first(crew)
            answers |= answer(
                crew,
                wish.prompts,
                wish.settings,
                kept / ANSWERS,
                lambda who, done: bars.update(tasks[who], advance=done, visible=True),
            )
            log.info("evaluation: %s answered %d prompts", ", ".join(p.name for p in crew.policies), len(wish.prompts))
    return {policy.name: answers[policy.name] for policy in wish.policies}


def questions_of(wish: Wish, answers: Mapping[str, list[list[Said]]], *, checkpoints: bool = False) -> list[Question]:
    """What judges are asked.

    Args:
        checkpoints: about their answers too. They stand behind all others, so that a policy has the same place in both.
    """
    policies = [policy for policy in wish.policies if checkpoints or policy.step is None]
    return [
        Question(
            prompt.prompt,
            tuple(tuple(Answer(a.text, a.ended, a.tokens) for a in answers[p.name][row]) for p in policies),
            columns_of(prompt),
        )
        for row, prompt in enumerate(wish.prompts)
    ]


@contextmanager
def _bars() -> Iterator[Progress]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        yield bars


def _judged(wish: Wish, answers: Mapping[str, list[list[Said]]], kept: Path) -> dict[str, Judgement]:
    found = {}
    for judge in wish.judges:
        # A comparison costs, and pairs of checkpoints are many.
        questions = questions_of(wish, answers, checkpoints=not judge.compares)
        with _bars() as bars:
            task = bars.add_task(f"{judge.name} judges", total=judge.total(questions))
            found[judge.name] = judge(questions, kept, partial(bars.advance, task))
        log.info("evaluation: %s has judged", judge.name)
        if found[judge.name].missing:
            log.warning("evaluation: %s gave no verdict on %d comparisons", judge.name, found[judge.name].missing)
    return found
