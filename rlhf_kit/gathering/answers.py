"""What policies answer to prompts, drawn by `evaluation.answering`: base by base, kept by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlhf_kit.evaluation.answering import answer, crews
from rlhf_kit.evaluation.policies import Policy
from rlhf_kit.recipe_rollout import RolloutSection
from rlhf_kit.records import Prompt
from rlhf_kit.sampling.drawing import Answer, Progress, Settings, silent

__all__ = ["answers_of"]

ANSWERS, ADAPTERS = "answers", "adapters"


def answers_of(
    policies: Sequence[Policy],
    prompts: Sequence[Prompt],
    settings: Settings,
    kept: Path,
    *,
    server: RolloutSection | None = None,
    progress: Progress = silent,
) -> list[list[list[Answer]]]:
    """Of each policy, in their order, its K answers to each prompt, in the order in which they were drawn.

    Args:
        kept: where what was drawn stays, by its content: what is there is not drawn again.
        server: a vLLM server of the policies' base, which draws; None draws here.

    Raises:
        ModelError, CheckpointError: a policy cannot be loaded.
        EngineError: the server cannot be used; what it has drawn is kept.
    """
    found: dict[str, list[list[Answer]]] = {}
    total = len(prompts) * settings.k
    # A policy as such, whatever stage it is of: what it is held to would be loaded and asked too.
    others = [replace(policy, stage="other") for policy in policies]
    for crew in crews(others, server, kept / ADAPTERS):
        said = answer(
            crew, prompts, settings, kept / ANSWERS, lambda who, done: progress(f"{who} answers", done, total)
        )
        for who, rows in said.items():
            found[who] = [[Answer(a.text, a.ended, a.tokens, source=who) for a in row] for row in rows]
    return [found[policy.name] for policy in policies]
