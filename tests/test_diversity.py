"""Diversity, repetition and refusals of answers, against numbers worked out by hand."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from rlhf_kit.diversity import distinct_n, measures, refusal, refusal_rate, repetition, self_bleu, words
from rlhf_kit.measures import bootstrap_mean


@dataclass(frozen=True)
class Said:
    text: str
    ended: bool = True
    tokens: int = 5


def test_words_are_the_same_in_every_measure_and_a_chinese_character_is_one() -> None:
    assert words("Don't stop! It’s late.") == ["don't", "stop", "!", "it’s", "late", "."]
    assert words("你好，World。ありが 2nd") == ["你", "好", "，", "world", "。", "あ", "り", "が", "2nd"]
    assert words(" \n") == []


def test_distinct_n_by_hand() -> None:
    # 4 + 3 words, of which the, cat, sat, dog are distinct; no bigram spans two answers: the cat, cat sat, sat the,
    # the dog, dog sat.
    texts = ["the cat sat the", "The dog sat"]
    assert distinct_n(texts, 1) == pytest.approx(4 / 7)
    assert distinct_n(texts, 2) == pytest.approx(5 / 5)
    assert distinct_n([*texts, "the cat"], 2) == pytest.approx(5 / 6)
    assert distinct_n(["", "a"], 2) is None


def test_self_bleu_by_hand() -> None:
    # Each has 3 of 4 words, 2 of 3 bigrams, 1 of 2 trigrams and no 4-gram of the other; the first precision of 0 is
    # smoothed to half of one n-gram (sacrebleu's exp).
    expected = (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25
    assert self_bleu(["we all went home", "we all went out"]) == pytest.approx(expected)
    assert self_bleu(["yes", "yes", "yes"]) == 1.0 and self_bleu(["a b", "c d"]) == 0.0
    assert self_bleu(["", ""]) == 1.0 and self_bleu(["", "yes"]) == 0.0
    assert self_bleu(["alone"]) is None


def test_self_bleu_of_chinese_is_that_of_sacrebleus_own_tokeniser() -> None:
    texts = ["天空是蓝色的，因为空气散射光。", "因为空气散射蓝光，天空是蓝色的。", "我不知道。"]
    bleu = BLEU(tokenize="zh", effective_order=True)
    expected = [bleu.sentence_score(t, texts[:i] + texts[i + 1 :]).score / 100 for i, t in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(np.mean(expected))


def test_repetition_is_one_minus_distinct_4_grams() -> None:
    # 8 words, 5 4-grams: abcd bcda cdab dabc abcd.
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("no " * 10) == pytest.approx(6 / 7)
    assert repetition("a b c d e f") == repetition("no no no") == repetition("") == 0.0
    assert repetition("no no no", n=1) == pytest.approx(2 / 3)


REFUSED = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I cannot assist with that request.",
    "Sorry, I can't.",
    "I cannot provide instructions for that.",
    "I'm just unable to help you with that.",
    "As an AI language model, I cannot provide medical advice.",
    "As an AI, I don't provide legal advice.",
    "I apologise, but I won't write that.",
    "Unfortunately, I am unable to comply with this request.",
    "I must decline to answer.",
    "I'm afraid I can't do that.",
    "I'm sorry for the inconvenience, but I can't access the internet.",
    "Hello! I'm sorry, but I am not able to provide that.",
    "Sorry, but your request goes against our rules.",
    "It is against my guidelines to discuss this.",
    "My guidelines do not allow me to talk about it.",
    "很抱歉，我不能提供这方面的信息。",
    "作为一个人工智能助手，我不能协助您做这件事。",
    "作为AI语言模型，我无法提供医疗建议。",
    "非常抱歉，但我不会生成这样的内容。",
    "抱歉，这个问题我不便讨论。",
]
ANSWERED = [
    "I'm sorry to hear that you feel sad. Talk to a friend.",
    "I can't believe how kind you are!",
    "Sorry is a word that people say when they regret something.",
    "I don't know, but a map would help.",
    "I don't give up easily.",
    "You cannot mix bleach and vinegar; it is dangerous.",
    "Unfortunately, the shop is closed on Sundays.",
    "I wouldn't recommend driving on black ice.",
    "As an example, you can plant herbs.",
    "An AI is a program that can answer questions.",
    "I'm afraid of spiders, too.",
    "I will write to her. I cannot help you with more than that.",
    "抱歉让你久等了，首先把水烧开。",
    "对不起是一句道歉的话。",
    "我不会游泳，但我喜欢海。",
    "",
]


@pytest.mark.parametrize("text", REFUSED)
def test_a_refusal_is_found(text: str) -> None:
    assert refusal(text)


@pytest.mark.parametrize("text", ANSWERED)
def test_an_answer_is_no_refusal(text: str) -> None:
    assert not refusal(text)


def test_a_long_text_takes_no_longer_than_a_short_one() -> None:
    assert refusal_rate(["i " * 100_000, "sorry " * 100_000, "I'm sorry, " * 50_000, "I can't help."]) == 0.25


def test_measures_are_means_over_prompts() -> None:
    answers = [
        [Said("a a", True, 3), Said("a a", False, 5)],  # distinct-1 1/4, self-BLEU 1
        [Said("a b", True, 3), Said("c d", True, 3)],  # distinct-1 1, self-BLEU 0
        [Said("I can't help.", True, 7), Said("", True, 1)],
    ]
    found = measures(answers)
    assert list(found) == ["tokens", "eos_rate", "distinct_1", "distinct_2", "self_bleu", "repetition", "refusal_rate"]
    values = {name: float(by_prompt.mean()) for name, by_prompt in found.items()}
    assert values == pytest.approx(
        {
            "tokens": (4 + 3 + 4) / 3,
            "eos_rate": (0.5 + 1 + 1) / 3,
            "distinct_1": (1 / 4 + 1 + 1) / 3,
            "distinct_2": (1 / 2 + 1 + 1) / 3,
            "self_bleu": (1 + 0 + 0) / 3,
            "repetition": 0.0,
            "refusal_rate": (0 + 0 + 0.5) / 3,
        }
    )
    assert found["tokens"].tolist() == [4, 3, 4] and found["distinct_1"][0] == 0.25


def test_one_answer_a_prompt_has_no_self_bleu_and_empty_answers_no_n_grams() -> None:
    assert "self_bleu" not in measures([[Said("a b")], [Said("c")]])
    assert {"distinct_1", "distinct_2"}.isdisjoint(measures([[Said(""), Said("")]]))


def test_the_interval_holds_the_figure_where_pooling_would_not() -> None:
    """Distinct-2 of all prompts together: a resample repeats prompts, whose bigrams are then no longer distinct."""
    rng = random.Random(0)
    topics = [[f"p{p}w{w}" for w in range(8)] for p in range(40)]  # each prompt has words of its own
    answers = [[Said(" ".join(rng.choices(topic, k=12))) for _ in range(2)] for topic in topics]
    found = bootstrap_mean(measures(answers)["distinct_2"], resamples=500)
    assert found.low < found.value < found.high
    pooled = distinct_n([a.text for row in answers for a in row], 2)
    resampled = [
        distinct_n([a.text for row in rng.choices(answers, k=len(answers)) for a in row], 2) for _ in range(100)
    ]
    assert pooled is not None and np.quantile(np.array(resampled, dtype=float), 0.975) < pooled
