"""The figures of a reward model against loops over pairs, numbers by hand, scipy and scikit-learn."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from dataclasses import replace
from itertools import chain, combinations, permutations

import numpy as np
import pytest

from rlhf_kit.records import Ranking, Response
from rlhf_kit.reward_quality import Accuracy, CurvePoint, Scored, evaluate
from rlhf_kit.reward_quality.calibration import best_temperature, calibration_of
from rlhf_kit.reward_quality.groups import OTHERS
from rlhf_kit.reward_quality.resampling import Bootstrap

optimize, stats = pytest.importorskip("scipy.optimize"), pytest.importorskip("scipy.stats")
metrics, oracle = pytest.importorskip("sklearn.metrics"), pytest.importorskip("sklearn.calibration")


def scored(prompt, answers, **fields):
    """`answers`: (rank, score, length), then perhaps a source, then perhaps whether it ended."""
    responses = []
    for number, (rank, _, _, *more) in enumerate(answers):
        source, ended = (*more, None, True)[:2] if len(more) != 1 else (more[0], True)
        responses.append(Response(text=f"answer {number}", rank=rank, source=source, ended=ended))
    record = Ranking(prompt=prompt, responses=tuple(responses), **fields)
    return Scored(record, tuple(float(answer[1]) for answer in answers), tuple(int(answer[2]) for answer in answers))


def noise(rankings=60, seed=0, prompts=25):
    """Ragged rankings with tied ranks, equal scores, gaps in the ranks, and several rankings of a prompt."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(rankings):
        size = int(rng.integers(2, 8))
        answers = [
            (
                int(rng.choice([1, 2, 3, 5, 8])),
                round(float(rng.normal()), 1),
                int(rng.integers(3, 40)),
                str(rng.choice(["sft", "base", "human"])),
                bool(rng.random() < 0.7),
            )
            for _ in range(size)
        ]
        one = scored(
            f"prompt {rng.integers(prompts)}",
            answers,
            category=str(rng.choice(["qa", "chat"])),
            labeler=str(rng.choice(["anna", "ben", "cem", "dora"])),
        )
        # Answers of their own, so that no two labelers rank the same ones.
        texts = [
            answer.model_copy(update={"text": f"{number}, {place}"})
            for place, answer in enumerate(one.record.responses)
        ]
        record = one.record.model_copy(update={"responses": tuple(texts)})
        found.append(Scored(record, one.scores, one.lengths))
    return found


def loop(data):
    """Every strict pair as a dict, by two loops."""
    for one in data:
        record = one.record
        places = {rank: place for place, rank in enumerate(sorted({answer.rank for answer in record.responses}))}
        for i, j in permutations(range(len(record.responses)), 2):
            better, worse = record.responses[i], record.responses[j]
            if better.rank >= worse.rank:
                continue
            yield {
                "prompt": record.prompt,
                "difference": one.scores[i] - one.scores[j],
                "right": 1.0 if one.scores[i] > one.scores[j] else 0.5 if one.scores[i] == one.scores[j] else 0.0,
                "gap": str(places[worse.rank] - places[better.rank]),
                "k": str(len(record.responses)),
                "category": record.category,
                "labeler": record.labeler,
                "source": f"{better.source} over {worse.source}",
                "lengths": (one.lengths[i], one.lengths[j]),
                "ended": (better.ended, worse.ended),
            }


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def half(one, other):
    return 1.0 if one > other else 0.5 if one == other else 0.0


