"""Whether the reward model can be trusted: its accuracy beside the simple rules, and its calibration where measured."""

from __future__ import annotations

from typing import Any

from rlhf_kit.report.curves import accuracy_plot
from rlhf_kit.report.words import fixed, number, plain
from rlhf_kit.reward_page_plots import reliability
from rlhf_kit.reward_quality.figures import Bin, Calibration
from rlhf_kit.svg import Plot

__all__ = ["calibration_of", "reliability_facts", "reliability_plots"]


def reliability_plots(reward: dict[str, Any], quality: dict[str, Any]) -> list[Plot]:
    """What there is to draw.

    Args:
        reward: the reward stage's figures.
        quality: reward_quality.json of `evaluate reward`.
    """
    accuracy, calibration = accuracy_plot(reward), calibration_of(quality)
    found = [accuracy] if accuracy is not None else []
    if calibration is not None:
        drawn = reliability(calibration)
        found.append(Plot(drawn.name, drawn.hint, drawn.svg))
    return found


def reliability_facts(quality: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and figures of what `evaluate reward` says beside the plots."""
    calibration = calibration_of(quality)
    verdict = (quality.get("verdict") or {}).get("word")
    found = [("Verdict of evaluate reward", str(verdict))] if verdict else []
    if calibration is not None:
        found.append(("Expected calibration error", fixed(calibration.error, 3)))
        if number(calibration.temperature) is not None:
            found.append(("Temperature that would fit best", plain(calibration.temperature)))
    return found


def calibration_of(quality: dict[str, Any]) -> Calibration | None:
    """The calibration; None where it was not measured."""
    told = quality.get("calibration")
    if not told:
        return None
    width, count = (tuple(Bin(**one) for one in told.get(key) or []) for key in ("equal_width", "equal_count"))
    rest = (told.get(key) for key in ("error", "error_equal_count", "temperature", "log_loss"))
    return Calibration(width, count, *rest)
