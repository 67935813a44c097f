"""What is said of a reward model, in words and tables, on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_kit.reward_evaluation import Evaluation
from rlhf_kit.reward_quality.figures import Accuracy, Bin, Group, Length, Reason, Verdict
from rlhf_kit.stats.text import Section
from rlhf_kit.stats.words import number, percent, shown

__all__ = ["RULES", "figures", "interval", "is_small", "points", "reasons", "sections", "settings", "verdict_line"]

RULES = {"shorter": "the shorter answer wins", "longer": "the longer answer wins", "ended": "the one that ended wins"}
"""The rules that read nothing, in words."""
_VERDICTS = {
    "ready": "Ready: good enough to optimise against.",
    "weak": "Weak: not surely good enough to optimise against.",
    "length-driven": "Length-driven: optimising against it would change lengths more than answers.",
    "memorised": "Memorised: it knows the answers it was trained on, and others much less well.",
}
_SETTINGS = (
    *("init", "train", "learning_rate", "num_train_epochs", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "axes", "ties", "margin", "label_smoothing", "centering", "labelers"),
    *("max_length", "heldout_fraction"),
)
_SMALL = "* fewer than 30 pairs: read nothing into it."
_NO_INTERVAL = "Below ten prompts there is no interval."


def verdict_line(verdict: Verdict) -> str:
    """The verdict in one sentence."""
    return _VERDICTS[verdict.word]


def reasons(verdict: Verdict) -> list[Reason]:
    """The reasons in their order; an advice that several give stands at the last of them only."""
    later = [one.advice for one in verdict.reasons]
    return [
        replace(one, advice="") if one.advice in later[place + 1 :] else one
        for place, one in enumerate(verdict.reasons)
    ]


def interval(found: Accuracy, write: Any = percent) -> str:
    """`70.1 % to 74.6 %`; a dash where there is none."""
    return "–" if found.low is None or found.high is None else f"{write(found.low)} to {write(found.high)}"


def points(value: float | None) -> str:
    """A difference of two shares, in points: 70 % to 80 % is not 10 % more."""
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def figures(value: float | None, places: int = 3) -> str:
    """A plain number with so many decimals and a true minus sign."""
    return "–" if value is None else f"{value:.{places}f}".replace("-", "−")


def is_small(groups: Sequence[Group]) -> bool:
    """Whether one of the groups has too few pairs."""
    return any(group.small for group in groups)


def name_of(group: Group) -> str:
    """A group's name on one line, with a star where it is small."""
    return (shown(group.name) or "(not said)") + " *" * group.small