def test_figures_of_two_rankings_by_hand():
    data = [
        # Pairs: a over b right, a over c right, b over c wrong; none is tied.
        scored("p", [(1, 3.0, 10, "x"), (2, 1.0, 20, "y"), (4, 2.0, 5, "y")], labeler="anna"),
        # a ties with b; a over c has equal scores, b over c is right.
        scored("q", [(1, 0.0, 7), (1, 0.5, 7), (2, 0.0, 9)]),
    ]
    quality = evaluate(data, bootstrap=50)
    counts = quality.counts
    assert (counts.prompts, counts.rankings, counts.responses) == (2, 2, 6)
    assert (counts.strict_pairs, counts.tied_pairs, counts.equal_scores) == (5, 1, 1)
    assert quality.accuracy == Accuracy(3.5 / 5, None, None, 5, 2)
    assert quality.accuracy_by_prompt.value == pytest.approx((2 / 3 + 1.5 / 2) / 2)
    assert [(group.name, group.accuracy.value, group.accuracy.pairs) for group in quality.by_rank_gap] == [
        ("1", 2.5 / 4, 4),  # ranks 2 and 4 are one place apart, as there is no 3
        ("2", 1.0, 1),
    ]
    assert quality.ties is not None and quality.length is not None
    assert (quality.ties.pairs, quality.ties.mean_gap_tied) == (1, 0.5)
    assert quality.ties.mean_gap_strict == pytest.approx((2 + 1 + 1 + 0 + 0.5) / 5)
    assert quality.ties.closer == pytest.approx((3 + 0.5 * 1) / 5)  # gaps 2, 1, 1 are wider, 0.5 as wide, 0 closer
    rules = {name: rule.value for name, rule in quality.length.baselines.items()}
    assert rules == {"shorter": 3 / 5, "longer": 2 / 5, "ended": 0.5}
    assert quality.by_category == () and quality.ceiling is None and quality.labelers is None
    assert {group.name for group in quality.by_labeler} == {"anna", ""}
    assert {(group.winner, group.loser) for group in quality.by_source} == {("x", "y"), ("y", "y"), ("", "")}
    assert quality.verdict.word == "weak" and "5 pairs of 2 prompts" in quality.verdict.reasons[0].text


def test_groups_equal_two_loops():
    data = noise()
    quality = evaluate(data, bootstrap=50)
    pairs = list(loop(data))
    assert quality.counts.strict_pairs == len(pairs)
    assert quality.accuracy.value == pytest.approx(mean(pair["right"] for pair in pairs))
    by_prompt = defaultdict(list)
    for pair in pairs:
        by_prompt[pair["prompt"]].append(pair["right"])
    assert quality.accuracy_by_prompt.value == pytest.approx(mean(map(mean, by_prompt.values())))
    assert quality.accuracy.prompts == quality.accuracy_by_prompt.prompts == len(by_prompt)
    for key, groups in [
        ("gap", quality.by_rank_gap),
        ("k", quality.by_k),
        ("category", quality.by_category),
        ("labeler", quality.by_labeler),
        ("source", quality.by_source),
    ]:
        expected = defaultdict(list)
        for pair in pairs:
            expected[pair[key]].append(pair)
        assert {group.name for group in groups} == set(expected)
        for group in groups:
            own = expected[group.name]
            assert group.accuracy.value == pytest.approx(mean(pair["right"] for pair in own)), (key, group.name)
            assert (group.accuracy.pairs, group.accuracy.prompts) == (len(own), len({p["prompt"] for p in own}))
            assert group.small == (len(own) < 30)
        order = [group.accuracy.pairs for group in groups]
        if key in ("gap", "k"):
            assert [int(group.name) for group in groups] == sorted(int(name) for name in expected)
        else:
            assert order == sorted(order, reverse=True)
    assert all(group.name == f"{group.winner} over {group.loser}" for group in quality.by_source)


def test_length_figures_equal_two_loops():
    data = noise(seed=3)
    pairs, length = list(loop(data)), evaluate(data, bootstrap=50).length
    assert length is not None

    def check(accuracy, chosen):
        own = [pair["right"] for pair in pairs if chosen(*pair["lengths"])]
        assert own and accuracy.value == pytest.approx(mean(own)) and accuracy.pairs == len(own)

    check(length.shorter_preferred, lambda one, other: one < other)
    check(length.longer_preferred, lambda one, other: one > other)
    check(length.equally_long, lambda one, other: one == other)
    check(length.matched, lambda one, other: abs(one - other) <= 0.1 * max(one, other))
    expected = {
        "shorter": mean(half(-pair["lengths"][0], -pair["lengths"][1]) for pair in pairs),
        "longer": mean(half(*pair["lengths"]) for pair in pairs),
        "ended": mean(half(*pair["ended"]) for pair in pairs),
    }
    assert {name: rule.value for name, rule in length.baselines.items()} == pytest.approx(expected)
    assert length.best_baseline == max(expected, key=expected.get)
    gain = mean(pair["right"] for pair in pairs) - max(expected.values())
    assert length.gain.value == pytest.approx(gain) and length.gain.low < gain < length.gain.high
    assert length.against in (length.shorter_preferred, length.longer_preferred)
    assert (length.against == length.shorter_preferred) == (length.pearson_within > 0)


