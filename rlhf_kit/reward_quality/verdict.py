"""Whether a reward model is good enough to optimise against, in one word with its reasons.

The thresholds are judgement where no source is named. All compare the end of an interval, so that chance alone does
not give a verdict; a fault that the data are too few to show is not claimed.
"""

from __future__ import annotations

from collections.abc import Sequence

from .figures import Accuracy, Ceiling, CurvePoint, Labelers, Length, LogLoss, Memorised, Reason, Verdict, Word

__all__ = ["verdict_of"]

FEWEST_PAIRS = 100
"""Judgement: with 100 independent pairs the interval around 0.7 is 0.18 wide, and fewer tell little."""
FEWEST_PROMPTS = 30
"""Below about 30 to 40 clusters their bootstrap is too optimistic (Cameron, Gelbach and Miller 2008)."""
LEAST_ACCURACY = 0.6
"""Judgement: InstructGPT's reward model had 0.72 (arXiv 2203.02155); one that is certainly below 0.6 gets two of five
pairs wrong. Not held against a model that does as well as labelers agree."""
MOST_CORRELATION = 0.6
"""Judgement: within prompts more than a third (0.6²) of the variation of the scores goes with length."""
LEANING = 0.3
"""Judgement: from this correlation on, a model that is no better than the length rule is taken to follow it."""
MOST_MEMORISED = 0.15
"""Judgement: training accuracy is always somewhat above held-out; InstructGPT's labelers made a difference of 0.03."""
NEAR = 0.02
"""Judgement: so near to the labelers' agreement there is nothing more to gain from these labels."""
FEWEST_OPINIONS = 100
"""Pairs of opinions below which the agreement is not held against the model; judgement, as for pairs."""
STILL_RISING = 0.01
"""Judgement: a last step of the learning curve by this much is worth more data."""

_ORDER: tuple[Word, ...] = ("ready", "weak", "length-driven", "memorised")
"""A cause is worse than what it causes: who mends only the effect trains the same model again."""

_MORE = "Train on more ranked prompts."
_MEASURE = "Hold out more ranked prompts, then measure again."
_BALANCE = (
    "Balance lengths: rank answers of about the same length, or as many pairs that the longer wins as the shorter wins."
)
_FEWER_EPOCHS = "Train fewer epochs or with a lower learning rate, on more different prompts; one epoch is usual."


def verdict_of(
    accuracy: Accuracy,
    length: Length | None,
    log_loss: LogLoss | None,
    ceiling: Ceiling | None,
    memorised: Memorised | None,
    labelers: Labelers | None,
    curve: Sequence[CurvePoint] = (),
) -> Verdict:
    """The worst word that any reason says, and all reasons, the worst first."""
    faults = [*_memorised(memorised), *_length_driven(accuracy, length), *_weak(accuracy, length, ceiling)]
    notes = [
        *_ceiling(ceiling),
        *_labelers(labelers),
        *_against(accuracy, length),
        *_log_loss(log_loss),
        *_curve(curve),
    ]
    if not faults:
        faults = _ready(accuracy, length)
    faults.sort(key=lambda reason: -_ORDER.index(reason.word or "ready"))
    return Verdict(faults[0].word or "ready", (*faults, *notes))


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _told(figure: Accuracy) -> str:
    """`72.4 % (70.1 to 74.6)`."""
    if figure.value is None:
        return "unknown"
    ends = figure.estimate
    return _percent(figure.value) + (f" ({100 * ends.low:.1f} to {100 * ends.high:.1f})" if ends else "")


def _gained(figure: Accuracy) -> str:
    """`+7.1 points (5.0 to 9.3)`."""
    ends = figure.estimate
    points = f"{100 * (figure.value or 0.0):+.1f} points"
    return points + (f" ({100 * ends.low:+.1f} to {100 * ends.high:+.1f})" if ends else "")


def _known(figure: Accuracy) -> bool:
    return figure.estimate is not None


def _rule(name: str) -> str:
    return "the one that ended by itself wins" if name == "ended" else f"the {name} one wins"


def _ready(accuracy: Accuracy, length: Length | None) -> list[Reason]:
    text = f"The model orders {_told(accuracy)} of {accuracy.pairs} held-out pairs as the labelers did"
    if length is not None:
        text += f", {_gained(length.gain)} against the best simple rule, '{_rule(length.best_baseline)}'"
    return [Reason("ready", text + ".", "")]


def _weak(accuracy: Accuracy, length: Length | None, ceiling: Ceiling | None) -> list[Reason]:
    found = []
    if accuracy.pairs < FEWEST_PAIRS or accuracy.prompts < FEWEST_PROMPTS:
        text = (
            f"There are {accuracy.pairs} pairs of {accuracy.prompts} prompts to measure on; "
            f"a verdict needs {FEWEST_PAIRS} of {FEWEST_PROMPTS}."
        )
        found.append(Reason("weak", text, _MEASURE))
    if accuracy.low is None or accuracy.high is None:
        return found
    if accuracy.low <= 0.5:
        text = f"The model orders {_told(accuracy)} of the pairs as the labelers did, which may be a coin's 50 %."
        found.append(Reason("weak", text, _MORE))
    elif accuracy.high < LEAST_ACCURACY and not _at_ceiling(ceiling):
        least = _percent(LEAST_ACCURACY)
        text = f"The model orders only {_told(accuracy)} of the pairs as the labelers did, below {least}."
        found.append(Reason("weak", text, _MORE))
    if length is not None and length.gain.low is not None and length.gain.low <= 0:
        best = length.baselines[length.best_baseline]
        text = (
            f"The model is not surely better than the rule '{_rule(length.best_baseline)}': {_told(accuracy)} "
            f"against {_told(best)} on the same pairs, {_gained(length.gain)}."
        )
        if best.value is not None and best.value > 0.5:
            found.append(Reason("weak", text, f"{_MORE} {_BALANCE}"))
    return found


