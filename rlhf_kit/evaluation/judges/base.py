"""What a judge is asked, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rlhf_kit.measures import Floats
from rlhf_kit.records import Conversation
from rlhf_kit.tournament import Verdicts

__all__ = ["Answer", "Judge", "Judgement", "Progress", "Question"]

Progress = Callable[[int], None]
"""Is told how many answers or comparisons more are judged."""


@dataclass(frozen=True)
class Answer:
    """One answer of a policy.

    Attributes:
        text: without EOS.
        ended: whether the policy ended it, or it was cut off at the limit.
        tokens: its length, EOS included.
    """

    text: str
    ended: bool
    tokens: int


@dataclass(frozen=True)
class Question:
    """A prompt and what N policies answered to it, K answers each.

    Attributes:
        columns: what else stands in the prompt's row, for functions.
    """

    prompt: Conversation
    answers: tuple[tuple[Answer, ...], ...]
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """What a judge says of P questions with the answers of N policies, K each.

    Attributes:
        verdicts: which of two answers is better.
        scores: (P, N, K) of a judge that scores; None of one that compares.
        flags: by name, (P, N) the share of a policy's judged answers to a prompt that have the flag; NaN where none
            was judged.
        missing: comparisons that the judge was asked for and did not give.
    """

    verdicts: Verdicts
    scores: Floats | None = None
    flags: dict[str, Floats] | None = None
    missing: int = 0


class Judge(Protocol):
    """Says which answers are better."""

    @property
    def name(self) -> str:
        """Short and unique, such as reward or rubric; results are filed under it."""
        ...

    @property
    def kind(self) -> str:
        """One of reward, function, verdicts and endpoint."""
        ...

    @property
    def what(self) -> str:
        """For people, such as "the reward model of quickstart"."""
        ...

    @property
    def compares(self) -> bool:
        """Whether it is shown two answers and says which is better; else it scores each."""
        ...

    def total(self, questions: Sequence[Question]) -> int:
        """How many answers or comparisons it will be asked for: the length of a bar."""
        ...

    def __call__(self, questions: Sequence[Question], kept: Path, progress: Progress) -> Judgement:
        """Judges all answers.

        Args:
            kept: a directory for what shall not be asked twice.
            progress: is called as judging goes on.

        Raises:
            RlhfKitError: it cannot judge; what it has judged is kept.
        """
        ...