def test_correlations_equal_scipy():
    data = noise(seed=5)
    scores, lengths, own = defaultdict(list), defaultdict(list), []
    for one in data:
        scores[one.record.prompt] += one.scores
        lengths[one.record.prompt] += one.lengths
    for prompt in scores:
        one, other = np.array(scores[prompt]), np.array(lengths[prompt])
        own.append(np.stack([one - one.mean(), other - other.mean()]))
    within, whole = np.concatenate(own, axis=1), [list(chain(*values.values())) for values in (scores, lengths)]
    length = evaluate(data, bootstrap=500).length
    assert length is not None
    assert length.pearson == pytest.approx(stats.pearsonr(*whole).statistic)
    assert length.spearman == pytest.approx(stats.spearmanr(*whole).statistic)
    assert length.pearson_within == pytest.approx(stats.pearsonr(*within).statistic)
    assert length.spearman_within == pytest.approx(stats.spearmanr(*np.round(within, 9)).statistic)
    assert length.pearson_within_low < length.pearson_within < length.pearson_within_high


def test_a_response_that_two_labelers_rank_stands_once_in_correlations():
    data = noise(seed=6)
    twice = data + [Scored(one.record.model_copy(update={"labeler": "eve"}), one.scores, one.lengths) for one in data]
    one, other = evaluate(data, bootstrap=50).length, evaluate(twice[: len(data) + 10], bootstrap=50).length
    assert (one.pearson, one.spearman_within) == (other.pearson, other.spearman_within)


def test_scores_that_say_nothing_have_no_correlation():
    # Means of 0.1 three times are not exactly 0.1; what is left must not be taken for a variation.
    data = [scored(f"p{n}", [(1, 0.1, n + 1), (2, 0.1, n + 5), (3, 0.1, n + 4)]) for n in range(40)]
    quality = evaluate(data, bootstrap=50)
    assert quality.length.pearson_within is None and quality.length.spearman_within is None
    assert quality.length.model_prefers == "neither" and quality.length.against.value is None
    assert quality.accuracy.value == 0.5 and quality.verdict.word == "weak"


def test_log_loss_and_ties_equal_scikit_learn():
    data = noise(seed=7)
    pairs, quality = list(loop(data)), evaluate(data, bootstrap=500)
    difference = np.array([pair["difference"] for pair in pairs])
    probability = 1 / (1 + np.exp(-difference))
    assert quality.log_loss.value == pytest.approx(metrics.log_loss(np.ones(len(pairs)), probability, labels=[0, 1]))
    assert quality.log_loss.coin == math.log(2)
    assert quality.log_loss.low < quality.log_loss.value < quality.log_loss.high
    tied = [
        abs(one.scores[i] - one.scores[j])
        for one in data
        for i, j in combinations(range(len(one.scores)), 2)
        if one.record.responses[i].rank == one.record.responses[j].rank
    ]
    assert quality.ties.pairs == quality.counts.tied_pairs == len(tied)
    gaps = np.concatenate([np.abs(difference), tied])
    area = metrics.roc_auc_score(np.concatenate([np.ones(len(pairs)), np.zeros(len(tied))]), gaps)
    assert quality.ties.closer == pytest.approx(area)
    assert quality.ties.mean_gap_tied == pytest.approx(np.mean(tied))


def differences(number=4000, spread=1.5, temperature=1.0, seed=0):
    """Score differences of pairs that are right as often as sigmoid(difference / temperature) says."""
    rng = np.random.default_rng(seed)
    size = np.abs(rng.normal(0, spread, number))
    right = rng.random(number) < 1 / (1 + np.exp(-size / temperature))
    return np.where(right, size, -size)


