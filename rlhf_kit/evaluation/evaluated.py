"""What an evaluation has found before anything is counted: who said what, and what the judges made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_kit.evaluation.answering import Said
from rlhf_kit.evaluation.judges.base import Judge, Judgement
from rlhf_kit.evaluation.policies import Policy
from rlhf_kit.measures import Floats
from rlhf_kit.records import Prompt
from rlhf_kit.sampling.drawing import Settings
from rlhf_kit.tournament import Resamples

__all__ = ["REWARD", "RUBRIC", "Evaluated"]

REWARD, RUBRIC = "reward", "rubric"
"""The judges that a run has of its own."""


@dataclass(frozen=True)
class Evaluated:
    """Answers of N policies to P prompts, K each, and what the judges said of them.

    Attributes:
        policies: in the order of everything else.
        prompts_file: for people.
        answers: by the policies' names, in their order.
        judgements: by the judges' names.
        draws: of the prompts, for every interval.
        tax: what the training cost elsewhere, where that was measured.
    """

    policies: Sequence[Policy]
    prompts: Sequence[Prompt]
    prompts_file: str
    settings: Settings
    answers: Mapping[str, Sequence[Sequence[Said]]]
    judges: Sequence[Judge]
    judgements: Mapping[str, Judgement]
    draws: Resamples
    tax: dict[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        """Of the policies."""
        return list(self.answers)

    @property
    def shown(self) -> list[Policy]:
        """The policies that are no checkpoints of others."""
        return [policy for policy in self.policies if policy.step is None]

    @property
    def scores(self) -> dict[str, dict[str, Floats]]:
        """By judge and policy (P, K), of the judges that score."""
        return {
            name: {policy: judgement.scores[:, i] for i, policy in enumerate(self.names)}
            for name, judgement in self.judgements.items()
            if judgement.scores is not None
        }

    def kl(self, name: str) -> Floats | None:
        """(P,) nats a response of a policy from its reference, the mean over the answers to each prompt; None without
        reference."""
        rows = [[a.kl for a in row if a.kl is not None] for row in self.answers[name]]
        return np.array([np.mean(row) for row in rows]) if all(rows) else None
