"""The result of `rlhf-kit stats`: one tree of frozen dataclasses, of which the JSON is made field by field."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

__all__ = [
    "Agreement",
    "AnswerSource",
    "Bin",
    "Category",
    "KindCount",
    "Labeler",
    "Lengths",
    "Marks",
    "Objective",
    "Origin",
    "Rankings",
    "RatingGroup",
    "Share",
    "SourceFile",
    "Statistics",
    "TextSource",
    "Truncation",
    "plain",
]


@dataclass(frozen=True, slots=True)
class Share:
    """Of `total` things, `count`."""

    count: int
    total: int
    value: float | None
    """`count / total`; None where there is nothing to count."""
    low: float | None = None
    high: float | None = None
    """The 95 % bootstrap interval over prompts; None where fewer than ten prompts have a part in it."""


@dataclass(frozen=True, slots=True)
class Bin:
    """So many values from `low` to below `high`; the last bin of a histogram may be open (None)."""

    low: float
    high: float | None
    count: int


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One of the sources that were read."""

    name: str
    kind: str
    format: str
    """The foreign format; empty for the kit's own shape and those of TRL's that are read as they are."""
    rows: int
    left_out: int
    """Rows of which nothing can be used; `rlhf-kit validate` says why for each."""
    records: int
    damage: tuple[str, ...]
    """What is wrong with the source itself, such as a gzip that is cut off."""


@dataclass(frozen=True, slots=True)
class KindCount:
    """The records of one kind, and what stands there more than once."""

    kind: str
    records: int
    prompts: int | None
    """Different prompts; None for texts, which have none."""
    prompts_repeated: int | None
    """Prompts that more than one record has. Opinions of several labelers on one prompt are such."""
    duplicates: int
    """Records that say what an earlier one says: the same prompt and answers by the same labeler, in any order."""


@dataclass(frozen=True, slots=True)
class Rankings:
    """What the rankings compare."""

    rankings: int
    sizes: dict[int, int]
    """By K, the number of responses, how many rankings have it."""
    pairs: int
    """Pairs of responses with different ranks: what a reward model learns from."""
    ties: int
    """Pairs of responses with equal ranks."""
    without_pair: int
    """Rankings in which all are equal."""
    responses: int
    cut_off: int
    """Responses that were cut off before the model ended them."""
    longer: Share
    """Pairs won by the response with more characters; equally long responses are left out."""
    first: Share
    """Pairs won by the response that stands first in its row; rows made of a chosen and a rejected are left out."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the texts of one sort are."""

    what: str
    """`prompt`, `response` (of rankings and ratings), `completion`, `text`, or `prompt + response`."""
    unit: str
    """`characters` or `tokens`, both without a chat template."""
    count: int
    mean: float
    quantiles: dict[int, float]
    """By percentage: 5, 25, 50, 75, 95; interpolated between values, as numpy does it."""
    max: int
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class Truncation:
    """How many texts of one sort are longer than a limit."""

    what: str
    limit: int
    unit: str
    over: Share


@dataclass(frozen=True, slots=True)
class Category:
    """A use case: its share of the records that name one."""

    name: str
    count: int
    share: float | None
    instructgpt: float | None
    """Its share of InstructGPT's prompts (arXiv 2203.02155, table 1); None for a category that has none there."""


@dataclass(frozen=True, slots=True)
class Objective:
    """The share of prompts of which one can say what is right without a matter of taste, by their categories."""

    share: Share
    instructgpt: float
    unclear: int
    """Records with a category of which this is not known; they are in no part of the share."""


@dataclass(frozen=True, slots=True)
class AnswerSource:
    """A model or person that wrote answers."""

    name: str
    responses: int
    mean_length: float
    """Characters."""
    wins: Share
    """Pairs won against responses of other sources; ties are left out."""


@dataclass(frozen=True, slots=True)
class Labeler:
    """One labeler: how much they did, and how often they agree with the others."""

    name: str
    records: int
    pairs: int
    agreement: Share
    """Of the pairs that this labeler and another one both ordered, those that they ordered alike."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far different labelers agree on the same answers to the same prompt."""

    sets: int
    """Sets of answers that several labelers ranked."""
    labelers: int
    opinions: int
    """Rankings that take part: the first one of each labeler on each set."""
    nameless: int
    """Rankings of answers that others rank too, but without a labeler; nobody can tell whose they are."""
    pairs: Share
    """Of all pairs of opinions that both order a pair of answers, those that order it alike; ties are left out."""
    with_ties: Share
    """Of all pairs of opinions on a pair of answers, those that say the same of better, worse and tie."""
    alpha: float | None
    """Krippendorff's alpha of the verdicts better, worse and tie, nominal, each pair taken in both directions."""
    alpha_sets: int
    """Sets of answers that alpha was computed on: all, or a random part where there are very many."""
    note: str
    """Why there is no alpha."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Prompts and demonstrations of one origin and kind; an empty name where it was not said."""

    origin: str
    kind: str
    count: int


@dataclass(frozen=True, slots=True)
class Marks:
    """What was marked on the answers beside their rank."""

    flags: dict[str, Share]
    """By InstructGPT's flag: of the answers for which it was asked, those that have it."""
    overall: dict[int, int]
    """By the overall rating, 1 to 7, how many answers have it."""
    mean_overall: float | None


@dataclass(frozen=True, slots=True)
class RatingGroup:
    """Ratings on one axis and one scale."""

    axis: str
    """Empty for the answer as a whole."""
    scale: tuple[float, float] | None
    scores: int
    mean: float | None
    bins: tuple[Bin, ...]
    thumbs_up: Share


@dataclass(frozen=True, slots=True)
class TextSource:
    """One source of texts."""

    name: str
    texts: int
    characters: int
    share: float | None
    """Of all characters."""
    weight: float | None
    """The weight of its first text that has one."""
    weight_varies: bool


@dataclass(frozen=True, slots=True)
class Statistics:
    """Everything that `rlhf-kit stats` says. What the files do not have is None or empty."""

    sources: tuple[SourceFile, ...]
    rows: int
    left_out: int
    left_out_by_code: dict[str, int]
    """Rows that were left out, by what is wrong; a row with two faults counts under both."""
    partly_left_out: int
    """Rows of which a part could not be used."""
    kinds: tuple[KindCount, ...]
    tokenizer: str | None
    rankings: Rankings | None
    agreement: Agreement | None
    lengths: tuple[Lengths, ...]
    truncation: tuple[Truncation, ...]
    categories: tuple[Category, ...]
    without_category: int
    objective: Objective | None
    answer_sources: tuple[AnswerSource, ...]
    labelers: tuple[Labeler, ...]
    without_labeler: int
    origins: tuple[Origin, ...]
    marks: Marks | None
    ratings: tuple[RatingGroup, ...]
    texts: tuple[TextSource, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as dicts, lists, texts and numbers; never NaN, which JSON does not have."""
        found: dict[str, Any] = plain(self)
        return found


def plain(value: Any) -> Any:
    """A tree of dataclasses as JSON has it: numbers that are not finite are null."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
