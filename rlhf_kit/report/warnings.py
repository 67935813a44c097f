"""What a reader must know before believing an evaluation, in words; nothing where all is well."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf_kit.report.evaluation import (
    change_of,
    compared,
    controlled,
    ends,
    judge_name,
    judges,
    label,
    lost_variety,
    reference,
    span,
    win,
)
from rlhf_kit.report.frontier import Frontier
from rlhf_kit.report.tax import tax_entries
from rlhf_kit.report.words import number, percent, plain
from rlhf_kit.stats.words import shown

__all__ = ["evaluation_warnings"]

Evaluation = dict[str, Any]


def evaluation_warnings(evaluation: Evaluation, found: list[Frontier]) -> list[str]:
    """One sentence or two for each thing that is wrong, the gravest first."""
    return [
        *_over_optimised(found),
        *(words for judge in judges(evaluation) for words in _judge(evaluation, judge)),
        *_variety(evaluation),
        *_refusals(evaluation),
        *_tax(evaluation),
    ]


def _over_optimised(found: list[Frontier]) -> Iterable[str]:
    for one in found:
        if not one.over:
            continue
        proxy, gold = (shown(str(one.over.get(part))) for part in ("proxy", "gold"))
        kl = number(one.over.get("kl"))
        at = f", at {plain(kl)} nats a response" if kl is not None else ""
        yield (
            f"{shown(one.run)} is over-optimised after update {plain(one.over.get('step'))}{at}: from there on "
            f"“{gold}” falls while “{proxy}” does not. Take that checkpoint, or raise ppo.kl_coef."
        )


def _judge(evaluation: Evaluation, judge: dict[str, Any]) -> Iterable[str]:
    name, against = judge_name(judge), reference(evaluation)
    missing = number(judge.get("missing"))
    if missing:
        yield (
            f"The judge “{name}” gave no verdict on {plain(missing)} comparison{'s' * (missing != 1)}; its figures are "
            "of the others. The same command asks again for what is missing."
        )
    first = span((judge.get("position") or {}).get("first_preferred"))
    if first is not None and first.excludes(0.5):
        place = "first" if first.value > 0.5 else "second"
        share = first.value if first.value > 0.5 else 1 - first.value
        yield (
            f"The judge “{name}” prefers the answer that it is shown {place}, whatever it says: {percent(share)} of "
            f"its verdicts (first: {ends(first, percent)}). Both orders were asked, which evens it out, but it blurs "
            "differences."
        )
    for policy in compared(evaluation):
        raw, fair = (read(judge, policy, str(against)) for read in (win, controlled))
        if raw is not None and fair is not None and raw.above(0.5) and not fair.above(0.5):
            yield (
                f"{label(evaluation, policy)} beats {label(evaluation, str(against))} by “{name}” "
                f"({percent(raw.value)}) only by the length of its answers: between answers of equal length it is "
                f"{percent(fair.value)} ({ends(fair, percent)})."
            )


def _variety(evaluation: Evaluation) -> Iterable[str]:
    against = str(reference(evaluation))
    for policy in compared(evaluation):
        lost = lost_variety(evaluation, policy)
        if lost:
            yield (
                f"The answers of {label(evaluation, policy)} are less varied than those of "
                f"{label(evaluation, against)}: {'; '.join(lost)}."
            )


def _refusals(evaluation: Evaluation) -> Iterable[str]:
    measures, against = evaluation.get("measures") or {}, reference(evaluation)
    for policy in compared(evaluation):
        before, after = (span((measures.get(name) or {}).get("refusal_rate")) for name in (against, policy))
        if before is None or after is None or after.value < 2 * before.value:
            continue
        change = change_of(evaluation, policy, "refusal_rate")
        if after.above(before.value) if change is None else change.above(0):
            yield (
                f"{label(evaluation, policy)} refuses {percent(after.value)} of the prompts ({ends(after, percent)}); "
                f"{label(evaluation, str(against))} refused {percent(before.value)}."
            )


def _tax(evaluation: Evaluation) -> Iterable[str]:
    against = label(evaluation, str((evaluation.get("tax") or {}).get("against") or "base"))
    for entry in tax_entries(evaluation):
        worse = [
            f"{label(evaluation, policy)} {entry.changed(entry.changes[policy])}"
            for policy in dict.fromkeys([str(reference(evaluation)), *compared(evaluation)])
            if entry.lost(policy)
        ]
        if worse:
            yield f"Training cost something elsewhere. {entry.name}, compared with {against}: {'; '.join(worse)}."