def test_reliability_curve_equals_scikit_learn_and_the_error_a_loop():
    found = differences(temperature=2.0)
    calibration = calibration_of(found)
    confidence, right = 1 / (1 + np.exp(-np.abs(found))), found > 0
    for edges, bins, error in [
        ("uniform", calibration.equal_width, calibration.error),
        ("quantile", calibration.equal_count, calibration.error_equal_count),
    ]:
        if edges == "uniform":  # scikit-learn bins from 0 to 1: twenty of 0.05, of which ten are filled
            accuracy, sure = oracle.calibration_curve(right, confidence, n_bins=20)
        else:
            accuracy, sure = oracle.calibration_curve(right, confidence, n_bins=10, strategy="quantile")
        filled = [part for part in bins if part.pairs]
        assert [part.accuracy for part in filled] == pytest.approx(accuracy.tolist())
        assert [part.confidence for part in filled] == pytest.approx(sure.tolist())
        weighted = [part.pairs * abs(a - s) for part, a, s in zip(filled, accuracy, sure, strict=True)]
        assert error == pytest.approx(sum(weighted) / len(found))
        assert sum(part.pairs for part in bins) == len(found) and (bins[0].low, bins[-1].high) == (0.5, 1.0)
    assert len(calibration.equal_width) == 10
    assert (
        max(part.pairs for part in calibration.equal_count) - min(part.pairs for part in calibration.equal_count) <= 2
    )


def test_a_calibrated_model_has_next_to_no_error_and_temperature_one():
    calibration = calibration_of(differences(200_000))
    assert calibration.error < 0.006 and calibration.temperature == pytest.approx(1, abs=0.02)
    assert calibration_of(differences(200_000, temperature=3.0)).temperature == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_best_temperature_equals_scipy(scale):
    found = differences(seed=4) * scale
    temperature, loss = best_temperature(found)
    best = optimize.minimize_scalar(
        lambda log: np.logaddexp(0, -found / np.exp(log)).mean(), bracket=(math.log(scale) - 1, math.log(scale) + 1)
    )
    assert temperature == pytest.approx(math.exp(best.x), rel=1e-5) and loss == pytest.approx(best.fun, rel=1e-9)


def test_equal_scores_are_half_right_and_one_confidence_is_in_one_bin():
    calibration = calibration_of(np.array([0.0] * 30 + [1.0] * 40 + [-1.0] * 10 + [2.0] * 20))
    one, two = (1 / (1 + math.exp(-size)) for size in (1, 2))
    filled = [part for part in calibration.equal_count if part.pairs]
    assert [(part.pairs, part.accuracy) for part in filled] == [(30, 0.5), (50, 0.8), (20, 1.0)]
    assert [part.low for part in filled] == pytest.approx([0.5, one, two])  # a bin includes its lower end
    assert calibration.error_equal_count == pytest.approx(0.5 * abs(0.8 - one) + 0.2 * (1 - two))


def test_no_temperature_where_none_is_best():
    assert best_temperature(np.array([1.0, 0.2])) == (None, 0.0)
    assert best_temperature(np.array([1.0, 0.0])) == (None, math.log(2) / 2)
    assert best_temperature(np.array([1.0, -1.0])) == (None, math.log(2))
    assert best_temperature(np.array([-3.0, 1.0])) == (None, math.log(2))


# ---- intervals


def plain_interval(right, prompt, draws, confidence=0.95):
    """Percentiles over resamples of whole prompts, by writing the drawn pairs one after another."""
    of = [right[prompt == name] for name in np.unique(prompt)]
    means = [np.concatenate([of[number] for number in draw]).mean() for draw in draws(len(of))]
    return np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])


def test_intervals_equal_a_plain_loop_with_the_same_resamples():
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(300), rng.integers(1, 6, 300))
    values = rng.random(len(prompt))  # no two prompts are the same, so that prompts are drawn one by one
    bootstrap = Bootstrap(200, 0.9, seed=5)

    def draws(size):
        own = np.random.default_rng([5, 0])
        sums = [(values[prompt == name].sum(), (prompt == name).sum()) for name in range(size)]
        order = sorted(range(size), key=lambda number: sums[number])
        return [[order[place] for place in own.integers(0, size, size)] for _ in range(200)]

    found = bootstrap.accuracy(values, prompt)
    assert [found.low, found.high] == pytest.approx(list(plain_interval(values, prompt, draws, 0.9)))
    assert found.value == pytest.approx(values.mean()) and (found.pairs, found.prompts) == (len(values), 300)


