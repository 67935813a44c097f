"""What `evaluate` takes and gives: frozen dataclasses, of which the JSON is made field by field.

All intervals are percentile bootstrap intervals (Efron 1979) that resample prompts: all rankings of a prompt go
together, since their pairs depend on each other. Where fewer than ten prompts have a part in a figure it has no
interval (None): resampling a handful of prompts makes one that is far too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..measures import Estimate
from ..records import Ranking
from ..stats.figures import plain

__all__ = [
    "Accuracy",
    "Bin",
    "Calibration",
    "Ceiling",
    "Counts",
    "CurvePoint",
    "Group",
    "Labelers",
    "Length",
    "LogLoss",
    "Memorised",
    "Quality",
    "Reason",
    "Scored",
    "Ties",
    "Verdict",
    "Word",
]

Word = Literal["ready", "weak", "length-driven", "memorised"]
LabelerSet = Literal["training", "held-out", "unknown"]


@dataclass(frozen=True, slots=True)
class Scored:
    """A ranking and what a reward model says of its responses, in their order."""

    record: Ranking
    scores: tuple[float, ...]
    """(K,) higher is better."""
    lengths: tuple[int, ...]
    """(K,) tokens."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How many of some pairs a scorer orders as the labelers did; two equal scores count half."""

    value: float | None
    """Pooled over the pairs; None where there are none."""
    low: float | None
    high: float | None
    """The interval; None below ten prompts."""
    pairs: int
    prompts: int
    """Different prompts that these pairs are of."""

    @property
    def estimate(self) -> Estimate | None:
        """Value and interval; None where either is missing."""
        if self.value is None or self.low is None or self.high is None:
            return None
        return Estimate(self.value, self.low, self.high)


@dataclass(frozen=True, slots=True)
class Group:
    """The accuracy on a part of the pairs."""

    name: str
    """What they have in common, as text: a rank gap, a K, a category; empty where it was not said."""
    accuracy: Accuracy
    small: bool
    """Fewer than 30 pairs: read nothing into it."""
    labelers: LabelerSet | None = None
    """Only for one labeler or a set of them: whether the model was trained on theirs."""
    winner: str | None = None
    loser: str | None = None
    """Only where grouped by source: who wrote the preferred response and the other; empty where it was not said."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How much there was to measure on."""

    prompts: int
    """Different ones."""
    rankings: int
    responses: int
    """Scored ones; a response stands once for each ranking that it is in."""
    strict_pairs: int
    """Pairs of responses with different ranks: what the accuracies are of."""
    tied_pairs: int
    """Pairs of responses with equal ranks; they are in no accuracy."""
    equal_scores: int
    """Strict pairs with two equal scores; they count half."""


@dataclass(frozen=True, slots=True)
class Ties:
    """What the scores say where labelers said "the same"."""

    pairs: int
    """Tied pairs, at least 1."""
    mean_gap_tied: float
    """Mean |difference of scores| of tied pairs."""
    mean_gap_strict: float
    """The same of strict pairs."""
    closer: float
    """How often a random tied pair is closer in score than a random strict pair; equally close ones count half.

    The area under the ROC curve of |difference|; 0.5 is a model whose gaps know nothing of ties.
    """


@dataclass(frozen=True, slots=True)
class Labelers:
    """Accuracy on labelers that the model was trained on against others (InstructGPT: 72.4 against 69.6 %)."""

    sets: tuple[Group, ...]
    """`training`, `held-out` and `unknown` labelers together, those that there are, in this order."""
    difference: Accuracy | None
    """Training minus held-out; the pairs and prompts of both. None where either has no pair."""


@dataclass(frozen=True, slots=True)
class LogLoss:
    """Mean of -log sigmoid(score of the preferred - score of the other) over strict pairs, in nats."""

    value: float
    low: float | None
    high: float | None
    coin: float
    """log 2: what a model that gives all the same score has."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of about the same confidence, which is sigmoid(|difference of scores|), from 0.5 to 1."""

    low: float
    high: float
    """From `low` to below `high`; the last bin includes it."""
    pairs: int
    confidence: float | None
    """Mean confidence; None where the bin is empty."""
    accuracy: float | None
    """How many of these pairs the model orders rightly; well calibrated is as many as it is confident."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether a difference of scores means the probability that it stands for in training (Guo et al. 2017)."""

    equal_width: tuple[Bin, ...]
    """Ten bins of 0.05."""
    equal_count: tuple[Bin, ...]
    """Up to ten bins with about as many pairs; pairs of one confidence are never divided."""
    error: float
    """Expected calibration error over the bins of equal width: mean |accuracy - confidence|, weighted by pairs."""
    error_equal_count: float
    """The same over the bins of equal count. Both are above 0 by chance alone where pairs are few."""
    temperature: float | None
    """By what scores would have to be divided for the least log loss. Above 1: the model is too sure of itself.

    None where no number is best: every pair is right (the smaller the better), or the model is no better than a
    coin (the larger the better).
    """
    log_loss: float
    """The log loss with that temperature."""


