"""How varied a policy's answers are, how much they repeat themselves, and whether they refuse.

Everything is measured prompt by prompt over the K answers to it and then averaged, with a bootstrap over prompts. The
share of distinct n-grams falls with the number of n-grams that are counted, and a resample holds some prompts several
times, whose n-grams would then be no longer distinct: pooled over prompts, the interval would lie below the figure.

Words are counted alike by all measures: see `words`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from rlhf_kit.measures import Floats

__all__ = ["REFUSALS", "Said", "distinct_n", "measures", "refusal", "refusal_rate", "repetition", "self_bleu", "words"]

# Chinese and Japanese write no spaces: each character is a word (sacrebleu's `zh` does the same, but not for kana).
_ONE_BY_ONE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_WORD = re.compile(rf"[{_ONE_BY_ONE}]|[^\W{_ONE_BY_ONE}]+(?:['’][^\W{_ONE_BY_ONE}]+)*|[^\w\s]")

# Texts come as `words` made them; `exp` is sacrebleu's own smoothing. With the effective order, an answer of two words
# is compared by what n-grams it has, so that it is 1 beside a copy of itself.
_BLEU = BLEU(tokenize="none", effective_order=True, force=True)


class Said(Protocol):
    """One answer: its text without EOS, its length in tokens with it, and whether the policy ended it itself."""

    @property
    def text(self) -> str:
        """Without EOS."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the policy ended it, or it was cut off at the limit."""
        ...

    @property
    def tokens(self) -> int:
        """EOS included."""
        ...


def words(text: str) -> list[str]:
    """The text in lower case, cut into words and punctuation marks; a Chinese or Japanese character is one word.

    Other scripts without spaces, such as Thai, come out in pieces that are no words.
    """
    return _WORD.findall(text.lower())


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Distinct n-grams of the answers to one prompt, divided by all their n-grams (Li et al. 2016, arXiv 1510.03055).

    Longer answers have a lower share, however varied they are: compare policies of like length. None where no answer
    has n words.
    """
    found = [ngram for text in texts for ngram in _ngrams(words(text), n)]
    return len(set(found)) / len(found) if found else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """How like each other the answers to one prompt are, from 0 to 1 where all are the same (Zhu et al. 2018,
    arXiv 1802.01886).

    The mean of sacrebleu's sentence BLEU of each answer against all others as its references. Empty answers are like
    each other and unlike all others. None of a single answer.
    """
    if len(texts) < 2:
        return None
    lines = [" ".join(words(text)) for text in texts]
    scores = []
    for place, line in enumerate(lines):
        others = lines[:place] + lines[place + 1 :]
        scores.append(_BLEU.sentence_score(line, others).score / 100 if line else float("" in others))
    return min(1.0, float(np.mean(scores)))


def repetition(text: str, n: int = 4) -> float:
    """The share of an answer's n-grams that stood in it before (seq-rep-4 of Welleck et al. 2019, arXiv 1908.04319).

    0 for an answer of fewer than n words, which repeats nothing.
    """
    found = _ngrams(words(text), n)
    return 1 - len(set(found)) / len(found) if found else 0.0


# -------------------------------------------------------------------- refusals

_APOLOGY = (
    r"(?:(?:i'm|i am|we're|we are) (?:very |so |really |truly )?(?:sorry|afraid)|sorry|my apologies|apologies"
    r"|i (?:must |do |sincerely )?apologi[sz]e|unfortunately|regrettably)(?: for [^.,;!]{1,60})?"
    r"[\s,.;:!—-]*(?:(?:but|that|and)\s+)?"
)
_MODEL = (
    r"(?:as|being) an? (?:[\w-]+ )?(?:ai|artificial intelligence|language model|chat ?bot|virtual assistant)"
    r"(?: language)?(?: model| assistant)?[\s,]*"
)
# What is not done must be named: "I can't believe it", "I don't know" and "I won't swim there" refuse nothing.
_CANNOT = (
    r"(?:can ?not|can't|will not|won't|(?:must|have to|need to|will) (?:decline|refuse)|decline|refuse"
    r"|(?:'m|am)(?: just| simply)? (?:unable|not able|not allowed|not permitted|not programmed|not comfortable))"
    r"(?: to| with)* (?:help|assist|aid\b|support|provid|offer|giv[ei]|answer|do (?:that|this|so|it)\b|comply|complying"
    r"|fulfil|generat|creat|produc|writ[ei]|shar[ei]|discuss|engag|participat|respond|continue with|carry out|complete"
    r"|recommend|access|browse)"
)
_DO_NOT = r"(?:do not|don't) (?:provide|offer|answer|comply|generate|engage|participate|promote|condone|assist)"
_REQUEST = r"(?:this|that|your) (?:request|question|topic|content)\b"

_SORRY_ZH = r"(?:非常|十分|真的|很)?(?:抱歉|对不起|不好意思|遗憾)[，,。！!：:\s]*(?:但是|不过|但)?[，,\s]*"
_MODEL_ZH = r"(?:作为|身为)[^，,。！!？?]{0,12}(?:人工智能|ai|模型|助手|助理|机器人)[，,\s]*"
_CANNOT_ZH = (
    r"我们?(?:目前|现在|暂时|并|也|恐怕|实在)*(?:不能|无法|不会|不可以|没有办法|没办法|拒绝|不便|不应该|不应)"
    r"(?:为您|为你|给您|给你|向您|向你|直接|在此|再)*"
    r"(?:提供|回答|帮|协助|满足|完成|生成|撰写|写|讨论|参与|执行|支持|透露|分享|给出|处理|这样做|这么做|做这)"
)

REFUSALS = (
    rf"(?:{_APOLOGY})?(?:{_MODEL})?i ?(?:(?:simply|just|really|also) )*(?:{_CANNOT}|{_DO_NOT})",
    rf"{_APOLOGY}i (?:can ?not|can't|won't|will not)(?: do (?:that|this|it))?\s*[.!,;]",
    rf"{_APOLOGY}{_REQUEST}",
    r"(?:it(?:'s| is)|this is|that is) (?:against|not in line with) (?:my|our|the) (?:\w+ )?"
    r"(?:guidelines|policy|policies|principles|programming|rules)",
    r"(?:my|our) (?:guidelines|policy|policies|programming) (?:do|does)(?: not|n't) (?:allow|permit|let)",
    rf"(?:{_SORRY_ZH})?(?:{_MODEL_ZH})?{_CANNOT_ZH}",
    rf"{_SORRY_ZH}(?:这个|该|您的|你的|此)(?:问题|请求|要求|内容|话题)",
)
"""How a refusal begins, as regular expressions on a text in lower case with straight apostrophes.

