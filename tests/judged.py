"""Answers to be judged, and judges of them, for the tests of judges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fake_judge import FakeJudge

from rlhf_kit.evaluation.judges.asking import Patience
from rlhf_kit.evaluation.judges.base import Answer, Judge, Judgement, Question
from rlhf_kit.evaluation.judges.chat import Address
from rlhf_kit.evaluation.judges.endpoint import EndpointJudge, EndpointSettings
from rlhf_kit.records import Conversation

PATIENCE = Patience(threads=4, retries=2, backoff=0.01, longest=0.2, in_a_row=8)


def question(prompt: Conversation, *policies: list[str]) -> Question:
    """A prompt with the answers of some policies, all of which have ended."""
    return Question(prompt, tuple(tuple(Answer(text, True, len(text) + 1) for text in texts) for texts in policies))


QUESTIONS = [
    question(f"prompt {n}", [f"{'a' * (n % 4 + 1)} {n}"], [f"{'b' * (n % 3 + 1)} {n}"], [f"c false {n}"])
    for n in range(10)
]
"""Three policies; 60 verdicts."""


def endpoint(
    server: FakeJudge, *, comparisons: int = 1, partial: bool = False, timeout: float = 20.0, **patience: float
) -> EndpointJudge:
    """The server as a judge that waits for nothing long."""
    patient = replace(PATIENCE, **patience)  # type: ignore[arg-type]
    settings = EndpointSettings(comparisons=comparisons, partial=partial, timeout=timeout, patience=patient)
    return EndpointJudge("judge-1", Address.parse(server.address), settings)


def ask(judge: Judge, questions: list[Question], kept: Path) -> Judgement:
    """Its judgement, and that its bar has come to its end."""
    told: list[int] = []
    judgement = judge(questions, kept, told.append)
    assert judgement.missing or sum(told) == judge.total(questions)
    return judgement
