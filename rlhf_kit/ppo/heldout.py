"""How the policy does on prompts that it does not learn from: reward, win rate against the reference, KL, length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_kit import rl
from rlhf_kit.measures import win_rate
from rlhf_kit.ppo.answers import Answers
from rlhf_kit.ppo.experience import Experience
from rlhf_kit.ppo.prompts import PromptRow

SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class HeldOut:
    """Scored answers to held-out prompts.

    Attributes:
        answers: one to each prompt.
        score: (B,) as it is learned from, penalties included.
        kl: (B,) nats of each response from the reference.
    """

    answers: Answers
    score: Tensor
    kl: Tensor


class HeldOutEvaluation:
    """Answers the same held-out prompts again and again, with the same random numbers; the reference's answers, which
    never change, are made once.

    Args:
        experience: of the run.
        rows: the held-out prompts.
        seed: of sampling.
    """

    def __init__(self, experience: Experience, rows: Sequence[PromptRow], seed: int) -> None:
        self.experience, self.rows, self.seed = experience, list(rows), seed
        self._reference: HeldOut | None = None

    def __call__(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Figures, and a table of a row for each prompt."""
        if self._reference is None:
            self._reference = self._answered(reference=True)
        policy, reference = self._answered(), self._reference
        wins = [win_rate([a], [b]) for a, b in zip(policy.score.tolist(), reference.score.tolist(), strict=True)]
        lengths = policy.answers.sequences.response_mask.sum(1).float()
        figures = {
            "score": float(policy.score.mean()),
            "reference_score": float(reference.score.mean()),
            "win_rate": sum(wins) / len(wins),
            "kl": float(policy.kl.mean()),
            "response_length": float(lengths.mean()),
            "eos_rate": float(policy.answers.ended.float().mean()),
        }
        table = [
            {
                "prompt": row.shown,
                "policy": policy.answers.texts[i],
                "reference": reference.answers.texts[i],
                "score": float(policy.score[i]),
                "reference_score": float(reference.score[i]),
            }
            for i, row in enumerate(self.rows)
        ]
        return figures, table

    def _answered(self, *, reference: bool = False) -> HeldOut:
        experience = self.experience
        role = experience.roles.reference if reference else experience.roles.policy
        answers = experience.sample(self.rows, torch.Generator().manual_seed(self.seed), role)
        mask = answers.sequences.response_mask
        judged = experience.judge(answers.sequences)
        scored = experience.rewards(answers, learn=False)
        score = experience.penalised(scored.total.cpu(), answers.ended, mask.sum(1).cpu())
        kl = rl.kl_penalty(judged.log_probs, judged.reference)
        return HeldOut(answers, score, torch.where(mask, kl, 0.0).sum(1).cpu())


def append_samples(path: Path, step: int, table: Sequence[dict[str, Any]]) -> None:
    """Adds the answers of an evaluation to a file, a JSON line each; those of the same or a later step go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept = [line for line in before if json.loads(line)["step"] < step]
    new = [json.dumps({"step": step, **row}, ensure_ascii=False) for row in table]
    path.write_text("".join(line + "\n" for line in kept + new), encoding="utf-8")
