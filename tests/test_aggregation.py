"""One score for each answer from partial or cyclic verdicts: numbers by hand, and another maximiser."""

import math
import sys

import pytest

import rlhf_kit.aggregation as aggregation
from rlhf_kit.aggregation import aggregate, aggregated, ranks_of
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.formats.base import Comparisons, Unusable
from rlhf_kit.parsing import parse_shaped

pytest.importorskip("elote")


def comparisons(k, verdicts, labeler="anna", **fields):
    responses = tuple({"text": f"answer {i}", "source": f"model {i}"} for i in range(k))
    names = {"prompt": "question", **{f"responses.{i}.text": f"prediction {i}" for i in range(k)}}
    return Comparisons("Why?", responses, tuple(verdicts), {"labeler": labeler, **fields}, names, 3)


def scores(k, verdicts, method="bt"):
    (only,) = aggregate([comparisons(k, verdicts)], method)
    assert [response["text"] for response in only.responses] == [f"answer {i}" for i in range(k)]
    return only.scores


def test_three_wins_to_one_differ_by_log_3_without_regularisation(monkeypatch):
    monkeypatch.setattr(aggregation, "ALPHA", 1e-9)
    first, second = scores(2, [(0, 1, 1), (0, 1, 1), (1, 0, -1), (1, 0, 1)])
    assert first - second == pytest.approx(math.log(3), abs=1e-6)
    assert first + second == pytest.approx(0, abs=1e-12)


def test_a_tie_is_half_a_win_each_way(monkeypatch):
    monkeypatch.setattr(aggregation, "ALPHA", 1e-9)
    first, second = scores(2, [(0, 1, 1), (0, 1, 0)])  # 1.5 wins to 0.5
    assert first - second == pytest.approx(math.log(3), abs=1e-6)
    assert scores(2, [(0, 1, 0)]) == pytest.approx((0, 0), abs=1e-12)


def test_scores_are_those_of_an_independent_maximisation():
    optimize = pytest.importorskip("scipy.optimize")
    verdicts = [(0, 1, 1), (1, 2, 1), (2, 0, 1), (0, 3, 0), (3, 1, -1), (2, 3, 1), (0, 2, 1)]

    def loss(theta):
        total = 0.01 * sum(t * t for t in theta)
        for i, j, v in verdicts:
            won = (v + 1) / 2
            total -= won * -math.log1p(math.exp(theta[j] - theta[i]))
            total -= (1 - won) * -math.log1p(math.exp(theta[i] - theta[j]))
        return total

    found = optimize.minimize(loss, [0.0] * 4, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13})
    assert scores(4, verdicts) == pytest.approx(tuple(found.x), abs=1e-5)


def test_an_unbeaten_answer_gets_a_finite_score_and_the_cycle_a_tie():
    chain = scores(3, [(0, 1, 1), (1, 2, 1)])
    assert all(map(math.isfinite, chain)) and chain[0] > chain[1] > chain[2]
    cycle = scores(3, [(0, 1, 1), (1, 2, 1), (2, 0, 1)])
    assert ranks_of(cycle) == [1, 1, 1]
    # 0 = 1, 1 = 2, 0 > 2: no order fits; the scores have one
    assert ranks_of(scores(3, [(0, 1, 0), (1, 2, 0), (0, 2, 1)])) == [1, 2, 3]


def test_answers_with_equal_wins_in_a_whole_tournament_tie_in_spite_of_rounding():
    # 0 beats 1, 2, 3 and loses to 4; 1 beats 2, 3, 4; 2 beats 3, 4; 3 beats 4; wins 3, 3, 2, 1, 1
    verdicts = [(i, j, 1) for i in range(5) for j in range(i + 1, 5) if (i, j) != (0, 4)] + [(4, 0, 1)]
    assert ranks_of(scores(5, verdicts)) == [1, 1, 2, 3, 3]


def test_elo_by_hand_and_its_dependence_on_the_order_of_games():
    # equal players: the winner of the first game gains K / 2 = 16
    assert scores(2, [(0, 1, 1)], "elo") == pytest.approx((1516, 1484))
    # then the expectation of 1516 against 1484 is 1 / (1 + 10^(-32/400)); a tie moves them by 32 times the rest
    moved = 32 * (0.5 - 1 / (1 + 10 ** (-32 / 400)))
    assert scores(2, [(0, 1, 1), (1, 0, 0)], "elo") == pytest.approx((1516 + moved, 1484 - moved))
    forward, backward = scores(2, [(0, 1, 1), (0, 1, -1)], "elo"), scores(2, [(0, 1, -1), (0, 1, 1)], "elo")
    assert forward[0] < forward[1] and backward[0] > backward[1]