def settings(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What the model was made with, as far as it is known: name and value, without directories."""
    known = evaluation.known.settings
    if not known:
        return []
    base, reward, lora = known.get("base") or {}, known.get("reward") or {}, known.get("lora") or {}
    lora = reward.get("lora") or lora
    found = [("base", shown(str(base.get("id") or "–"))), ("dtype", str(base.get("dtype") or "–"))]
    found += [("lora r", str(lora.get("r", "–"))), ("lora_alpha", str(lora.get("lora_alpha", "–")))]
    found += [(name, _value(reward[name])) for name in _SETTINGS if reward.get(name) not in (None, "", [], {})]
    found += [("phases", str(len(reward["phases"])))] if reward.get("phases") else []
    data = known.get("data") or {}
    found += [(name, shown(Path(str(data[name])).name)) for name in ("rankings", "ratings") if data.get(name)]
    found += [("prompts trained on", number(len(evaluation.known.prompts)))] if evaluation.known.prompts else []
    trained = known.get("trained") or {}
    if trained.get("seconds") is not None:
        found.append(("minutes", f"{trained['seconds'] / 60:.1f}"))
    return [*found, ("seed", str(known.get("seed", "–")))]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return shown(", ".join(f"{name} {weight:g}" for name, weight in value.items()))
    if isinstance(value, str):
        return shown(Path(value).name if Path(value).is_absolute() else value)
    return f"{value:g}" if isinstance(value, float) else str(value)


# -------------------------------------------------------------------- the tables


def sections(evaluation: Evaluation, most: int) -> list[Section]:
    """All tables that are not empty; long ones end after `most` rows, with a note of how many there are."""
    quality = evaluation.quality
    found = [
        _accuracies(evaluation),
        *_groups(evaluation),
        *_of_length(quality.length),
        _beside(evaluation),
        *_probabilities(evaluation),
        _ties(evaluation),
        _curve(evaluation),
        *_material(evaluation),
    ]
    return [_cut(section, most) for section in found if section.rows]


def _cut(section: Section, most: int) -> Section:
    if len(section.rows) > most:
        section.note = f"{section.note} The first {most} of {len(section.rows):,}; the JSON has all.".strip()
        section.rows = section.rows[:most]
    return section


def _cells(found: Accuracy) -> tuple[str, str, str, str]:
    return percent(found.value), interval(found), number(found.pairs), number(found.prompts)


def _columns(evaluation: Evaluation, first: str, figure: str = "in the right order") -> tuple[str, ...]:
    return first, figure, f"{percent(evaluation.quality.confidence, 0)} interval", "pairs", "prompts"


def _accuracies(evaluation: Evaluation) -> Section:
    quality = evaluation.quality
    rows = [
        ("the model", *_cells(quality.accuracy)),
        ("the model, every prompt counted alike", *_cells(quality.accuracy_by_prompt)),
    ]
    if quality.length is not None:
        rows += [(RULES.get(name, name), *_cells(one)) for name, one in quality.length.baselines.items()]
    none = "" if quality.accuracy.low is not None else f" {_NO_INTERVAL}"
    note = f"Held-out pairs; two equal scores count half, tied pairs are left out.{none}"
    return Section("Beside rules that read nothing", _columns(evaluation, "scored by"), rows, note)


def _groups(evaluation: Evaluation) -> Iterable[Section]:
    quality = evaluation.quality
    kinds = (
        ("By rank gap", "places apart", quality.by_rank_gap),
        ("By responses of a ranking (K)", "K", quality.by_k),
        ("By category", "category", quality.by_category),
        ("By who wrote the answers", "preferred over other", quality.by_source),
    )
    for title, first, groups in kinds:
        rows = [(name_of(group), *_cells(group.accuracy)) for group in groups]
        yield Section(title, _columns(evaluation, first), rows, _SMALL if is_small(groups) else "")
    columns = _columns(evaluation, "labeler")
    both = [(name_of(one), one.labelers or "–", *_cells(one.accuracy)) for one in quality.by_labeler]
    note = _SMALL if is_small(quality.by_labeler) else ""
    yield Section("By labeler", (columns[0], "trained on", *columns[1:]), both, note)
    if quality.labelers is not None:
        rows = [(f"{one.name} labelers", *_cells(one.accuracy)) for one in quality.labelers.sets]
        if quality.labelers.difference is not None:
            apart = quality.labelers.difference
            rows.append(("training − held-out, points", points(apart.value), interval(apart, points), "–", "–"))
        yield Section("Labelers that it was trained on, and others", _columns(evaluation, "rankings of"), rows)


def _of_length(length: Length | None) -> Iterable[Section]:
    if length is None:
        return
    correlations = (
        ("Pearson, within prompts", length.pearson_within),
        ("Spearman, within prompts", length.spearman_within),
        ("Pearson, over all responses", length.pearson),
        ("Spearman, over all responses", length.spearman),
    )
    ends = ""
    if length.pearson_within_low is not None and length.pearson_within_high is not None:
        low, high = figures(length.pearson_within_low, 2), figures(length.pearson_within_high, 2)
        ends = f"Interval of the first: {low} to {high}."
    rows = [(name, figures(value, 2)) for name, value in correlations]
    yield Section("Correlation of score and length", ("", "correlation"), rows, ends)
    parts = (
        ("the shorter answer was preferred", length.shorter_preferred),
        ("the longer answer was preferred", length.longer_preferred),
        ("both are equally long", length.equally_long),
        ("lengths differ by at most 10 %", length.matched),
    )
    note = f"The model gives {length.model_prefers} answers higher scores." if length.model_prefers != "neither" else ""
    columns = ("pairs where", "in the right order", "interval", "pairs", "prompts")
    yield Section("By length", columns, [(name, *_cells(one)) for name, one in parts if one.pairs], note)


def _beside(evaluation: Evaluation) -> Section:
    """What the accuracy is to be compared with: the labelers themselves, and what the model was trained on."""
    quality = evaluation.quality
    rows: list[tuple[str, ...]] = []
    if quality.length is not None:
        gain = quality.length.gain
        rule = RULES.get(quality.length.best_baseline, quality.length.best_baseline)
        rows.append((f"more than “{rule}”, points", points(gain.value), interval(gain, points), "–", "–"))
    note = ""
    if quality.ceiling is not None:
        rows.append(("a labeler with another labeler", *_cells(quality.ceiling.agreement)))
        rows.append(("the model with a labeler, on the same answers", *_cells(quality.ceiling.model)))
        sets, labelers = number(quality.ceiling.sets), number(quality.ceiling.labelers)
        note = f"{sets} sets of answers were ranked by several of {labelers} labelers."
    if quality.memorised is not None:
        apart = quality.memorised.difference
        rows.append(("on prompts that it was trained on", *_cells(quality.memorised.training)))
        rows.append(("training − held-out, points", points(apart.value), interval(apart, points), "–", "–"))
    return Section("What to compare it with", _columns(evaluation, "", "agreement"), rows, note)


def _probabilities(evaluation: Evaluation) -> Iterable[Section]:
    quality = evaluation.quality
    loss, calibration = quality.log_loss, quality.calibration
    if loss is None or calibration is None:
        return
    ends = "–" if loss.low is None or loss.high is None else f"{figures(loss.low)} to {figures(loss.high)}"
    rows = [
        ("log loss, nats a pair (a coin has 0.693)", figures(loss.value), ends),
        ("expected calibration error, bins of equal width", figures(calibration.error), "–"),
        ("expected calibration error, bins of equal count", figures(calibration.error_equal_count), "–"),
        ("temperature that would fit best", figures(calibration.temperature, 2), "–"),
        ("log loss with that temperature", figures(calibration.log_loss), "–"),
    ]
    note = (
        "Of scores on the scale that was trained. A temperature above 1 says that their differences are too large for "
        "what they are worth."
    )
    yield Section("Scores as probabilities", ("", "value", "interval"), rows, note)
    of_bins = [
        (_span(one), percent(one.confidence), percent(one.accuracy), number(one.pairs)) for one in _bins(quality)
    ]
    yield Section("Reliability", ("confidence from – to", "mean confidence", "in the right order", "pairs"), of_bins)


def _bins(quality: Any) -> list[Bin]:
    return [one for one in quality.calibration.equal_width if one.pairs]


def _span(found: Bin) -> str:
    return f"{100 * found.low:.0f}–{100 * found.high:.0f} %"


def _ties(evaluation: Evaluation) -> Section:
    ties = evaluation.quality.ties
    if ties is None:
        return Section("Tied pairs", (), ())
    rows = [
        ("tied pairs", number(ties.pairs)),
        ("mean difference of scores where labelers saw none", figures(ties.mean_gap_tied)),
        ("mean difference where they saw one", figures(ties.mean_gap_strict)),
        ("a tied pair is closer than another", percent(ties.closer)),
    ]
    return Section("Tied pairs", ("", "value"), rows, "They are in no accuracy. 50 %: scores know nothing of ties.")


def _curve(evaluation: Evaluation) -> Section:
    columns = ("prompts trained on", "share", "pairs", "in the right order", "interval", "minutes")
    rows = [
        (
            *(number(one.prompts), percent(one.fraction), number(one.pairs), percent(one.accuracy.value)),
            *(interval(one.accuracy), f"{one.seconds / 60:.1f}"),
        )
        for one in evaluation.quality.curve
    ]
    return Section("Learning curve", columns, rows)


def _material(evaluation: Evaluation) -> Iterable[Section]:
    counts = evaluation.quality.counts
    rows = [
        ("prompts", number(counts.prompts)),
        ("rankings", number(counts.rankings)),
        ("responses scored", number(counts.responses)),
        ("pairs with an order", number(counts.strict_pairs)),
        ("tied pairs", number(counts.tied_pairs)),
        ("pairs with two equal scores", number(counts.equal_scores)),
    ]
    yield Section("Measured on", ("held-out", "count"), rows)
    files = [
        (shown(one.name, 200), one.format or "own", number(one.rows), number(one.left_out), number(one.rankings))
        for one in evaluation.sources
    ]
    yield Section("Sources", ("source", "format", "rows", "left out", "rankings"), files)
