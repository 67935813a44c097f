"""A reward model's figures as a page: one HTML file without scripts and without network, for light and dark, desk and
phone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_kit import pages
from rlhf_kit.pages import Headline, Interval
from rlhf_kit.reward_evaluation import Evaluation
from rlhf_kit.reward_page_plots import plots
from rlhf_kit.reward_page_words import RULES, figures, interval, points, reasons, sections, settings, verdict_line
from rlhf_kit.reward_quality.figures import Accuracy
from rlhf_kit.stats.words import number, percent, shown

__all__ = ["write_page"]

_MOST = 50


def write_page(evaluation: Evaluation, path: str | Path) -> Path:
    """Writes the page to `path` and returns it.

    Raises:
        DataError: the file cannot be written.
    """
    return pages.write_page(Path(path), pages.rendered("reward.html.j2", _view(_without_directories(evaluation))))


def _without_directories(evaluation: Evaluation) -> Evaluation:
    """Files of an absolute path by their names: a page that is handed on need not tell of a machine's directories."""
    whole = [one for source in evaluation.sources for one in source.name.split(", ")]
    names = {name: Path(name).name for name in [*whole, evaluation.model] if Path(name).is_absolute()}

    def short(text: str) -> str:
        for name in sorted(names, key=len, reverse=True):
            text = text.replace(name, names[name])
        return text

    return replace(
        evaluation,
        model=short(evaluation.model),
        sources=tuple(replace(source, name=short(source.name)) for source in evaluation.sources),
        notes=tuple(map(short, evaluation.notes)),
    )


def _view(evaluation: Evaluation) -> dict[str, Any]:
    """Everything that the template shows, by name."""
    quality = evaluation.quality
    counts = quality.counts
    said = reasons(quality.verdict)
    return {
        "title": shown(evaluation.model),
        "byline": [
            f"{number(counts.prompts)} held-out prompts",
            f"{number(counts.strict_pairs)} pairs",
            *(shown(source.name) for source in evaluation.sources[:3]),
            *([f"{len(evaluation.sources) - 3} more files"] if len(evaluation.sources) > 3 else []),
        ],
        "word": quality.verdict.word,
        "verdict": verdict_line(quality.verdict),
        "reasons": [one for one in said if one.word is not None],
        "remarks": [one for one in said if one.word is None],
        "notes": evaluation.notes,
        "headlines": _headlines(evaluation),
        "plots": plots(evaluation),
        "tables": sections(evaluation, _MOST),
        "settings": settings(evaluation),
        "confidence": percent(quality.confidence, 0),
        "resamples": number(quality.resamples),
    }


# -------------------------------------------------------------------- the few figures at the top


def _headlines(evaluation: Evaluation) -> list[Headline]:
    quality = evaluation.quality
    confidence = percent(quality.confidence, 0)
    caption = "How often it puts two answers to a held-out prompt in the order that the labelers gave them."
    found = [_of_accuracy("Right order", quality.accuracy, caption, confidence)]
    length = quality.length
    if length is not None:
        rule = RULES.get(length.best_baseline, length.best_baseline)
        best = percent(length.baselines[length.best_baseline].value)
        ends = f"{confidence} interval {interval(length.gain, points)}" if length.gain.low is not None else ""
        caption = f"More than the best rule that reads nothing: “{rule}” gets {best}."
        found.append(Headline("Above the best rule", points(length.gain.value), "points", ends, caption))
        if length.against.pairs:
            other = "longer" if length.model_prefers == "shorter" else "shorter"
            caption = f"Right where the labelers preferred the {other} answer, which is not what its scores lean to."
            found.append(_of_accuracy(f"Where the {other} wins", length.against, caption, confidence))
    if quality.calibration is not None:
        error = quality.calibration.error
        caption = "How far its confidence is from how often it is right, on average; 0 is best."
        found.append(Headline("Calibration error", figures(error, 3), "", "", caption))
    if quality.ceiling is not None:
        caption = "How often one labeler orders two answers as another one does: what labels like these can teach."
        found.insert(1, _of_accuracy("Labelers agree", quality.ceiling.agreement, caption, confidence))
    return found[:4]


def _of_accuracy(name: str, found: Accuracy, caption: str, confidence: str) -> Headline:
    figure, unit, ends = percent(found.value), "of the pairs", found.estimate
    if ends is None:
        few = f"{number(found.pairs)} pairs of {number(found.prompts)} prompts: too few for an interval"
        return Headline(name, figure, unit, few, caption)
    bar = Interval.of_shares(ends.value, ends.low, ends.high)
    return Headline(name, figure, unit, f"{confidence} interval {interval(found)}", caption, bar)
