"""The alignment tax of an evaluation: which texts, questions and tasks, measured base by base and put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_kit.evaluation.answering import Crew
from rlhf_kit.evaluation.choices import choices_tax
from rlhf_kit.evaluation.policies import BASE, Policy
from rlhf_kit.evaluation.tasks import tasks_tax
from rlhf_kit.evaluation.tax import Items, section, text_tax

__all__ = ["Cost", "Tally"]


@dataclass(frozen=True)
class Cost:
    """What the policies are measured on beside their answers.

    Attributes:
        text: files of held-out texts.
        choices: files of multiple-choice questions.
        tasks: of lm-eval: names, YAML files or folders.
        task_limit: the first so many documents of each task only.
    """

    text: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    task_limit: int | None = None


@dataclass
class Tally:
    """What has been measured so far, by policy.

    Attributes:
        kept: the directory of what need not be measured twice.
    """

    cost: Cost
    kept: Path
    text: dict[str, list[Items]] = field(default_factory=dict)
    choices: dict[str, list[Items]] = field(default_factory=dict)
    tasks: dict[str, list[Items]] = field(default_factory=dict)

    def measure(self, crew: Crew) -> None:
        """All policies of a crew that are no checkpoints.

        Raises:
            DataError: texts or questions that cannot be read.
            RlhfKitError: lm-eval is missing, or a task cannot be loaded.
        """
        policies = [policy for policy in crew.policies if policy.step is None]
        if self.cost == Cost() or not policies:
            return
        backbone = crew.loaded.backbone
        roles = {policy.name: crew.loaded.roles[policy.name] for policy in policies}
        identities = {policy.name: policy.identity for policy in policies}
        if self.cost.text:
            self.text |= text_tax(backbone, roles, self.cost.text, self.kept, identities)
        if self.cost.choices:
            self.choices |= choices_tax(backbone, roles, self.cost.choices, self.kept, identities)
        if self.cost.tasks:
            limit = self.cost.task_limit
            self.tasks |= tasks_tax(backbone, roles, self.cost.tasks, self.kept, identities, limit=limit)

    def section(
        self, policies: Sequence[Policy], *, resamples: int, confidence: float, seed: int
    ) -> dict[str, Any] | None:
        """What stands in `evaluation.json`: each figure, and its change from the base, or from the first policy."""
        names = [policy.name for policy in policies if policy.step is None]
        against = BASE if BASE in names else names[0]
        ordered = [
            {name: found[name] for name in names if name in found} for found in (self.text, self.choices, self.tasks)
        ]
        return section(*ordered, against=against, resamples=resamples, confidence=confidence, seed=seed)