@dataclass(frozen=True, slots=True)
class Length:
    """What of the scores could be length alone. Lengths are in tokens."""

    pearson_within: float | None
    pearson_within_low: float | None
    pearson_within_high: float | None
    """Correlation of score and length after the mean of each prompt's responses is taken off, and its interval."""
    spearman_within: float | None
    """The same of the ranks of what remains."""
    pearson: float | None
    spearman: float | None
    """Over all responses, without regard to prompts. None where scores or lengths are all equal."""
    shorter_preferred: Accuracy
    """The model on pairs where the labeler preferred the shorter response."""
    longer_preferred: Accuracy
    equally_long: Accuracy
    matched: Accuracy
    """The model on pairs whose lengths differ by at most 10 % of the longer one."""
    against: Accuracy
    """The model on pairs where the labeler preferred the length that the model prefers less."""
    model_prefers: Literal["shorter", "longer", "neither"]
    """By the sign of `pearson_within`."""
    baselines: dict[str, Accuracy]
    """`shorter`, `longer` and `ended` wins, on the same strict pairs as the model; "equal" counts half.

    `ended`: the response that the model that wrote it ended by itself wins against one that was cut off.
    """
    best_baseline: str
    """The one with the greatest accuracy."""
    gain: Accuracy
    """The model's accuracy minus that of the best baseline, with an interval of the difference on the same pairs."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """How far labelers agree with each other on the same answers: what a model could reach on these labels."""

    agreement: Accuracy
    """How often a labeler orders a pair as ONE other labeler does; `pairs` are pairs of opinions. Ties are left out."""
    model: Accuracy
    """The model on the same rankings; the figure to compare it with."""
    sets: int
    """Sets of answers that several labelers ranked."""
    labelers: int


@dataclass(frozen=True, slots=True)
class Memorised:
    """Accuracy on rankings that the model was trained on, beside the others."""

    training: Accuracy
    heldout: Accuracy
    difference: Accuracy
    """Training minus held-out; the pairs and prompts of both."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A reward model trained on a part of the data."""

    fraction: float
    """Of the training prompts, above 0 to 1."""
    prompts: int
    pairs: int
    """Trained on."""
    accuracy: Accuracy
    """On the held-out rankings."""
    seconds: float
    """Of training."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One sentence with its figures, and what to do about it."""

    word: Word | None
    """The verdict that this alone would give; None for what is only worth knowing."""
    text: str
    advice: str
    """Empty where there is nothing to do."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the model is good enough to optimise against; `verdict.py` has the thresholds."""

    word: Word
    """The worst that any reason says, from `ready` over `weak` and `length-driven` to `memorised`."""
    reasons: tuple[Reason, ...]
    """The worst first; at least one."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Everything that says whether a reward model is good enough. What the data do not have is None or empty."""

    confidence: float
    """Of all intervals, such as 0.95."""
    resamples: int
    counts: Counts
    accuracy: Accuracy
    """Pooled over all strict pairs."""
    accuracy_by_prompt: Accuracy
    """The mean of the accuracies of the prompts, so that a prompt with many pairs counts no more than others."""
    ties: Ties | None
    by_rank_gap: tuple[Group, ...]
    """By how many places the responses are apart, with no gaps between ranks."""
    by_k: tuple[Group, ...]
    by_category: tuple[Group, ...]
    by_labeler: tuple[Group, ...]
    by_source: tuple[Group, ...]
    """By who wrote the preferred response and the other one."""
    labelers: Labelers | None
    """None where nothing is known of which labelers the model was trained on."""
    log_loss: LogLoss | None
    calibration: Calibration | None
    length: Length | None
    """These three are None where there is no strict pair."""
    ceiling: Ceiling | None
    """None where no answers were ranked by two labelers."""
    memorised: Memorised | None
    """None where no training rankings were given."""
    curve: tuple[CurvePoint, ...]
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """Everything as dicts, lists, texts and numbers; never NaN, which JSON does not have."""
        found: dict[str, Any] = plain(self)
        return found
