"""What a reader wants to know first: did it get better, at what, and what did it cost; and the same of several runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlhf_kit.report.evaluation import (
    MEASURES,
    Span,
    compared,
    ends,
    in_words,
    judge_name,
    judges,
    label,
    lost_variety,
    moved,
    reference,
    span,
    win,
)
from rlhf_kit.report.frontier import Frontier
from rlhf_kit.report.run import Run
from rlhf_kit.report.tax import tax_entries
from rlhf_kit.report.words import fixed, number, percent, plain

__all__ = ["KeyFigure", "Question", "key_figures", "questions"]

Evaluation = dict[str, Any]
_MOST, _MOST_NAMES = 4, 3


@dataclass(frozen=True)
class Question:
    """A question, its answer in a word or two, and what the answer rests on."""

    name: str
    answer: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class KeyFigure:
    """One of the figures by which runs are compared.

    Attributes:
        key: stable name in report.json.
        at: the value that says "no difference".
    """

    key: str
    name: str
    span: Span
    write: Callable[[Any], str]
    at: float | None = None


# -------------------------------------------------------------------- one run


def questions(evaluation: Evaluation, found: list[Frontier]) -> list[Question]:
    """The three questions; none of an evaluation without judges."""
    against = reference(evaluation)
    trained = compared(evaluation)
    if against is None or not trained or not judges(evaluation):
        return []
    return [
        _better(evaluation, against, trained),
        _at_what(evaluation, against, trained[0]),
        _cost(evaluation, against, trained[0], found),
    ]


def _better(evaluation: Evaluation, against: str, trained: list[str]) -> Question:
    sentences, verdicts = [], []
    for place, policy in enumerate(trained[:_MOST]):
        rates = [(judge_name(judge), found) for judge in judges(evaluation) if (found := win(judge, policy, against))]
        if not rates:
            continue
        told = ", ".join(f"{percent(one.value)} by “{name}”{_range(one, percent)}" for name, one in rates)
        sentences.append(f"{label(evaluation, policy)} beats {label(evaluation, against)} {told}.")
        if place == 0:
            verdicts = [1 if one.above(0.5) else -1 if one.below(0.5) else 0 for _, one in rates]
    words = {(1,): "Yes", (-1,): "No, worse", (0,): "Not surely", (0, 1): "By some judges", (-1, 0): "No"}
    answer = words.get(tuple(sorted(set(verdicts))), "The judges disagree" if verdicts else "Not judged")
    return Question("Did it get better?", answer, tuple(sentences))


def _at_what(evaluation: Evaluation, against: str, policy: str) -> Question:
    """Scores of the judges, by whether the two intervals overlap, and measures of the text, by their change."""
    names, changed, same = [], [], []
    for judge in judges(evaluation):
        scores, name = judge.get("scores") or {}, f"score of “{judge_name(judge)}”"
        before, after = span(scores.get(against)), span(scores.get(policy))
        if before is not None and after is not None and after.clearly(before):
            names.append(name)
            changed.append(f"{name} {plain(before.value)} to {plain(after.value)}")
        elif before is not None and after is not None:
            same.append(name)
    measures = evaluation.get("measures") or {}
    for key, measure in MEASURES.items():
        if measure.variety or any(span((measures.get(name) or {}).get(key)) is None for name in (against, policy)):
            continue
        if moved(evaluation, policy, key):
            names.append(measure.name)
            changed.append(in_words(evaluation, policy, key))
        else:
            same.append(measure.name)
    pair = f"{label(evaluation, against)} to {label(evaluation, policy)}"
    sentences = [f"{pair}: {'; '.join(changed)}."] if changed else []
    if same:
        sentences.append(f"No clear change: {', '.join(same)}.")
    answer = ", ".join(names[:_MOST_NAMES]) if names else "Nothing clear"
    return Question("At what?", answer[:1].upper() + answer[1:], tuple(sentences))


def _cost(evaluation: Evaluation, against: str, policy: str, found: list[Frontier]) -> Question:
    sentences = []
    kl = span((evaluation.get("kl") or {}).get(policy))
    if kl is not None:
        sentences.append(f"{plain(kl.value)} nats a response away from its reference{_range(kl, plain)}.")
    entries = [entry for entry in tax_entries(evaluation) if policy in entry.changes]
    for entry in entries[:_MOST]:
        change = entry.changes[policy]
        verdict = "lost" if entry.lost(policy) else "gained" if change.excludes(0) else "no clear change"
        sentences.append(f"{entry.name}: {entry.changed(change)}, {verdict}.")
    variety = lost_variety(evaluation, policy)
    if variety:
        sentences.append(f"Less varied: {'; '.join(variety)}.")
    over = next((one.over for one in found if one.over), None)
    if over:
        sentences.append(f"Over-optimised after update {plain(over.get('step'))}.")
    if any(entry.lost(policy) for entry in entries) or variety or over:
        answer = "It lost something"
    elif entries:
        answer = "Nothing clear elsewhere"
    else:
        answer = f"{plain(kl.value)} nats of KL" if kl is not None else "Not measured"
    return Question("What did it cost?", answer, tuple(sentences))


def _range(found: Span, write: Callable[[Any], str]) -> str:
    return f" ({ends(found, write)})" if found.low is not None else ""


# -------------------------------------------------------------------- several runs


def key_figures(run: Run) -> list[KeyFigure]:
    """The figures by which this run can be held against others, the end of the chain first."""
    sft, reward, ppo = (run.metrics.get(stage) or {} for stage in ("sft", "reward", "ppo"))
    signed, kl = partial(fixed, signed=True), span((run.evaluation.get("kl") or {}).get("ppo"))
    accuracy = _measured(reward, "heldout_pair_accuracy", "heldout_accuracy_by_prompt")
    rows = (
        ("ppo_beats_sft", "PPO beats SFT, by the rubric", _measured(ppo, "win_rate_vs_sft"), percent, 0.5),
        ("reward_gained", "Reward gained, deviations", _measured(ppo, "heldout_reward_gain"), signed, 0.0),
        ("sft_beats_base", "SFT beats base, by the rubric", _measured(sft, "win_rate_vs_base"), percent, 0.5),
        ("reward_accuracy", "Reward model agrees with labelers", accuracy, percent, 0.5),
        ("kl", "KL of PPO, nats a response", kl or _measured(ppo, "kl"), plain, None),
        ("eos_rate", "PPO's answers that end", _measured(ppo, "eos_rate"), percent, None),
    )
    found = [KeyFigure(key, name, one, write, at) for key, name, one, write, at in rows if one is not None]
    said = {"win.rubric.ppo"} if found and found[0].key == "ppo_beats_sft" else set[str]()  # the same figure
    return [*found, *(figure for figure in _judged(run.evaluation) if figure.key not in said)]


def _judged(evaluation: Evaluation) -> Iterable[KeyFigure]:
    against = reference(evaluation)
    for policy in compared(evaluation)[:_MOST]:
        name = label(evaluation, policy)
        for judge in judges(evaluation):
            rate = win(judge, policy, str(against))
            if rate is not None:
                words = f"{name} beats {label(evaluation, str(against))}, by {judge_name(judge)}"
                yield KeyFigure(f"win.{judge.get('name')}.{policy}", words, rate, percent, 0.5)
        for entry in tax_entries(evaluation):
            change = entry.changes.get(policy)
            if change is not None:
                words = f"{name}, change of {entry.name}{f' ({entry.unit})' * bool(entry.unit)}"
                yield KeyFigure(f"tax.{entry.name}.{policy}", words, change, entry.bare, 0.0)


def _measured(section: dict[str, Any], key: str, interval: str = "") -> Span | None:
    """A figure of metrics.json with the interval beside it; NaN and infinity are none."""
    return span(section.get(interval or f"{key}_interval")) or span({"value": number(section.get(key))})