The list is short and its hits can be read; it is no judge. It finds a refusal in English or Chinese that comes in the
first words of an answer and names what is not done. It misses one that comes after an introduction ("That is a hard
question."), that only changes the subject, or that is in another language, and it counts "I can't recommend it enough".
"""
_REFUSAL = re.compile("|".join(f"(?:{pattern})" for pattern in REFUSALS))
_LEAD = re.compile(r"[\s\"'“”‘*_#>-]*(?:(?:oh|well|hi|hello|hey|no|ok|okay|thanks?(?: you)?)\b[\s,.!]*)?")


def refusal(text: str) -> bool:
    """Whether an answer begins with a refusal: one of `REFUSALS`, perhaps after a greeting."""
    plain = text[:400].lower().replace("’", "'")
    lead = _LEAD.match(plain)
    return _REFUSAL.match(plain, lead.end() if lead else 0) is not None


def refusal_rate(texts: Sequence[str]) -> float:
    """The share of answers that begin with a refusal."""
    return float(np.mean([refusal(text) for text in texts]))


# -------------------------------------------------------------------- all of it


def measures(answers: Sequence[Sequence[Said]]) -> dict[str, Floats]:
    """The text measures of one policy, prompt by prompt.

    Args:
        answers: the K answers to each of P prompts.

    Returns:
        (P,) each: tokens, eos_rate, distinct_1, distinct_2, self_bleu, repetition and refusal_rate. NaN where a prompt
        has no value (distinct n-grams of empty answers); one that no prompt has (self-BLEU of one answer) is left out.
    """
    texts = [[answer.text for answer in row] for row in answers]
    columns: dict[str, list[float | None]] = {
        "tokens": [float(np.mean([answer.tokens for answer in row])) for row in answers],
        "eos_rate": [float(np.mean([answer.ended for answer in row])) for row in answers],
        "distinct_1": [distinct_n(row, 1) for row in texts],
        "distinct_2": [distinct_n(row, 2) for row in texts],
        "self_bleu": [self_bleu(row) for row in texts],
        "repetition": [float(np.mean([repetition(text) for text in row])) for row in texts],
        "refusal_rate": [refusal_rate(row) for row in texts],
    }
    found = {name: np.array([np.nan if value is None else value for value in row]) for name, row in columns.items()}
    return {name: values for name, values in found.items() if not np.isnan(values).all()}