def test_bradley_terry_does_not_depend_on_the_order_of_verdicts():
    verdicts = [(0, 1, 1), (1, 2, 0), (2, 0, 1), (0, 1, -1)]
    assert scores(3, verdicts) == pytest.approx(scores(3, verdicts[::-1]), abs=1e-9)


def test_labelers_are_joined_by_their_answers_and_not_by_their_places():
    anna = Comparisons("Why?", ({"text": "a"}, {"text": "b"}), ((0, 1, 1),), {"labeler": "anna"})
    ben = Comparisons(
        "Why?", ({"text": "b"}, {"text": "a"}, {"text": "c"}), ((0, 1, -1), (0, 2, 1)), {"labeler": "ben"}
    )
    (only,) = aggregate([anna, ben], "bt")
    assert [response["text"] for response in only.responses] == ["a", "b", "c"]
    assert only.scores[0] > only.scores[1] > only.scores[2] and only.verdicts == 3
    rows = list(aggregated([anna, ben], "ranking", "bt"))
    assert rows[0].row["meta"]["labelers"] == ["anna", "ben"] and "labeler" not in rows[0].row


def test_one_text_by_two_models_is_one_answer_with_one_score():
    yes, also_yes, no = (
        {"text": "Yes.", "source": "a"},
        {"text": "Yes.", "source": "b"},
        {"text": "No.", "source": "a"},
    )
    one = Comparisons("Is it?", (yes, also_yes, no), ((0, 1, 1), (1, 2, 1), (0, 2, 0)))
    (only,) = aggregate([one], "elo")
    assert only.responses == ({"text": "Yes.", "source": "a, b"}, no) and only.verdicts == 2
    assert also_yes == {"text": "Yes.", "source": "b"} and yes["source"] == "a"


def test_groups_that_no_verdict_links_are_scored_each_by_itself():
    outcomes = list(aggregated([comparisons(5, [(0, 1, 1), (3, 2, 1)])], "ranking", "bt"))  # 4 is never compared
    assert isinstance(outcomes[0], Unusable) and outcomes[0].code == "partial-order" and outcomes[0].row == 3
    first, second = (parse_shaped(outcome, "ranking") for outcome in outcomes[1:])
    assert [(r.text, r.rank) for r in first.responses] == [("answer 0", 1), ("answer 1", 2)]
    assert [(r.text, r.rank) for r in second.responses] == [("answer 2", 2), ("answer 3", 1)]
    assert second.meta["aggregate"]["group"] == 2 and second.meta["aggregate"]["groups"] == 2


def test_ratings_have_the_source_s_names_and_say_how_they_came_about():
    outcomes = list(aggregated([comparisons(2, [(0, 1, 1)], category="qa", meta={"gold": "x"})], "rating", "elo"))
    best, other = (parse_shaped(outcome, "rating") for outcome in outcomes)
    assert (best.prompt, best.response, best.source, best.labeler) == ("Why?", "answer 0", "model 0", "anna")
    assert (best.score, other.score) == (1516, 1484) and best.category == "qa"
    assert best.meta == {"gold": "x", "aggregate": {"method": "elo", "verdicts": 1, "group": 1, "groups": 1}}
    assert outcomes[1].name_of("response") == "prediction 1" and outcomes[1].index == 3


def test_no_verdict_is_a_finding_and_no_row():
    (only,) = aggregated([comparisons(2, [(0, 0, 0)])], "rating", "bt")
    assert isinstance(only, Unusable) and only.code == "no-verdict"
    assert list(aggregated([], "rating", "bt")) == []
    (beside,) = aggregate([comparisons(2, [(0, 1, 1), (0, 0, 1)])], "elo")
    assert beside.verdicts == 1 and beside.scores == pytest.approx((1516, 1484))


def test_a_missing_library_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "elote", None)
    with pytest.raises(RlhfKitError, match=r"pip install 'rlhf-kit\[data\]'"):
        aggregate([comparisons(2, [(0, 1, 1)])], "elo")
