"""What all rounds of a run have brought, side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_kit.checkpoint import MANIFEST, read_json
from rlhf_kit.evaluation.evaluated import REWARD, RUBRIC
from rlhf_kit.evaluation.stage import EVALUATION
from rlhf_kit.rounds.places import rounds_of

__all__ = ["History", "Row", "history"]

Interval = dict[str, Any]
"""`value`, `low` and `high`."""


@dataclass(frozen=True)
class Row:
    """One round; 0 is what the others started from.

    Attributes:
        elo: among the policies of all rounds, by the newest comparison.
        over_start: how often its answers beat those of round 0.
        over_before: those of the round before.
        kl: from round 0, nats a response.
        rankings, pairs: fresh labels of the round.
        labeler_seconds: what people spent on them.
        reward_heldout: its reward model on prompts kept from it.
        reward_fresh: its reward model on the fresh labels of each later round, by their numbers.
        seconds: of each step.
    """

    round: int
    elo: Interval | None
    over_start: Interval | None
    over_before: Interval | None
    kl: Interval | None
    tokens: float | None
    rankings: int
    pairs: int
    labeler_seconds: float
    reward_heldout: Interval | None
    reward_fresh: dict[int, Interval]
    seconds: dict[str, float]


@dataclass(frozen=True)
class History:
    """All rounds, and by whom they were compared."""

    judge: str
    prompts: int
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def history(home: Path) -> History:
    """The history of the rounds in the `output_dir` of their recipe.

    Raises:
        RlhfKitError: there are none.
    """
    found = rounds_of(home)
    newest: dict[str, Any] = read_json(home / f"round-{len(found)}" / "evaluation" / EVALUATION)
    judge = _judge_of(newest)
    rows = [_row(number, home, found, newest, judge) for number in range(len(found) + 1)]
    return History(judge["what"], len(newest["prompts"]), tuple(rows))


def _judge_of(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The judge that rounds are compared by: the rubric, which trained nothing; else the newest reward model."""
    judges: dict[str, dict[str, Any]] = {judge["name"]: judge for judge in evaluation["judges"]}
    return judges.get(RUBRIC) or judges.get(REWARD) or next(iter(judges.values()))


def _row(number: int, home: Path, found: list[dict[str, Any]], newest: dict[str, Any], judge: dict[str, Any]) -> Row:
    name, own = f"round-{number}", found[number - 1] if number else None
    rates = judge["win_rates"].get(name, {})
    fresh = {
        later["round"]: later["reward_fresh"][name]
        for later in found
        if later["round"] > number and name in later["reward_fresh"]
    }
    return Row(
        round=number,
        elo=judge["elo"].get(name),
        over_start=rates.get("round-0") if number else None,
        over_before=rates.get(f"round-{number - 1}") if number else None,
        kl=newest["kl"].get(name),
        tokens=newest["summary"][name]["tokens"],
        rankings=own["labels"]["rankings"] if own else 0,
        pairs=own["labels"]["pairs"] if own else 0,
        labeler_seconds=own["labels"]["labeler_seconds"] if own else 0.0,
        reward_heldout=_heldout((home / name if number else home) / REWARD),
        reward_fresh=fresh,
        seconds=own["seconds"] if own else {},
    )


def _heldout(reward: Path) -> Interval | None:
    """The accuracy of a round's reward model on prompts that were kept from it, of all rounds up to it."""
    manifest = reward / MANIFEST  # only what it says: the weights of old rounds may be gone
    found: Interval | None = (
        read_json(manifest)["metrics"].get("heldout_accuracy_by_prompt") if manifest.is_file() else None
    )
    return found
