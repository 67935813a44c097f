"""What the kit claims in numbers: by hand, by simulation, and on data made to have a known answer."""

import itertools
import math

import numpy as np
import pytest

from rlhf_kit.measures import bootstrap_mean, explain_gain, pair_accuracy, pooled_pair_accuracy, win_rate


@pytest.mark.parametrize(
    ("scores", "ranks", "right", "pairs"),
    [
        ([2.0, 1.0], [1, 2], 1.0, 1),
        ([1.0, 2.0], [1, 2], 0.0, 1),
        ([1.0, 1.0], [1, 2], 0.5, 1),  # a scorer that cannot tell gets half
        ([1.0, 9.0], [1, 1], 0.0, 0),  # a tie between people is no pair
        ([3.0, 2.0, 1.0], [1, 2, 3], 3.0, 3),
        ([3.0, 1.0, 2.0], [1, 2, 3], 2.0, 3),
        ([0.0, 5.0, 5.0, 1.0], [1, 1, 2, 3], 0 + 1 + 0.5 + 0 + 1, 5),
    ],
)
def test_pair_accuracy_by_hand(scores, ranks, right, pairs):
    # The last: pairs (a,c) 0<5 wrong, (a,d) 0<1 wrong, (b,c) 5=5 half, (b,d) right, (c,d) right.
    assert pair_accuracy(scores, ranks) == (right, pairs)


def test_pooling_counts_pairs_not_prompts():
    scores, ranks = [[2.0, 1.0], [1.0, 2.0, 3.0], [7.0, 7.0]], [[1, 2], [1, 2, 3], [1, 1]]
    assert pooled_pair_accuracy(scores, ranks) == 1 / 4
    assert math.isnan(pooled_pair_accuracy([[1.0, 2.0]], [[3, 3]]))


def test_a_constant_scorer_has_half_of_the_pairs():
    assert pooled_pair_accuracy([[0.0] * 5, [0.0] * 3], [[1, 2, 3, 3, 4], [2, 1, 3]]) == 0.5


def test_win_rate_with_ties():
    assert win_rate([1.0], [0.0]) == 1.0
    assert win_rate([1.0], [1.0]) == 0.5
    assert win_rate([1.0, 3.0], [2.0, 3.0]) == (0 + 0 + 1 + 0.5) / 4
    ours, theirs = [0.0, 1.0, 1.0, 2.0, 5.0], [1.0, 1.0, 4.0]
    assert win_rate(ours, theirs) + win_rate(theirs, ours) == pytest.approx(1.0)
    brute = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(ours, theirs)])
    assert win_rate(ours, theirs) == pytest.approx(brute)


@pytest.mark.parametrize("draw", ["normal", "coin"])
def test_a_95_percent_interval_covers_the_truth_about_95_times_in_100(draw):
    rng = np.random.default_rng(7)
    covered = 0
    for run in range(400):
        data = rng.normal(2.0, 3.0, size=50) if draw == "normal" else rng.random(60) < 0.7
        truth = 2.0 if draw == "normal" else 0.7
        found = bootstrap_mean(data, resamples=400, confidence=0.95, seed=run)
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / 400 <= 0.98


def test_the_interval_is_the_normal_one_in_the_limit():
    data = np.random.default_rng(0).normal(size=2000)
    found = bootstrap_mean(data, resamples=4000, confidence=0.9)
    error = data.std() / math.sqrt(len(data))
    assert found.value == pytest.approx(data.mean())
    assert found.low == pytest.approx(data.mean() - 1.645 * error, abs=0.1 * error)
    assert found.high == pytest.approx(data.mean() + 1.645 * error, abs=0.1 * error)


def test_bootstrap_is_repeatable_and_needs_data():
    assert bootstrap_mean([1.0, 2.0, 4.0], seed=3) == bootstrap_mean([1.0, 2.0, 4.0], seed=3)
    one = bootstrap_mean([5.0])
    assert one.as_dict() == {"value": 5.0, "low": 5.0, "high": 5.0}
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])


def answers(rng, count, length_mean, ended_share):
    length = rng.normal(length_mean, 4.0, size=count)
    return {
        "length": np.column_stack([length, length**2 / 50]).tolist(),
        "ended": (rng.random((count, 1)) < ended_share).astype(float).tolist(),
    }


def linear(features, constant):
    length, ended = np.asarray(features["length"]), np.asarray(features["ended"])
    return (constant - 0.2 * length[:, 0] + 0.1 * length[:, 1] + 1.5 * ended[:, 0]).tolist()


def test_a_gain_that_was_made_of_known_parts_is_taken_apart_again():
    rng = np.random.default_rng(0)
    before, after = answers(rng, 200, 30.0, 0.5), answers(rng, 150, 20.0, 0.9)
    scores_before = linear(before, 1.0)
    scores_after = linear(after, 1.0 + 0.25)  # 0.25 come from nowhere that the features know of
    parts = explain_gain((before, scores_before), (after, scores_after))

    spread = np.std(scores_before)
    shift = np.mean(after["length"], axis=0) - np.mean(before["length"], axis=0)
    assert parts["length"] == pytest.approx((-0.2 * shift[0] + 0.1 * shift[1]) / spread, abs=1e-8)
    ended = np.mean(after["ended"]) - np.mean(before["ended"])
    assert parts["ended"] == pytest.approx(1.5 * ended / spread, abs=1e-8)
    assert parts["rest"] == pytest.approx(0.25 / spread, abs=1e-8)
    whole = (np.mean(scores_after) - np.mean(scores_before)) / spread
    assert sum(parts.values()) == pytest.approx(whole, abs=1e-12)


def test_parts_add_up_with_noise_and_with_a_feature_that_never_varies():
    rng = np.random.default_rng(1)
    before, after = answers(rng, 60, 30.0, 1.1), answers(rng, 60, 28.0, 1.1)  # all have ended
    scores_before, scores_after = rng.normal(size=60).tolist(), (rng.normal(size=60) + 0.5).tolist()
    parts = explain_gain((before, scores_before), (after, scores_after))
    assert list(parts) == ["length", "ended", "rest"]
    assert parts["ended"] == pytest.approx(0.0, abs=1e-9)  # it did not change, so it explains nothing
    whole = (np.mean(scores_after) - np.mean(scores_before)) / np.std(scores_before)
    assert sum(parts.values()) == pytest.approx(whole, abs=1e-12)