def test_intervals_by_counts_equal_those_by_drawing():
    rng = np.random.default_rng(1)
    prompt = np.repeat(np.arange(400), rng.integers(1, 6, 400))
    right = (rng.random(len(prompt)) < np.repeat(rng.random(400), np.bincount(prompt))).astype(float)

    def draws(size):
        return rng.integers(0, size, (6000, size))

    found = Bootstrap(6000, 0.95, seed=0).accuracy(right, prompt)
    assert [found.low, found.high] == pytest.approx(list(plain_interval(right, prompt, draws)), abs=0.003)
    by_prompt = np.array([right[prompt == name].mean() for name in range(400)])
    scipy = stats.bootstrap((by_prompt,), np.mean, n_resamples=6000, method="percentile", rng=2).confidence_interval
    found = Bootstrap(6000, 0.95, seed=0).mean_by_prompt(right, prompt)
    assert found.value == pytest.approx(by_prompt.mean())
    assert [found.low, found.high] == pytest.approx(list(scipy), abs=0.003)


def test_difference_of_parts_draws_a_prompt_with_both():
    rng = np.random.default_rng(2)
    level = rng.random(200)
    one, other = ((rng.random(600) < np.tile(level, 3)).astype(float) for _ in range(2))
    prompt = np.tile(np.arange(200), 3)
    found = Bootstrap(4000, 0.95, seed=0).difference((one, prompt), (other, prompt))
    apart = np.array([(one - other)[prompt == name].mean() for name in range(200)])
    scipy = stats.bootstrap((apart,), np.mean, n_resamples=4000, method="percentile", rng=2).confidence_interval
    assert found.value == pytest.approx(apart.mean())
    assert [found.low, found.high] == pytest.approx(list(scipy), abs=0.005)


def test_rankings_of_one_prompt_go_together():
    data = noise(60, seed=8, prompts=60)
    copies = [
        Scored(one.record.model_copy(update={"id": f"{n} {copy}"}), one.scores, one.lengths)
        for copy in range(8)
        for n, one in enumerate(data)
    ]
    one, other = evaluate(data, seed=3), evaluate(copies, seed=3)
    # Eight times the pairs say nothing new about further prompts: the interval stays as wide as it was.
    assert (one.accuracy.low, one.accuracy.high) == pytest.approx((other.accuracy.low, other.accuracy.high))
    assert (one.log_loss.low, one.log_loss.high) == pytest.approx((other.log_loss.low, other.log_loss.high))


