"""Models made to have each fault get its verdict; the sentences say the figures and what to do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlhf_kit.records import Ranking, Response
from rlhf_kit.reward_quality import Accuracy, CurvePoint, Scored, evaluate
from rlhf_kit.reward_quality.figures import Ceiling, Group, Labelers, Length, LogLoss, Memorised
from rlhf_kit.reward_quality.verdict import verdict_of


def world(score, *, prompts=250, size=4, seed=0, shorter=0.0, noise=0.5, labelers=1, name="p"):
    """Rankings of answers with a quality and a length; labelers see quality, brevity (`shorter`) and noise.

    Args:
        score: from quality, length (in units of its spread, mean 0) and a generator to the model's scores.
    """
    rng = np.random.default_rng(seed)
    found = []
    for number in range(prompts):
        quality, length = rng.normal(size=(2, size))
        scores = score(quality, length, rng)
        tokens = np.maximum(1, np.round(50 + 15 * length)).astype(int).tolist()
        for labeler in range(labelers):
            seen = quality - shorter * length + noise * rng.normal(size=size)
            ranks = (np.argsort(np.argsort(-seen)) + 1).tolist()
            responses = tuple(Response(text=f"{place}", rank=rank) for place, rank in enumerate(ranks))
            record = Ranking(prompt=f"{name}{number}", responses=responses, labeler=f"l{labeler}")
            found.append(Scored(record, tuple(np.asarray(scores, dtype=float).tolist()), tuple(tokens)))
    return found


def good(quality, length, rng):
    return quality + 0.5 * rng.normal(size=len(quality))


def coin(quality, length, rng):
    return rng.normal(size=len(quality))


def only_length(quality, length, rng):
    return -length


def words(quality):
    return {reason.word for reason in quality.verdict.reasons} - {None}


def test_a_good_model_is_ready():
    verdict = evaluate(world(good)).verdict
    assert verdict.word == "ready" and [reason.word for reason in verdict.reasons] == ["ready"]
    text = verdict.reasons[0].text
    quality = evaluate(world(good))
    assert f"{100 * quality.accuracy.value:.1f} % ({100 * quality.accuracy.low:.1f} to" in text and "1500" in text
    assert f"{100 * quality.length.gain.value:+.1f} points" in text


def test_a_good_model_is_ready_where_labelers_like_brevity():
    def both(quality, length, rng):
        return good(quality, length, rng) - 0.5 * length

    quality = evaluate(world(both, shorter=0.5))
    assert quality.verdict.word == "ready" and quality.length.model_prefers == "shorter"
    assert quality.length.best_baseline == "shorter" and quality.length.baselines["shorter"].value > 0.6


def test_a_coin_is_weak():
    quality = evaluate(world(coin, shorter=0.7))
    assert quality.verdict.word == "weak" and words(quality) == {"weak"}
    assert any("coin" in reason.text for reason in quality.verdict.reasons)
    assert any("'the shorter one wins'" in reason.text for reason in quality.verdict.reasons)
    assert all(reason.advice for reason in quality.verdict.reasons if reason.word)


def test_a_model_that_is_surely_better_than_a_coin_but_below_sixty_percent_is_weak():
    def faint(quality, length, rng):
        return quality + 4 * rng.normal(size=len(quality))

    quality = evaluate(world(faint, prompts=1000))
    assert quality.accuracy.low > 0.5 and quality.accuracy.high < 0.6 and quality.length.gain.low > 0
    assert quality.verdict.word == "weak" and "below 60.0 %" in quality.verdict.reasons[0].text


def test_few_pairs_are_weak_however_good():
    few = evaluate(world(good, prompts=29, size=4))  # 174 pairs, but of too few prompts
    assert few.verdict.word == "weak" and "174 pairs of 29 prompts" in few.verdict.reasons[0].text
    few = evaluate(world(good, prompts=99, size=2))
    assert few.verdict.word == "weak" and "99 pairs of 99 prompts" in few.verdict.reasons[0].text
    assert evaluate(world(good, prompts=110, size=2)).verdict.word == "ready"


def test_a_scorer_of_length_alone_is_length_driven():
    quality = evaluate(world(only_length, shorter=1.0))
    assert quality.accuracy.low > 0.6
    assert quality.verdict.word == "length-driven" and "weak" in words(quality)
    texts = [reason.text for reason in quality.verdict.reasons if reason.word == "length-driven"]
    assert len(texts) == 3  # against the labelers' length, correlation, no better than the rule
    assert quality.length.against == quality.length.longer_preferred and quality.length.against.value == 0
    assert any("-1.00" in text or "-0.99" in text for text in texts)
    assert "Balance lengths" in quality.verdict.reasons[0].advice


def test_one_that_leans_to_long_answers_is_length_driven():
    def leaning(quality, length, rng):
        return good(quality, length, rng) + 1.5 * length

    quality = evaluate(world(leaning, shorter=-0.3))
    assert quality.length.model_prefers == "longer" and quality.length.against == quality.length.shorter_preferred
    assert quality.verdict.word == "length-driven"


def test_one_that_is_better_on_what_it_was_trained_on_memorised():
    def by_heart(quality, length, rng):
        return quality + 0.05 * rng.normal(size=len(quality))

    def by_chance(quality, length, rng):
        return quality + 1.3 * rng.normal(size=len(quality))

    training = world(by_heart, seed=1, noise=0.05, name="t")
    quality = evaluate(world(by_chance), training=training)
    assert quality.verdict.word == "memorised" and quality.memorised.difference.low > 0.15
    apart = quality.memorised.training.value - quality.memorised.heldout.value
    assert quality.memorised.difference.value == pytest.approx(apart)
    assert f"{100 * apart:+.1f} points" in quality.verdict.reasons[0].text
    assert "epoch" in quality.verdict.reasons[0].advice
    assert evaluate(world(good), training=world(good, seed=1, name="t")).verdict.word == "ready"


def test_the_interval_of_what_was_memorised_is_of_two_samples():
    quality = evaluate(world(good, prompts=100), training=world(good, seed=1, prompts=100, name="t")).memorised
    wide = quality.difference.high - quality.difference.low
    each = [part.high - part.low for part in (quality.training, quality.heldout)]
    # Variances of independent samples add up, so widths do in squares.
    assert wide == pytest.approx((each[0] ** 2 + each[1] ** 2) ** 0.5, rel=0.1)
    same = evaluate(world(good), training=world(good)).memorised.difference
    assert same.value == 0 and same.low < -0.01 and same.high > 0.01  # drawn apart, though the numbers are the same
    few = evaluate(world(good, prompts=100), training=world(good, seed=1, prompts=5, name="t")).memorised
    assert few.training.value is not None and few.difference.low is None


def test_the_worst_word_stands_for_all():
    training = world(lambda quality, length, rng: quality, noise=0.01, seed=1, name="t")
    quality = evaluate(world(only_length, shorter=1.0), training=training)
    assert quality.verdict.word == "memorised" and words(quality) == {"memorised", "length-driven", "weak"}
    order = ["memorised", "length-driven", "weak"]
    places = [order.index(reason.word) for reason in quality.verdict.reasons if reason.word]
    assert places == sorted(places) and "ready" not in words(quality)


def test_near_the_labelers_agreement_there_is_nothing_more_to_gain():
    def as_a_labeler(quality, length, rng):
        return quality + 1.5 * rng.normal(size=len(quality))

    quality = evaluate(world(as_a_labeler, labelers=2, noise=1.5, prompts=600))
    assert quality.accuracy.high < 0.68 and quality.verdict.word == "ready"
    assert any("nothing more to gain" in reason.text for reason in quality.verdict.reasons)
    quality = evaluate(world(good, labelers=2, noise=0.1))
    assert quality.ceiling.agreement.value > quality.ceiling.model.value + 0.05
    assert not any("nothing more" in reason.text for reason in quality.verdict.reasons)


# ---- each threshold by itself, with figures that are given


def figure(value, wide=0.02, pairs=1000, prompts=500):
    return Accuracy(value, value - wide, value + wide, pairs, prompts)


def length(**change):
    plain = Length(
        pearson_within=0.1,
        pearson_within_low=0.05,
        pearson_within_high=0.15,
        spearman_within=0.1,
        pearson=0.1,
        spearman=0.1,
        shorter_preferred=figure(0.7),
        longer_preferred=figure(0.7),
        equally_long=figure(0.7),
        matched=figure(0.7),
        against=figure(0.7),
        model_prefers="longer",
        baselines={name: figure(0.6 if name == "longer" else 0.4) for name in ("shorter", "longer", "ended")},
        best_baseline="longer",
        gain=figure(0.1),
    )
    return replace(plain, **change)


def verdict(accuracy=None, own=None, **parts):
    parts = {"log_loss": None, "ceiling": None, "memorised": None, "labelers": None, **parts}
    return verdict_of(accuracy or figure(0.72), own or length(), **parts)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, "ready"),
        ({"pearson_within": 0.64, "pearson_within_low": 0.61, "pearson_within_high": 0.7}, "length-driven"),
        ({"pearson_within": 0.64, "pearson_within_low": 0.59, "pearson_within_high": 0.7}, "ready"),
        (
            {
                "pearson_within": -0.64,
                "pearson_within_low": -0.7,
                "pearson_within_high": -0.61,
                "model_prefers": "shorter",
            },
            "length-driven",
        ),
        ({"against": figure(0.47)}, "length-driven"),
        ({"against": figure(0.49)}, "ready"),
        ({"against": Accuracy(0.3, None, None, 5, 5)}, "ready"),
        ({"gain": figure(0.03)}, "ready"),
        ({"gain": figure(0.01)}, "weak"),
        ({"gain": figure(0.01), "pearson_within": 0.31}, "length-driven"),
        ({"gain": figure(0.01), "pearson_within": 0.29}, "weak"),
        ({"gain": figure(0.01), "pearson_within": -0.4, "model_prefers": "shorter"}, "weak"),
        ({"gain": figure(0.01), "pearson_within": 0.4, "best_baseline": "ended"}, "ready"),
    ],
)
def test_thresholds_of_length(change, word):
    assert verdict(own=length(**change)).word == word


def test_a_model_that_is_a_coin_is_weak_and_no_more():
    own = length(gain=figure(0.01), pearson_within=0.4, against=figure(0.3))
    assert verdict(own=own).word == "length-driven"
    assert None not in {reason.word for reason in verdict(own=own).reasons}  # a fault is not said again as a hint
    assert {reason.word for reason in verdict(figure(0.51), own).reasons} == {"weak"}
    ended = length(best_baseline="ended", gain=figure(0.01), pearson_within=0.4, baselines={"ended": figure(0.7)})
    assert verdict(own=ended).word == "weak" and "ended by itself wins" in verdict(own=ended).reasons[0].text


@pytest.mark.parametrize(
    ("accuracy", "word"),
    [
        (figure(0.53), "weak"),
        (figure(0.57), "weak"),
        (figure(0.59), "ready"),
        (figure(0.51), "weak"),
        (figure(0.9, pairs=99), "weak"),
        (figure(0.9, prompts=29), "weak"),
        (figure(0.9, pairs=100, prompts=30), "ready"),
    ],
)
def test_thresholds_of_accuracy(accuracy, word):
    assert verdict(accuracy).word == word


@pytest.mark.parametrize(
    ("value", "wide", "word"),
    [(0.16, 0.1, "memorised"), (0.14, 0.1, "ready"), (0.3, 0.31, "ready"), (0.3, 0.29, "memorised")],
)
def test_thresholds_of_memorised(value, wide, word):
    memorised = Memorised(figure(0.95), figure(0.7), figure(value, wide))
    assert verdict(memorised=memorised).word == word


def test_low_accuracy_is_not_held_against_a_model_that_labelers_could_not_beat():
    ceiling = Ceiling(figure(0.58), figure(0.57), 500, 4)
    assert verdict(figure(0.57)).word == "weak" and verdict(figure(0.57), ceiling=ceiling).word == "ready"
    assert verdict(figure(0.57), ceiling=replace(ceiling, agreement=figure(0.6))).word == "weak"
    assert verdict(figure(0.57), ceiling=replace(ceiling, agreement=figure(0.58, pairs=99))).word == "weak"
    assert verdict(figure(0.51), ceiling=ceiling).word == "weak"


def test_notes_say_what_is_worth_knowing():
    groups = tuple(Group(name, figure(value), False, name) for name, value in (("training", 0.72), ("held-out", 0.67)))
    notes = verdict(
        own=length(against=Accuracy(0.48, 0.44, 0.52, 300, 200)),
        ceiling=Ceiling(figure(0.8), figure(0.72), 500, 4),
        labelers=Labelers(groups, figure(0.05)),
        log_loss=LogLoss(0.8, 0.7, 0.9, 0.693),
        curve=[CurvePoint(1.0, 800, 1600, figure(0.72), 60.0), CurvePoint(0.5, 400, 800, figure(0.7), 30.0)],
    )
    assert notes.word == "ready" and [reason.word for reason in notes.reasons] == ["ready", *[None] * 5]
    text = " ".join(reason.text for reason in notes.reasons)
    for part in (
        "one labeler agrees with another on 80.0 % (78.0 to 82.0)",
        "+5.0 points (+3.0 to +7.0)",
        "48.0 % (44.0 to 52.0) of 300 pairs",
        "0.800, is above a coin's 0.693",
        "From 400 to 800 training prompts the accuracy went from 70.0 % to 72.0 %: it still rises",
    ):
        assert part in text
    assert any(reason.advice == "Let more different labelers rank." for reason in notes.reasons)
    flat = verdict(curve=[CurvePoint(f, 100, 200, figure(v), 1.0) for f, v in ((0.5, 0.7), (1.0, 0.705))])
    assert "no longer rises" in flat.reasons[-1].text
    hint = length(against=figure(0.48, 0.04))
    assert len(verdict(own=hint).reasons) == 2 and len(verdict(figure(0.51), hint).reasons) == 1
    assert verdict(log_loss=LogLoss(0.69, 0.6, 0.7, 0.693), labelers=Labelers(groups, None)).reasons[1:] == ()
