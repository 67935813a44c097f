"""What a run's figures say in words: the headline figures, the warnings, and how numbers are written on the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rlhf_kit.pages import Headline, Interval

Figures = dict[str, Any]

MUCH_KL = 10.0
"""Nats a response beyond which a policy has left the text that its reward model was trained on."""
ENDINGS_LOST = 0.02
"""A fall of the rate of ended answers that is more than noise of a few samples a prompt."""
_HEADLINES = 4
_RULES = {
    "shorter": "the shorter answer wins",
    "longer": "the longer answer wins",
    "ended": "the answer that ends wins",
}


def number(value: Any) -> float | None:
    """The value as a float; None where there is none. The Trainer's log may hold numbers as strings."""
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def plain(value: Any, digits: int = 3) -> str:
    """A number for reading: three significant digits, a true minus sign."""
    found = number(value)
    if found is None:
        return "–"
    if not math.isfinite(found):
        return "not a number" if math.isnan(found) else "infinite"
    if found and not 1e-3 <= abs(found) < 1e5:
        return f"{found:.{digits}g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    places = max(0, digits - 1 - (math.floor(math.log10(abs(found))) if found else 0))
    text = f"{found:,.{places}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def fixed(value: Any, places: int = 2, signed: bool = False) -> str:
    """A number with so many decimal places, with its sign where a change is meant."""
    found = number(value)
    if found is None or not math.isfinite(found):
        return plain(value)
    rounded = round(found, places) + 0.0  # never −0.00
    return f"{rounded:{'+' if signed and rounded else ''}.{places}f}".replace("-", "−")


def percent(value: Any, signed: bool = False) -> str:
    """A share as a percentage without decimals."""
    found = number(value)
    if found is None or not math.isfinite(found):
        return plain(value)
    rounded = round(100 * found)
    # The difference of two shares is counted in points: 87 % to 97 % is not 10 % more.
    return f"{rounded:{'+' if signed and rounded else ''}d}".replace("-", "−") + (" points" if signed else " %")


def estimate(section: Figures, key: str) -> tuple[float, float, float] | None:
    """The value and interval stored under `key`; None where any part is missing or not finite."""
    found = section.get(key)
    if not isinstance(found, dict):
        return None
    parts = [number(found.get(name)) for name in ("value", "low", "high")]
    return None if any(p is None or not math.isfinite(p) for p in parts) else (parts[0], parts[1], parts[2])  # type: ignore[return-value]


def best_baseline(reward: Figures) -> tuple[str, float] | None:
    """The simple rule that orders the held-out pairs best, in words, and how many it orders rightly."""
    rules = {name: number(value) for name, value in (reward.get("baseline_accuracy") or {}).items()}
    known = [(value, name) for name, value in rules.items() if value is not None and math.isfinite(value)]
    if not known:
        return None
    value, name = max(known)
    return rule_words(name), value


def rule_words(name: str) -> str:
    """A baseline of the reward model in words."""
    return _RULES.get(name, name.replace("_", " "))


def headlines(metrics: Figures, confidence: float = 0.95) -> list[Headline]:
    """The most important figures that the run has, at most four, the end of the chain first."""
    sft, reward, ppo = (metrics.get(stage) or {} for stage in ("sft", "reward", "ppo"))
    found = [
        _gain(ppo, confidence),
        _win("PPO beats SFT", ppo, "win_rate_vs_sft", "PPO's answer is judged better than SFT's", confidence),
        _accuracy(reward, confidence),
        _win(
            "SFT beats base", sft, "win_rate_vs_base", "SFT's answer is judged better than the base model's", confidence
        ),
        _single(ppo, "kl", "KL from SFT", "nats", "How far PPO moved away from the SFT model, for one response."),
        _single(ppo, "eos_rate", "Answers that end", "", "The share of PPO's answers that the model ends by itself."),
        _single(sft, "loss_last", "SFT loss", "nats", "The loss for one response token at the end of SFT."),
    ]
    return [headline for headline in found if headline][:_HEADLINES]


def _range(low: str, high: str, confidence: float) -> str:
    return f"{percent(confidence)} interval {low} to {high}"


def _gain(ppo: Figures, confidence: float) -> Headline | None:
    value = number(ppo.get("heldout_reward_gain"))
    if value is None:
        return None
    caption = (
        "How much higher the reward model scores PPO's answers than SFT's, to prompts that neither was trained on."
    )
    unit, bounds = "standard deviations", estimate(ppo, "heldout_reward_gain_interval")
    if bounds is None:
        return Headline("Reward gained", fixed(value, signed=True), unit, "", caption)
    _, low, high = bounds
    edges = (min(0.0, low), max(0.0, high, value))
    spread = (edges[1] - edges[0] or 1.0) * 1.2
    start = edges[0] - spread / 12

    def place(x: float) -> float:
        return round(100 * (x - start) / spread, 1)

    interval = Interval(place(value), place(low), place(high), place(0.0), "none")
    text = _range(fixed(low, signed=True), fixed(high, signed=True), confidence)
    return Headline("Reward gained", fixed(value, signed=True), unit, text, caption, interval)


def _win(name: str, section: Figures, key: str, meaning: str, confidence: float) -> Headline | None:
    value = number(section.get(key))
    if value is None:
        return None
    caption = f"How often {meaning} by the rubric, which took no part in training. A tie counts half."
    bounds = estimate(section, f"{key}_interval")
    if bounds is None:
        return Headline(name, percent(value), "of the time", "", caption)
    _, low, high = bounds
    interval = Interval.of_shares(value, low, high, label="even")
    return Headline(
        name, percent(value), "of the time", _range(percent(low), percent(high), confidence), caption, interval
    )