def numbers(value):
    """All numbers of some JSON, in its order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float)):
        yield value


def test_the_same_in_another_order_and_with_the_same_seed():
    data = noise(seed=9)
    one, other = evaluate(data, seed=1).to_json(), evaluate(data[::-1], seed=1).to_json()
    assert json.dumps(evaluate(data, seed=1).to_json()) == json.dumps(one)
    for key in ("accuracy", "accuracy_by_prompt", "by_source", "by_rank_gap", "ties", "counts"):
        assert list(numbers(one[key])) == pytest.approx(list(numbers(other[key]))), key
    assert evaluate(data, seed=2).accuracy.low != evaluate(data, seed=1).accuracy.low


def test_no_interval_below_ten_prompts():
    data = [scored(f"p{n}", [(1, n % 3, 4), (2, 1.0, 5)]) for n in range(9)]
    assert evaluate(data).accuracy.low is None and evaluate(data).log_loss.low is None
    assert evaluate([*data, scored("p9", [(1, 1.0, 4), (2, 0.0, 5)])]).accuracy.low is not None


# ---- labelers


def test_labelers_by_set():
    rng = np.random.default_rng(3)
    data = [
        scored(f"p{n}", [(1, float(rng.random() < chance), 4), (2, 0.5, 5)], labeler=name)
        for n, (name, chance) in enumerate([("anna", 0.9), ("ben", 0.9), ("cem", 0.6), (None, 0.5)] * 50)
    ]
    labelers = evaluate(data, training_labelers=frozenset({"anna", "ben"})).labelers
    rights = defaultdict(list)
    for pair in loop(data):
        name = pair["labeler"]
        rights["training" if name in ("anna", "ben") else "held-out" if name else "unknown"].append(pair["right"])
    assert [group.name for group in labelers.sets] == ["training", "held-out", "unknown"]
    for group in labelers.sets:
        assert group.accuracy.value == pytest.approx(mean(rights[group.name])) and group.labelers == group.name
    apart = mean(rights["training"]) - mean(rights["held-out"])
    assert labelers.difference.value == pytest.approx(apart)
    assert labelers.difference.low < apart < labelers.difference.high
    by_labeler = evaluate(data, heldout_labelers=frozenset({"cem"}), bootstrap=50).by_labeler
    assert {group.name: group.labelers for group in by_labeler} == {
        "anna": "unknown",
        "ben": "unknown",
        "cem": "held-out",
        "": "unknown",
    }
    both = evaluate(data, training_labelers=frozenset({"cem"}), heldout_labelers=frozenset({"cem"}), bootstrap=50)
    assert {group.name: group.labelers for group in both.by_labeler}["cem"] == "training"


def test_beyond_a_hundred_labelers_the_rest_is_one_group():
    data = [
        scored(f"p{n}", [(1, 1.0, 4), (2, float(n % 2) * 2, 5)], labeler=f"l{n if n < 130 else n % 10}")
        for n in range(200)
    ]
    groups = evaluate(data, bootstrap=50).by_labeler
    assert len(groups) == 101 and groups[-1].name == OTHERS and groups[0].accuracy.pairs == 8
    assert sum(group.accuracy.pairs for group in groups) == 200 and groups[-1].accuracy.pairs == 30


def test_agreement_of_one_labeler_with_one_other_is_the_ceiling():
    rng = np.random.default_rng(4)
    data = []
    for n in range(80):
        quality = rng.normal(size=4)
        for name in ("anna", "ben", "cem")[: 1 + n % 3]:
            ranks = np.argsort(np.argsort(-(quality + rng.normal(size=4)))) + 1
            ranks = np.maximum(ranks - 1, 1) if rng.random() < 0.3 else ranks  # sometimes the first two are tied
            data.append(
                scored(f"p{n}", [(int(rank), s, 5) for rank, s in zip(ranks, quality, strict=True)], labeler=name)
            )
    by_prompt = defaultdict(list)
    for one in data:
        by_prompt[one.record.prompt].append([answer.rank for answer in one.record.responses])
    same = [
        (one[i] < one[j]) == (other[i] < other[j])
        for opinions in by_prompt.values()
        for one, other in combinations(opinions, 2)
        for i, j in combinations(range(4), 2)
        if one[i] != one[j] and other[i] != other[j]
    ]
    ceiling = evaluate(data, bootstrap=200).ceiling
    shared = [one for one in data if len(by_prompt[one.record.prompt]) > 1]
    assert ceiling.agreement.value == pytest.approx(mean(same)) and ceiling.agreement.pairs == len(same)
    assert ceiling.model.value == pytest.approx(mean(pair["right"] for pair in loop(shared)))
    assert (ceiling.sets, ceiling.labelers) == (53, 3)
    assert ceiling.agreement.prompts == ceiling.model.prompts == 53
    assert ceiling.agreement.low < ceiling.agreement.value < ceiling.agreement.high


def test_no_ceiling_where_labelers_rank_other_answers_or_have_no_name():
    assert evaluate(noise(), bootstrap=50).ceiling is None
    nameless = [scored("p", [(1, 1.0, 4), (2, 0.0, 5)]) for _ in range(3)]
    assert evaluate(nameless, bootstrap=50).ceiling is None
    named = [scored("p", [(1, 1.0, 4), (2, 0.0, 5)], labeler=name) for name in ("anna", "ben")]
    ceiling = evaluate(nameless + named, bootstrap=50).ceiling
    assert ceiling.model.pairs == 2 and ceiling.agreement.pairs == 1


# ---- bad input, JSON, speed


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_named(score):
    good = scored("p", [(1, 1.0, 4), (2, 0.0, 5)])
    bad = scored("q", [(1, 1.0, 4), (2, score, 5)], id="row-7")
    with pytest.raises(ValueError, match=r"^ranking 'row-7': the score of its response 2 is -?(nan|inf)"):
        evaluate([good, bad])
    with pytest.raises(ValueError, match=r"^training ranking 2: "):
        nameless = bad.record.model_copy(update={"id": None})
        evaluate([good], training=[good, Scored(nameless, bad.scores, bad.lengths)])


def test_wrong_numbers_of_scores_and_settings():
    good = scored("p", [(1, 1.0, 4), (2, 0.0, 5)])
    with pytest.raises(ValueError, match="ranking 1: 2 responses, but 1 scores and 2 lengths"):
        evaluate([Scored(good.record, (1.0,), (4, 5))])
    with pytest.raises(ValueError, match="2 scores and 3 lengths"):
        evaluate([Scored(good.record, (1.0, 2.0), (4, 5, 6))])
    with pytest.raises(ValueError, match="no rankings"):
        evaluate([])
    for wrong in ({"bootstrap": 0}, {"confidence": 1.0}, {"confidence": 0.0}):
        with pytest.raises(ValueError, match="bootstrap="):
            evaluate([good], **wrong)


@pytest.mark.parametrize(
    "data",
    [
        [scored("p", [(1, 0.0, 4), (1, 0.0, 4)])],
        [scored("p", [(1, 1.0, 4), (2, 0.0, 4)])],
        [scored(f"p{n}", [(1, 0.0, 4), (2, 0.0, 4)], labeler="a") for n in range(20)],
        [scored(f"p{n}", [(1, 1e300, 4), (2, -1e300, 9)], labeler="a") for n in range(20)],
        noise(),
    ],
    ids=["only ties", "one pair", "equal scores", "huge", "all"],
)
def test_json_has_no_nan_and_every_field(data):
    curve = [CurvePoint(n / 20, n, 2 * n, Accuracy(0.6, None, None, 20, 10), 3.0) for n in (10, 20)]
    quality = evaluate(data, training=data, training_labelers=frozenset({"a"}), curve=curve, bootstrap=100)
    assert "From 10 to 20 training prompts" in quality.verdict.reasons[-1].text
    plain = json.loads(json.dumps(quality.to_json(), allow_nan=False))
    assert plain["curve"][0]["accuracy"]["value"] == 0.6 and plain["verdict"]["word"] == quality.verdict.word
    assert set(plain) == {field for field in quality.__slots__}
    assert quality.verdict.reasons[0].text.endswith(".")


def test_json_writes_no_number_where_there_is_none():
    quality = evaluate(noise(), bootstrap=50)
    assert replace(quality, confidence=math.nan).to_json()["confidence"] is None
    calibration = replace(quality.calibration, error=math.inf)
    assert replace(quality, calibration=calibration).to_json()["calibration"]["error"] is None


def test_huge_scores_have_a_correlation_all_the_same():
    data = [scored(f"p{n}", [(1, 1e300, 4), (2, -1e300, 9)]) for n in range(20)]
    quality = evaluate(data, bootstrap=50)
    assert quality.length.pearson == pytest.approx(-1) and quality.length.pearson_within == pytest.approx(-1)
    assert quality.log_loss.value == 0 and quality.calibration.error == 0


def test_only_ties_leave_nothing_to_measure():
    quality = evaluate([scored("p", [(1, 0.0, 4), (1, 1.0, 4)])])
    assert quality.accuracy == Accuracy(None, None, None, 0, 0) and quality.accuracy.estimate is None
    assert quality.log_loss is None and quality.calibration is None and quality.length is None and quality.ties is None
    assert quality.verdict.word == "weak" and "0 pairs" in quality.verdict.reasons[0].text


def test_fifty_thousand_pairs_take_seconds():
    rng = np.random.default_rng(0)
    data = [
        scored(f"p{n}", [(1, a + 0.5, int(rng.integers(3, 90))), (2, b, 5)], labeler=f"l{n % 40}", category=f"c{n % 9}")
        for n, (a, b) in enumerate(rng.normal(size=(50_000, 2)).tolist())
    ]
    start = time.perf_counter()
    quality = evaluate(data)
    assert time.perf_counter() - start < 20  # about 4 s on two shared cores
    assert quality.accuracy.pairs == 50_000
    # A normal approximation is good for so many independent pairs.
    wide = 1.96 * math.sqrt(quality.accuracy.value * (1 - quality.accuracy.value) / 50_000)
    assert quality.accuracy.high - quality.accuracy.low == pytest.approx(2 * wide, rel=0.1)
