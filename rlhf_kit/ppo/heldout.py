"""How the policy does on prompts that it does not learn from: reward, win rate against the reference, KL, length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from rlhf_kit import launch, rl
from rlhf_kit.measures import win_rate
from rlhf_kit.ppo.answers import Answers
from rlhf_kit.ppo.experience import Experience
from rlhf_kit.ppo.prompts import PromptRow, last_turn
from rlhf_kit.ppo.rewarding import means_of

SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class HeldOut:
    """Scored answers to held-out prompts.

    Attributes:
        answers: one to each prompt.
        raw: (B,) what each reward source said, by name.
    """

    answers: Answers
    raw: dict[str, Tensor]


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
        self.latest: list[dict[str, Any]] = []
        """The table of the last evaluation."""

    def __call__(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Figures, and a table of a row for each prompt. Where people alone score there is no score in either."""
        logged = self.experience.rewards.logged
        if self._reference is None:
            self._reference = self._answered(reference=True)
            logged()  # of the answers of the reference: for nobody
        policy, reference = self._answered(), self._reference
        scores = self._scores(policy, reference) if policy.raw else None
        lengths = policy.answers.sequences.response_mask.sum(1).float()
        figures = {
            **logged(),
            **means_of(policy.raw),
            **({} if scores is None else _compared(*scores)),
            "kl": self._kl(policy.answers),
            "response_length": float(lengths.mean()),
            "eos_rate": float(policy.answers.ended.float().mean()),
        }
        self.latest = [
            {
                "prompt": row.shown,
                "policy": policy.answers.texts[i],
                "reference": reference.answers.texts[i],
                "score": None if scores is None else float(scores[0][i]),
                "reference_score": None if scores is None else float(scores[1][i]),
            }
            for i, row in enumerate(self.rows)
        ]
        return figures, self.latest

    def _scores(self, *both: HeldOut) -> list[Tensor]:
        """(B,) as they are learned from, penalties included: by the same moments, so that they can be compared."""
        raw = {name: torch.cat([one.raw[name] for one in both]) for name in both[0].raw}
        totals = self.experience.rewards.total(raw, learn=False).split(len(self.rows))
        return [
            self.experience.penalised(total, one.answers.ended.cpu(), one.answers.sequences.response_mask.sum(1).cpu())
            for total, one in zip(totals, both, strict=True)
        ]

    def _answered(self, *, reference: bool = False) -> HeldOut:
        experience = self.experience
        role = experience.roles.reference if reference else experience.roles.policy
        # Of several processes each has as many as the others: the last ones are asked again, and not counted.
        count, processes = len(self.rows), launch.processes()
        rows = [self.rows[min(place, count - 1)] for place in range(-(-count // processes) * processes)]
        generator = torch.Generator().manual_seed(self.seed + launch.rank())
        answers = experience.sample(rows, generator, role)
        raw = {name: scores[:count] for name, scores in experience.raw(answers, held_out=True).items()}
        return HeldOut(answers.select(torch.arange(count)), raw)

    def _kl(self, answers: Answers) -> float:
        """Nats a response from the reference, the mean over the answers."""
        judged = self.experience.judge(answers.sequences)
        kl = rl.kl_penalty(judged.log_probs, judged.reference)
        return float(torch.where(answers.sequences.response_mask, kl, 0.0).sum(1).mean())


def _compared(score: Tensor, reference: Tensor) -> dict[str, float]:
    """Means of both, and how often the first is above the second; (B,) each."""
    wins = [win_rate([ours], [theirs]) for ours, theirs in zip(score.tolist(), reference.tolist(), strict=True)]
    return {
        "score": float(score.mean()),
        "reference_score": float(reference.mean()),
        "win_rate": sum(wins) / len(wins),
    }


def append_samples(path: Path, step: int, table: Sequence[dict[str, Any]]) -> None:
    """Adds the answers of an evaluation to a file, a JSON line each; those of the same or a later step go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept = [line for line in before if json.loads(line)["step"] < step]
    new = [json.dumps({"step": step, **row}, ensure_ascii=False) for row in table]
    scratch = path.with_name(f".{path.name}.partial")  # a kill while it is written leaves what was there
    scratch.write_text("".join(line + "\n" for line in kept + new), encoding="utf-8")
    scratch.replace(path)


def print_answers(table: Sequence[dict[str, Any]]) -> None:
    """Shows rows of an evaluation on the terminal, one row a prompt."""
    shown = Table("prompt", "policy", "score", "reference", "score", show_lines=True)
    for row in table:
        scores = ["–" if row[name] is None else f"{row[name]:.2f}" for name in ("score", "reference_score")]
        cells = (last_turn(row["prompt"]), row["policy"], scores[0], row["reference"], scores[1])
        shown.add_row(*map(Text, cells))  # as text: brackets in an answer are not markup
    Console().print(shown)
