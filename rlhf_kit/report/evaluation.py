"""What `evaluation.json` says, by name: policies, judges, figures with their intervals. Whatever is missing is None."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlhf_kit.report.stages import is_path, short
from rlhf_kit.report.words import fixed, number, percent
from rlhf_kit.stats.words import shown

__all__ = [
    "MEASURES",
    "Measure",
    "Span",
    "change_of",
    "compared",
    "controlled",
    "ends",
    "in_words",
    "judge_name",
    "judge_what",
    "judges",
    "label",
    "length_controls",
    "lost_variety",
    "moved",
    "policies",
    "reference",
    "span",
    "win",
]

Evaluation = dict[str, Any]
_NAMES = {"base": "Base", "sft": "SFT", "reward": "Reward model", "ppo": "PPO"}
_LONGEST = 32


@dataclass(frozen=True)
class Span:
    """A figure and, where it has one, its interval: both ends or none."""

    value: float
    low: float | None = None
    high: float | None = None

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval; False where there is none."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high

    def above(self, value: float) -> bool:
        """Whether the whole interval lies above `value`."""
        return self.low is not None and self.low > value

    def below(self, value: float) -> bool:
        """Whether the whole interval lies below `value`."""
        return self.high is not None and self.high < value

    def clearly(self, other: Span) -> int:
        """1 where it is above the other, -1 where it is below; 0 where the intervals overlap or are not known."""
        return (other.high is not None and self.above(other.high)) - (other.low is not None and self.below(other.low))


@dataclass(frozen=True)
class Measure:
    """What is measured of the answers' text, and how it is written: with its sign where `signed` is true."""

    name: str
    write: Callable[..., str]
    variety: int = 0
    """1: more of it is more variety; -1: less of it is; 0: it says nothing of variety."""


MEASURES = {
    "tokens": Measure("length in tokens", partial(fixed, places=1)),
    "eos_rate": Measure("answers that end", percent),
    "distinct_1": Measure("distinct words", fixed, 1),
    "distinct_2": Measure("distinct pairs of words", fixed, 1),
    "self_bleu": Measure("self-BLEU", fixed, -1),
    "repetition": Measure("repetition", fixed, -1),
    "refusal_rate": Measure("refusals", percent),
}


def span(found: Any) -> Span | None:
    """The estimate; None where its value is missing or not finite."""
    if not isinstance(found, dict):
        return None
    value, low, high = (_finite(found.get(part)) for part in ("value", "low", "high"))
    if value is None:
        return None
    return Span(value, low, high) if low is not None and high is not None else Span(value)


def _finite(value: Any) -> float | None:
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def ends(found: Span, write: Callable[[Any], str]) -> str:
    """`0.80 to 0.86`, `+8 to +12 points`; empty where there is no interval."""
    return f"{write(found.low).removesuffix(' points')} to {write(found.high)}" if found.low is not None else ""


def policies(evaluation: Evaluation) -> list[str]:
    """Names in their order: base, SFT, PPO, others."""
    return [str(name) for name in evaluation.get("policies") or []]


def label(evaluation: Evaluation, policy: str) -> str:
    """What a policy is called on the page, on one line."""
    found = (evaluation.get("labels") or {}).get(policy) or _NAMES.get(policy, policy)
    return shown(str(found), _LONGEST)


def reference(evaluation: Evaluation) -> str | None:
    """What the others are held against: SFT, or the first policy where there is no SFT."""
    names = policies(evaluation)
    return "sft" if "sft" in names else names[0] if names else None


def compared(evaluation: Evaluation) -> list[str]:
    """The policies that come after the reference: what training made of it."""
    names = policies(evaluation)
    against = reference(evaluation)
    return names[names.index(against) + 1 :] if against is not None else []


def judges(evaluation: Evaluation) -> list[dict[str, Any]]:
    """All judges, in their order."""
    return [judge for judge in evaluation.get("judges") or [] if isinstance(judge, dict)]


def judge_name(judge: dict[str, Any]) -> str:
    """A judge's name on one line; a file's without its directories."""
    name = str(judge.get("name") or "a judge")
    return shown(short(name) if is_path(name) else name, _LONGEST)


def win(judge: dict[str, Any], ours: str, theirs: str) -> Span | None:
    """How often `ours` beats `theirs`, a tie half."""
    return span(((judge.get("win_rates") or {}).get(ours) or {}).get(theirs))


def controlled(judge: dict[str, Any], ours: str, theirs: str) -> Span | None:
    """The same as it would be between answers of equal length."""
    found = ((judge.get("win_rates") or {}).get(ours) or {}).get(theirs) or {}
    return span(found.get("length_controlled"))


def judge_what(judge: dict[str, Any]) -> str:
    """What a judge is, in words; files in them without their directories."""
    words = str(judge.get("what") or "").split(" ")
    return " ".join(short(word) if is_path(word) else word for word in words)


def length_controls(judge: dict[str, Any]) -> bool:
    """Whether the judge has a length-controlled win rate of any two."""
    rates = judge.get("win_rates") or {}
    return any(controlled(judge, ours, theirs) for ours in rates for theirs in rates[ours] or {})


def change_of(evaluation: Evaluation, policy: str, key: str) -> Span | None:
    """How far a measure of the text is from the reference's, paired by prompt; None where that was not measured."""
    return span(((evaluation.get("changes") or {}).get(policy) or {}).get(key))


def moved(evaluation: Evaluation, policy: str, key: str) -> int:
    """1 where a measure has clearly risen from the reference's, -1 where it has clearly fallen, else 0.

    By the interval of the difference. An evaluation without it is judged by whether the two intervals overlap, which is
    stricter.
    """
    change, told = change_of(evaluation, policy, key), evaluation.get("measures") or {}
    if change is not None:
        return int(change.above(0)) - int(change.below(0))
    old, new = (span((told.get(name) or {}).get(key)) for name in (reference(evaluation), policy))
    return 0 if old is None or new is None else new.clearly(old)


def in_words(evaluation: Evaluation, policy: str, key: str) -> str:
    """`distinct words 0.70 to 0.65 (−0.07 to −0.03)`: what it was and is, and the interval of the change."""
    measure, told = MEASURES[key], evaluation.get("measures") or {}
    old, new = (span((told.get(name) or {}).get(key)) for name in (reference(evaluation), policy))
    values = " to ".join("–" if one is None else measure.write(one.value) for one in (old, new))
    change = change_of(evaluation, policy, key)
    interval = "" if change is None else f" (change {ends(change, partial(measure.write, signed=True))})"
    return f"{measure.name} {values}{interval}"


def lost_variety(evaluation: Evaluation, policy: str) -> list[str]:
    """The measures by which a policy's answers are clearly less varied than the reference's, in words."""
    lost = [key for key, measure in MEASURES.items() if measure.variety * moved(evaluation, policy, key) < 0]
    return [in_words(evaluation, policy, key) for key in lost]