def _length_driven(accuracy: Accuracy, length: Length | None) -> list[Reason]:
    if length is None or length.pearson_within is None:
        return []
    found, prefers = [], length.model_prefers
    other = "longer" if prefers == "shorter" else "shorter"
    above = accuracy.low is not None and accuracy.low > 0.5
    against = length.against
    if above and against.high is not None and against.high < 0.5:
        text = (
            f"Where labelers preferred the {other} answer the model is right on {_told(against)} of {against.pairs} "
            f"pairs, worse than a coin, against {_told(accuracy)} on all."
        )
        found.append(Reason("length-driven", text, _BALANCE))
    low, high = length.pearson_within_low, length.pearson_within_high
    if low is not None and high is not None and (low > MOST_CORRELATION or high < -MOST_CORRELATION):
        text = (
            f"Within prompts the scores follow length with a correlation of {length.pearson_within:.2f} "
            f"({low:.2f} to {high:.2f}), beyond {MOST_CORRELATION}: {prefers} answers get higher scores."
        )
        found.append(Reason("length-driven", text, _BALANCE))
    follows = length.best_baseline == prefers and abs(length.pearson_within) >= LEANING
    if above and follows and length.gain.low is not None and length.gain.low <= 0:
        text = (
            f"The model leans to {prefers} answers (correlation {length.pearson_within:.2f}) and is not surely better "
            f"than '{_rule(prefers)}': {_gained(length.gain)}."
        )
        found.append(Reason("length-driven", text, _BALANCE))
    return found


def _memorised(memorised: Memorised | None) -> list[Reason]:
    if memorised is None:
        return []
    apart = memorised.difference
    if apart.value is None or apart.low is None or apart.value <= MOST_MEMORISED or apart.low <= 0:
        return []
    text = (
        f"The model orders {_told(memorised.training)} of the pairs that it was trained on but "
        f"{_told(memorised.heldout)} of the others: {_gained(apart)}."
    )
    return [Reason("memorised", text, _FEWER_EPOCHS)]


def _at_ceiling(ceiling: Ceiling | None) -> bool:
    if ceiling is None or ceiling.agreement.value is None or ceiling.model.value is None:
        return False
    enough = ceiling.agreement.pairs >= FEWEST_OPINIONS and _known(ceiling.agreement)
    return enough and ceiling.model.value >= ceiling.agreement.value - NEAR


def _ceiling(ceiling: Ceiling | None) -> list[Reason]:
    if ceiling is None or ceiling.agreement.value is None or ceiling.model.value is None:
        return []
    text = (
        f"On the answers that several labelers ranked, one labeler agrees with another on {_told(ceiling.agreement)} "
        f"of the pairs, and the model with a labeler on {_told(ceiling.model)}"
    )
    if _at_ceiling(ceiling):
        text += ": there is nothing more to gain from these labels."
        return [Reason(None, text, "To gain more, make the labels agree better: clearer instructions, or a majority.")]
    few = ceiling.agreement.pairs < FEWEST_OPINIONS or not _known(ceiling.agreement)
    return [Reason(None, text + (", which is of too few pairs to lean on." if few else "."), "")]


def _labelers(labelers: Labelers | None) -> list[Reason]:
    if labelers is None or labelers.difference is None or labelers.difference.value is None:
        return []
    parts = {group.name: group.accuracy for group in labelers.sets}
    text = (
        f"It agrees with labelers that it was trained on in {_told(parts['training'])} of the pairs and with held-out "
        f"ones in {_told(parts['held-out'])}: {_gained(labelers.difference)}"
    )
    surely = labelers.difference.low is not None and labelers.difference.low > 0
    return [Reason(None, text + ".", "Let more different labelers rank." if surely else "")]


def _against(accuracy: Accuracy, length: Length | None) -> list[Reason]:
    """A hint of length where its interval does not say so for sure; a model like a coin is as bad everywhere."""
    if accuracy.low is None or accuracy.low <= 0.5:
        return []
    if length is None or length.against.value is None or length.against.value >= 0.5:
        return []
    if length.against.high is not None and length.against.high < 0.5:
        return []
    other = "longer" if length.model_prefers == "shorter" else "shorter"
    text = (
        f"Where labelers preferred the {other} answer the model is right on {_told(length.against)} of "
        f"{length.against.pairs} pairs; length may be a part of its scores."
    )
    return [Reason(None, text, _BALANCE)]


def _log_loss(log_loss: LogLoss | None) -> list[Reason]:
    if log_loss is None or log_loss.value < log_loss.coin:
        return []
    text = (
        f"Its log loss, {log_loss.value:.3f}, is above a coin's {log_loss.coin:.3f}: it is too sure where it is wrong."
    )
    return [Reason(None, text, "Divide the scores by the temperature of the calibration, or train fewer epochs.")]


def _curve(curve: Sequence[CurvePoint]) -> list[Reason]:
    points = sorted(curve, key=lambda point: point.prompts)
    if len(points) < 2:
        return []
    before, last = points[-2].accuracy.value, points[-1].accuracy.value
    if before is None or last is None:
        return []
    text = (
        f"From {points[-2].prompts} to {points[-1].prompts} training prompts the accuracy went from "
        f"{_percent(before)} to {_percent(last)}"
    )
    if last - before >= STILL_RISING:
        return [Reason(None, text + ": it still rises.", "More prompts of the same kind would help.")]
    return [Reason(None, text + ": it no longer rises.", "More prompts of the same kind would help little.")]
