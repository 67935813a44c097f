"""Win rates, Bradley–Terry, Elo, control for length, position bias: against loops, other libraries and known truths."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from elote import EloCompetitor
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from rlhf_kit.measures import bootstrap_mean, win_rate
from rlhf_kit.tournament import (
    Resamples,
    Verdicts,
    bradley_terry,
    elo,
    length_controlled,
    play,
    position_bias,
    win_matrix,
    win_rates,
)

STRENGTHS = np.array([-0.8, -0.3, 0.1, 0.2, 0.8])


def tournament(prompts: int, strengths: np.ndarray = STRENGTHS, seed: int = 0) -> np.ndarray:
    """(P, N, N): one verdict on each pair on each prompt, by the model itself."""
    rng = np.random.default_rng(seed)
    rates = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    matrix = np.full((prompts, len(strengths), len(strengths)), np.nan)
    for i, j in zip(*np.triu_indices(len(strengths), 1), strict=True):
        matrix[:, i, j] = rng.random(prompts) < rates[i, j]
        matrix[:, j, i] = 1 - matrix[:, i, j]
    return matrix


# -------------------------------------------------------------------- win rates


def test_scores_become_the_win_rates_of_every_pair_of_answers() -> None:
    scores = np.random.default_rng(0).integers(0, 3, size=(7, 3, 4)).astype(float)  # with ties
    verdicts = Verdicts.of_scores(scores)
    assert len(verdicts.prompt) == 7 * 3 * 16
    matrix = win_matrix(verdicts, 7, 3)
    for p in range(7):
        for i in range(3):
            for j in range(3):
                if i == j:
                    assert np.isnan(matrix[p, i, j])
                else:
                    assert matrix[p, i, j] == pytest.approx(win_rate(scores[p, i], scores[p, j]))
    rates = win_rates(matrix, Resamples.draw(7))
    assert rates[0][0] is None
    assert rates[0][1].value == pytest.approx(np.mean([win_rate(scores[p, 0], scores[p, 1]) for p in range(7)]))
    assert rates[0][1].value + rates[1][0].value == pytest.approx(1)
    assert rates[0][1].low == pytest.approx(1 - rates[1][0].high)


def test_an_answer_without_a_score_is_compared_with_nothing() -> None:
    scores = np.array([[[1.0, np.nan], [0.0, 2.0]]])
    verdicts = Verdicts.of_scores(scores)
    assert sorted(zip(verdicts.our_answer, verdicts.their_answer, verdicts.outcome, strict=True)) == [
        (0, 0, 1.0),
        (0, 1, 0.0),
    ]
    assert win_rates(win_matrix(Verdicts.of_scores(np.full((2, 2, 1), np.nan)), 2, 2), Resamples.draw(2))[0][1] is None


def test_the_interval_of_a_win_rate_is_that_of_a_bootstrap_over_prompts() -> None:
    values = np.random.default_rng(1).random(60)
    ours, theirs = Resamples.draw(60, resamples=8000, seed=3).mean(values), bootstrap_mean(values, resamples=8000)
    assert ours.value == pytest.approx(theirs.value)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=4e-3)


def test_prompts_without_a_value_take_no_part() -> None:
    draws = Resamples.draw(4, resamples=500)
    found = draws.mean(np.array([1.0, np.nan, 0.0, np.nan]))
    assert found.value == 0.5 and 0 <= found.low < found.high <= 1
    assert np.isnan(draws.mean(np.full(4, np.nan)).value)


# -------------------------------------------------------------------- strengths


def test_bradley_terry_equals_a_likelihood_maximised_by_another_library() -> None:
    matrix = tournament(150)
    wins = np.nan_to_num(matrix).sum(axis=0)

    def loss(strengths: np.ndarray) -> float:
        gaps = strengths[:, None] - strengths[None, :]
        return float(((wins + 0.01 * (1 - np.eye(5))) * np.logaddexp(0, -gaps)).sum())

    best = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-8}).x
    found = bradley_terry(matrix, Resamples.draw(150, resamples=50))
    assert [one.value for one in found] == pytest.approx(best - best.mean(), abs=1e-5)
    assert sum(one.value for one in found) == pytest.approx(0, abs=1e-9)


def test_bradley_terry_of_two_is_the_logarithm_of_the_odds() -> None:
    matrix = np.full((10, 2, 2), np.nan)
    matrix[:, 0, 1] = [1, 1, 1, 1, 1, 1, 1, 0.5, 0, 0]  # 7.5 to 2.5
    matrix[:, 1, 0] = 1 - matrix[:, 0, 1]
    first, second = bradley_terry(matrix, Resamples.draw(10))
    assert first.value - second.value == pytest.approx(np.log(7.51 / 2.51))


def test_who_never_loses_has_a_finite_strength_and_who_never_met_has_none() -> None:
    matrix = np.full((5, 4, 4), np.nan)
    matrix[:, 0, 1], matrix[:, 1, 0] = 1, 0
    matrix[:2, 1, 2], matrix[:2, 2, 1] = 1, 0
    found = bradley_terry(matrix, Resamples.draw(5))
    assert found[3] is None
    assert found[0].value > found[1].value > found[2].value and np.isfinite(found[0].high)
    ratings = elo(matrix, Resamples.draw(5))
    assert ratings[3] is None and ratings[0].value > 1000 > max(ratings[1].value, ratings[2].value)
    assert bradley_terry(np.full((2, 2, 2), np.nan), Resamples.draw(2)) == [None, None]
    assert elo(np.full((2, 2, 2), np.nan), Resamples.draw(2)) == [None, None]


def test_elo_equals_another_library_game_by_game() -> None:
    rng = np.random.default_rng(2)
    ours, theirs = rng.integers(0, 3, size=200), rng.integers(0, 3, size=200)
    theirs = np.where(ours == theirs, (theirs + 1) % 3, theirs)
    score = rng.choice([0.0, 0.5, 1.0], size=200)
    players = [EloCompetitor(initial_rating=1000, k_factor=16) for _ in range(3)]
    for i, j, s in zip(ours, theirs, score, strict=True):
        if s == 0.5:
            players[i].tied(players[j])
        else:
            (players[i] if s else players[j]).beat(players[j] if s else players[i])
    forwards, no_games = np.arange(200), np.full(200, -1)
    ratings = play(np.stack([forwards, no_games]), ours, theirs, score, 3)
    assert ratings[0] == pytest.approx([player.rating for player in players])
    assert ratings[1].tolist() == [1000.0] * 3


def test_known_strengths_are_recovered_within_the_intervals() -> None:
    matrix = tournament(400, seed=5)
    draws = Resamples.draw(400)
    for truth, strength, rating in zip(
        STRENGTHS - STRENGTHS.mean(), bradley_terry(matrix, draws), elo(matrix, draws), strict=True
    ):
        assert strength.low <= truth <= strength.high
        assert rating.low <= 1000 + truth * 400 / np.log(10) <= rating.high
        assert strength.high - strength.low < 0.5 and rating.high - rating.low < 120


def test_the_strengths_do_not_depend_on_the_order_of_the_policies() -> None:
    matrix, draws = tournament(60), Resamples.draw(60, resamples=200)
    turned = matrix[:, ::-1, ::-1]
    for one, other in zip(bradley_terry(matrix, draws), bradley_terry(turned, draws)[::-1], strict=True):
        assert one.as_dict() == pytest.approx(other.as_dict(), abs=1e-6)
    for one, other in zip(elo(matrix, draws), elo(turned, draws)[::-1], strict=True):
        assert one.value == pytest.approx(other.value, abs=6)  # other random orders of the games


# -------------------------------------------------------------------- coverage


def covered(trials: int) -> Iterator[tuple[str, bool]]:
    """Whether each interval of each simulated tournament on 60 prompts holds the truth."""
    strengths = np.array([-0.5, 0.0, 0.5])
    rates = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    for seed in range(trials):
        matrix, draws = tournament(60, strengths, seed), Resamples.draw(60, resamples=300, seed=seed)
        found = win_rates(matrix, draws)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            yield "win rate", found[i][j].low <= rates[i, j] <= found[i][j].high
        for truth, one in zip(strengths, bradley_terry(matrix, draws), strict=True):
            yield "Bradley–Terry", one.low <= truth <= one.high
        for truth, one in zip(strengths, elo(matrix, draws, seed=seed), strict=True):
            yield "Elo", one.low <= 1000 + truth * 400 / np.log(10) <= one.high


def test_intervals_have_the_coverage_that_they_claim() -> None:
    hits: dict[str, list[bool]] = {}
    for name, inside in covered(100):
        hits.setdefault(name, []).append(inside)
    for name, inside in hits.items():
        assert 0.90 <= np.mean(inside) <= 0.98, (name, np.mean(inside))


def test_the_bootstrap_of_a_mean_has_the_coverage_that_it_claims() -> None:
    """Win rates of four answers against four on a prompt: between 0 and 1, and skewed."""
    rng, inside = np.random.default_rng(0), []
    for seed in range(600):
        values = rng.beta(1.2, 0.6, size=48)
        found = bootstrap_mean(values, resamples=600, seed=seed)
        inside.append(found.low <= 1.2 / 1.8 <= found.high)
    assert 0.90 <= np.mean(inside) <= 0.98


def test_a_wider_confidence_is_a_wider_interval() -> None:
    values = np.random.default_rng(0).random(40)
    widths = [
        (one := Resamples.draw(40, confidence=confidence).mean(values)).high - one.low
        for confidence in (0.5, 0.9, 0.99)
    ]
    assert widths == sorted(widths) and widths[0] < 0.7 * widths[2]


# -------------------------------------------------------------------- length, position


def by_length(prompts: int, worth: float, better: float, seed: int = 0) -> tuple[Verdicts, np.ndarray]:
    """Verdicts of a judge that likes length (`worth`) beside quality (`better`), policy 0 against the longer 1."""
    rng = np.random.default_rng(seed)
    lengths = np.stack([rng.normal(100, 20, prompts), rng.normal(130, 20, prompts)], axis=1)[..., None]
    gap = lengths[:, 0, 0] - lengths[:, 1, 0]
    rate = 1 / (1 + np.exp(-(better + worth * np.tanh(gap / gap.std()))))
    wins = (rng.random(prompts) < rate).astype(float)
    return Verdicts.of_rows([(p, 0, 1, 0, 0, w, w) for p, w in enumerate(wins)]), lengths


def test_control_for_length_is_the_logistic_regression_of_another_library() -> None:
    verdicts, lengths = by_length(500, worth=1.5, better=0.4)
    found = length_controlled(verdicts, lengths, 0, 1, Resamples.draw(500, resamples=300))
    gap = lengths[:, 0, 0] - lengths[:, 1, 0]
    other = LogisticRegression(C=1e6).fit(np.tanh(gap / gap.std())[:, None], verdicts.outcome)
    assert found.value == pytest.approx(1 / (1 + np.exp(-other.intercept_[0])), abs=1e-3)
    raw = win_rates(win_matrix(verdicts, 500, 2), Resamples.draw(500))[0][1]
    assert raw.high < 0.5 < found.low  # loses by its shortness alone
    turned = length_controlled(verdicts, lengths, 1, 0, Resamples.draw(500, resamples=300))
    assert turned.value == pytest.approx(1 - found.value)


def test_without_a_taste_for_length_nothing_is_taken_away() -> None:
    verdicts, lengths = by_length(800, worth=0.0, better=0.4)
    raw = win_rates(win_matrix(verdicts, 800, 2), Resamples.draw(800))[0][1]
    found = length_controlled(verdicts, lengths, 0, 1, Resamples.draw(800, resamples=300))
    assert found.low < raw.value < found.high
    alike = length_controlled(verdicts, np.full((800, 2, 1), 7.0), 0, 1, Resamples.draw(800, resamples=300))
    assert alike.value == pytest.approx(raw.value, abs=1e-4)
    assert length_controlled(verdicts, lengths, 0, 0, Resamples.draw(800)) is None


def test_a_prompt_counts_once_for_control_of_length_however_many_answers_it_has() -> None:
    once = Verdicts.of_rows([(0, 0, 1, 0, 0, 1, 1), (1, 0, 1, 0, 0, 0, 0)])
    often = Verdicts.of_rows([(0, 0, 1, 0, 0, 1, 1)] * 9 + [(1, 0, 1, 0, 0, 0, 0)])
    lengths, draws = np.full((2, 2, 1), 5.0), Resamples.draw(2, resamples=50)
    one, other = (length_controlled(verdicts, lengths, 0, 1, draws) for verdicts in (once, often))
    assert one.value == other.value == 0.5


def test_position_bias_by_hand() -> None:
    rows = [
        (0, 0, 1, 0, 0, 1.0, 0.0),  # always the first
        (1, 0, 1, 0, 0, 1.0, 1.0),  # ours, wherever it stands
        (2, 0, 1, 0, 0, 0.5, 0.5),  # a tie both times
        (3, 0, 1, 0, 0, 1.0, np.nan),  # asked once: says nothing of it
    ]
    verdicts = Verdicts.of_rows(rows)
    assert verdicts.outcome.tolist() == [0.5, 1.0, 0.5, 1.0]
    found = position_bias(verdicts, 4, Resamples.draw(4))
    assert found.asked_both == 3
    assert found.first_preferred.value == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert found.consistent.value == pytest.approx(2 / 3)
    assert position_bias(Verdicts.of_scores(np.zeros((2, 2, 1))), 2, Resamples.draw(2)) is None