def _accuracy(reward: Figures, confidence: float) -> Headline | None:
    value = number(reward.get("heldout_pair_accuracy"))
    if value is None:
        return None
    caption = (
        "How often the reward model puts two answers of a held-out prompt in the order that the labelers gave them."
    )
    baseline = best_baseline(reward)
    if baseline is not None:
        caption += f" The best simple rule, “{baseline[0]}”, gets {percent(baseline[1])}."
    bounds = estimate(reward, "heldout_accuracy_by_prompt")
    name, unit = "Reward model agrees", "of the pairs"
    if bounds is None:
        return Headline(name, percent(value), unit, "", caption)
    mean, low, high = bounds
    words = _range(percent(low), percent(high), confidence)
    if percent(mean) != percent(value):
        words = f"averaged by prompt {percent(mean)}, {words}"
    label, reference = ("best rule", baseline[1]) if baseline else ("chance", 0.5)
    interval = Interval.of_shares(mean, low, high, reference, label)
    return Headline(name, percent(value), unit, words, caption, interval)


def _single(section: Figures, key: str, name: str, unit: str, caption: str) -> Headline | None:
    value = section.get(key)
    if number(value) is None:
        return None
    return Headline(name, percent(value) if key.endswith("_rate") else plain(value), unit, "", caption)


def warnings(metrics: Figures, summary: Figures, curve: Sequence[Figures]) -> list[str]:
    """What a reader must know before believing the figures; nothing where all is well.

    Args:
        metrics: the run's figures by stage.
        summary: `summary` of evaluation.json, by policy.
        curve: the entries of PPO's metrics.jsonl; read where there is no summary.
    """
    sft, reward, ppo = (metrics.get(stage) or {} for stage in ("sft", "reward", "ppo"))
    found = [
        _warn_broken(metrics),
        _warn_reward_model(reward),
        _warn_gain(ppo),
        _warn_win("PPO", "SFT", estimate(ppo, "win_rate_vs_sft_interval")),
        _warn_win("SFT", "the base model", estimate(sft, "win_rate_vs_base_interval")),
        _warn_endings(summary, curve),
    ]
    kl, explained = number(ppo.get("kl")), number(ppo.get("explained_variance"))
    if kl is not None and kl > MUCH_KL:
        found.append(
            f"PPO moved {plain(kl)} nats a response away from SFT (more than {MUCH_KL:.0f}): the reward model judges "
            "text unlike any it was trained on, and its scores mean little there. Raise ppo.kl_coef or train for fewer "
            "episodes."
        )
    if explained is not None and explained <= 0:
        found.append(
            f"The value model explains nothing of the returns (explained variance {fixed(explained)}, not above 0): "
            "the advantages are as noisy as without it. Raise ppo.value_learning_rate or train for more episodes."
        )
    return [text for text in found if text]


def _warn_broken(metrics: Figures) -> str | None:
    broken = []
    for stage, section in metrics.items():
        for key, value in section.items() if isinstance(section, dict) else ():
            found = number(value)
            if found is not None and not math.isfinite(found):
                broken.append(f"{stage}.{key}")
    return f"Not a finite number: {', '.join(broken)}. The run went wrong there." if broken else None


def _warn_reward_model(reward: Figures) -> str | None:
    baseline, bounds = best_baseline(reward), estimate(reward, "heldout_accuracy_by_prompt")
    low = bounds[1] if bounds else number(reward.get("heldout_pair_accuracy"))
    if low is None:
        return None
    if baseline is None or baseline[1] < 0.5:
        baseline = ("a coin", 0.5)
    if low > baseline[1]:
        return None
    return (
        f"The reward model is not surely better than a simple rule: its accuracy may be as low as {percent(low)}, and "
        f"“{baseline[0]}” gets {percent(baseline[1])}. What PPO gained by it may be no more than that rule."
    )


def _warn_gain(ppo: Figures) -> str | None:
    bounds = estimate(ppo, "heldout_reward_gain_interval")
    if bounds is None or bounds[1] > 0:
        return None
    if bounds[2] < 0:
        return "PPO lowered the reward on held-out prompts: training made the policy worse by its own measure."
    return "The interval of the reward gain includes 0: PPO may have gained nothing on held-out prompts."


def _warn_win(ours: str, theirs: str, bounds: tuple[float, float, float] | None) -> str | None:
    if bounds is None or bounds[1] > 0.5:
        return None
    if bounds[2] < 0.5:
        return f"{ours} loses to {theirs} by the rubric: the whole interval of its win rate lies below 50 %."
    return f"The interval of {ours}'s win rate against {theirs} includes 50 %: by the rubric, neither is surely better."


def _warn_endings(summary: Figures, curve: Sequence[Figures]) -> str | None:
    before, after = summary.get("sft") or {}, summary.get("ppo") or {}
    figures = [number(side.get(key)) for key in ("score", "eos_rate") for side in (before, after)]
    if any(value is None for value in figures):
        quarter = max(1, len(curve) // 4)
        if len(curve) < 2 * quarter:
            return None
        parts = (curve[:quarter], curve[-quarter:])
        figures = [_mean([number(e.get(key)) for e in part]) for key in ("score", "eos_rate") for part in parts]
    if any(value is None for value in figures):
        return None
    score_before, score_after, ended_before, ended_after = (float(value) for value in figures if value is not None)
    if score_after <= score_before or ended_after >= ended_before - ENDINGS_LOST:
        return None
    return (
        f"The reward rose while fewer answers came to an end ({percent(ended_before)} before, {percent(ended_after)} "
        "after): the policy may be paid for rambling. Raise ppo.missing_eos_penalty or look at the rankings of long "
        "answers."
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
