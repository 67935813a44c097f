"""Several opinions as one ranking: against scipy's ranks, counted votes, Bradley–Terry, and what must not matter."""

from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from rlhf_kit.aggregation import aggregate
from rlhf_kit.errors import DataError
from rlhf_kit.formats.base import Comparisons
from rlhf_kit.opinions import folds, merge
from rlhf_kit.parsing import parse
from rlhf_kit.records import Flags, Ranking

often = settings(max_examples=150, deadline=None)
METHODS = ("mean", "majority")


def opinion(order, labeler=None, prompt="Why?", **fields):
    """A ranking of answers named by letters: "a>b=c" puts a before b and c."""
    tiers = [tier.split("=") for tier in order.split(">")]
    responses = [{"text": text, "rank": rank} for rank, tier in enumerate(tiers, 1) for text in tier]
    return parse({"prompt": prompt, "responses": responses, "labeler": labeler, **fields}, "ranking")


def ranked(ranks, **fields):
    """The answers 0, 1, … with these ranks."""
    responses = [{"text": str(i), "rank": rank} for i, rank in enumerate(ranks)]
    return parse({"prompt": "Why?", "responses": responses, **fields}, "ranking")


def order_of(record):
    """The inverse of `opinion`, ties in alphabetical order."""
    ranks = sorted({response.rank for response in record.responses})
    assert ranks == list(range(1, len(ranks) + 1))
    return ">".join("=".join(sorted(r.text for r in record.responses if r.rank == rank)) for rank in ranks)


def merged(how, *records):
    (record,) = merge(records, how)
    return record


def ranks_of(record):
    return {response.text: response.rank for response in record.responses}


# ---- the two methods ----


def test_a_cycle_is_a_tie_for_the_majority_and_its_breaking_is_told():
    cycle = [opinion("a>b>c"), opinion("b>c>a"), opinion("c>a>b")]
    assert order_of(merged("majority", *cycle)) == order_of(merged("mean", *cycle)) == "a=b=c"
    # a beats b 3:1, b beats c 3:1, and now a ties with c at 2:2: a wins one, c loses one
    assert order_of(merged("majority", *cycle, opinion("a>b>c"))) == "a>b>c"


def test_mean_and_majority_differ_where_a_minority_feels_strongly():
    said = [opinion("a>b>c"), opinion("a>b>c"), opinion("a>b>c"), opinion("b>c>a"), opinion("b>c>a")]
    assert order_of(merged("majority", *said)) == "a>b>c"  # a wins both of its pairs 3:2
    assert order_of(merged("mean", *said)) == "b>a>c"  # mean ranks: a 1.8, b 1.6, c 2.6


def test_who_ties_has_no_vote_on_that_pair():
    said = [opinion("b>a>c"), opinion("a=b>c"), opinion("a=b>c"), opinion("c>a=b")]
    assert order_of(merged("majority", *said)) == "b>a>c"


def test_a_tie_is_two_halves_of_two_places_for_the_mean():
    # ranks 1.5, 1.5, 3 and 3, 1, 2: means 2.25, 1.25, 2.5; with tied ranks (1, 1, 2) a and c would tie at 2
    assert order_of(merged("mean", opinion("a=b>c"), opinion("b>c>a"))) == "b>a>c"
    assert order_of(merged("mean", opinion("a>b=c"), opinion("b=c>a"))) == "a=b=c"


OPINIONS = st.integers(2, 5).flatmap(
    lambda k: st.lists(st.lists(st.integers(1, k), min_size=k, max_size=k), min_size=2, max_size=6)
)


@often
@given(OPINIONS)
def test_the_mean_is_that_of_scipys_ranks(opinions):
    found = ranks_of(merged("mean", *map(ranked, opinions)))
    sums = np.sum([rankdata(ranks, method="average") for ranks in opinions], axis=0)  # halves: exact
    assert [found[str(i)] for i in range(len(sums))] == rankdata(sums, method="dense").tolist()


@often
@given(OPINIONS)
def test_the_majority_is_that_of_a_double_loop(opinions):
    found, k = ranks_of(merged("majority", *map(ranked, opinions))), len(opinions[0])
    score = [0] * k
    for i, j in permutations(range(k), 2):
        for_i, for_j = sum(o[i] < o[j] for o in opinions), sum(o[j] < o[i] for o in opinions)
        score[i] += 1 if for_i > for_j else -1 if for_j > for_i else 0
    assert [found[str(i)] for i in range(k)] == rankdata([-s for s in score], method="dense").tolist()


@pytest.mark.parametrize("seed", range(12))
def test_the_mean_orders_as_bradley_terry_does(seed):
    chance = np.random.default_rng(seed)
    k = 2 + seed % 4
    opinions = chance.integers(1, k + 1, size=(1 + seed % 5 + 1, k)).tolist()
    answers = tuple({"text": str(i)} for i in range(k))
    verdicts = [tuple((i, j, (o[i] < o[j]) - (o[i] > o[j])) for i, j in combinations(range(k), 2)) for o in opinions]
    (model,) = aggregate([Comparisons("Why?", answers, of) for of in verdicts], "bt")
    score = {answer["text"]: value for answer, value in zip(model.responses, model.scores, strict=True)}
    found = ranks_of(merged("mean", *map(ranked, opinions)))
    for one, other in combinations(found, 2):
        assert np.sign(round(score[one] - score[other], 4)) == np.sign(found[other] - found[one])


def test_for_two_answers_both_methods_count_the_same_votes():
    said = [opinion("a>b"), opinion("b>a"), opinion("b>a"), opinion("a=b")]
    assert {order_of(merged(how, *said)) for how in METHODS} == {"b>a"}


@often
@given(OPINIONS.map(lambda opinions: opinions[0]), st.integers(2, 4), st.sampled_from(METHODS))
def test_equal_opinions_give_their_own_order(ranks, times, how):
    (record,) = merge([ranked([3 * rank for rank in ranks])] * times, how)
    assert [r.rank for r in record.responses] == rankdata(ranks, method="dense").tolist()


@often
@given(st.data(), OPINIONS, st.sampled_from(METHODS))
def test_neither_the_order_of_opinions_nor_that_of_answers_matters(data, opinions, how):
    weights = data.draw(st.lists(st.sampled_from([None, 0.1, 0.2, 0.3, 2.0]), min_size=6, max_size=6))
    records = [ranked(o, weight=w, margin=w, labeler=f"l{w}") for o, w in zip(opinions, weights, strict=False)]
    turned = [
        record.model_copy(update={"responses": tuple(data.draw(st.permutations(record.responses)))})
        for record in data.draw(st.permutations(records))
    ]
    (one,), (other,) = merge(records, how), merge(turned, how)
    assert ranks_of(one) == ranks_of(other)
    assert [r.text for r in other.responses] == [r.text for r in turned[0].responses]
    kept = {"weight", "margin", "labeler", "meta"}
    assert one.model_dump(include=kept) == other.model_dump(include=kept)


@often
@given(OPINIONS, st.sampled_from(METHODS))
def test_turning_all_opinions_round_turns_the_result_round(opinions, how):
    found = merged(how, *map(ranked, opinions))
    turned = merged(how, *(ranked([10 - rank for rank in o]) for o in opinions))
    last = max(ranks_of(found).values())
    assert ranks_of(turned) == {text: last + 1 - rank for text, rank in ranks_of(found).items()}


# ---- weights and margins ----


def test_an_opinion_counts_by_its_weight_and_the_result_has_the_mean_of_the_weights():
    for how in METHODS:
        record = merged(how, opinion("a>b", weight=3), opinion("b>a"), opinion("b>a", weight=0.5))
        assert (order_of(record), record.weight) == ("a>b", 1.5)
        even = merged(how, opinion("a>b", weight=0.1), opinion("a>b", weight=0.2), opinion("b>a", weight=0.3))
        assert order_of(even) == "a=b"  # as it was written, though 0.1 + 0.2 > 0.3 in binary
        assert merged(how, opinion("a>b"), opinion("b>a"), opinion("b>a")).weight is None
    huge = merged("mean", opinion("a>b", weight=1e300), opinion("b>a", weight=1e-300))
    assert order_of(huge) == "a>b"


def test_the_margin_is_the_mean_of_those_given():
    assert merged("mean", opinion("a>b", margin=1), opinion("a>b", margin=0), opinion("a>b")).margin == 0.5
    assert merged("mean", opinion("a>b"), opinion("a>b")).margin is None


@often
@given(OPINIONS, st.data())
def test_a_weight_of_two_is_the_opinion_twice(opinions, data):
    times = data.draw(st.lists(st.integers(1, 3), min_size=len(opinions), max_size=len(opinions)))
    for how in METHODS:
        weighed = [ranked(o, weight=n) for o, n in zip(opinions, times, strict=True)]
        repeated = [ranked(o) for o, n in zip(opinions, times, strict=True) for _ in range(n)]
        assert ranks_of(merged(how, *weighed)) == ranks_of(merged(how, *repeated))
    assert merged("mean", *weighed).weight == pytest.approx(float(Fraction(sum(times), len(times))))


# ---- what belongs together, and what becomes of the rest ----


def test_rankings_stay_as_they_are_where_nothing_is_to_be_merged():
    said = [opinion("a>b", "anna"), opinion("a>b>c", "bo"), opinion("a>b", "bo", prompt="Else?"), opinion("a>c")]
    for how in ("keep", *METHODS):
        found = merge(said, how)
        assert all(one is other for one, other in zip(found, said, strict=True))
    twice = [opinion("a>b", "anna"), opinion("b>a", "bo")]
    assert merge(twice, "keep") == twice and merge(twice, "keep") is not twice
    assert merge([], "mean") == []


def test_groups_come_in_the_order_of_their_first_ranking():
    said = [
        opinion("a>b", "anna", prompt="1"),
        opinion("x>y", "anna", prompt="2"),
        opinion("b>a", "bo", prompt=[{"role": "user", "content": "1"}]),
        opinion("a>b>c", "bo", prompt="1"),
        opinion("y>x", "bo", prompt="2"),
        opinion("b>a", "cy", prompt="1"),
    ]
    found = merge(said, "majority")
    assert [(record.prompt, order_of(record)) for record in found] == [("1", "b>a"), ("2", "x=y"), ("1", "a>b>c")]
    assert [record.meta.get("labelers") for record in found] == [["anna", "bo", "cy"], ["anna", "bo"], None]
    assert [record.labeler for record in found] == [None, None, "bo"]
    assert found[1].pairs == ()  # kept, for whoever counts


def test_an_answer_that_was_cut_off_is_another_answer():
    whole = opinion("a>b")
    cut = Ranking.model_validate(
        {**whole.model_dump(), "responses": [{"text": "a", "rank": 2}, {"text": "b", "rank": 1, "ended": False}]}
    )
    assert merge([whole, cut], "mean") == [whole, cut]
    (both,) = merge([cut, cut], "mean")
    assert {r.text: r.ended for r in both.responses} == {"a": True, "b": False}
    said = [
        {
            "prompt": "Why?",
            "responses": [{"text": "a", "rank": whole}, {"text": "a", "rank": 3 - whole, "ended": False}],
        }
        for whole in (2, 1, 1)
    ]
    (both,) = merge([parse(row, "ranking") for row in said], "mean")
    assert [(r.ended, r.rank) for r in both.responses] == [(True, 1), (False, 2)]


def test_the_same_text_twice_in_a_ranking_is_two_answers():
    record = merged("mean", opinion("a=a>b"), opinion("b>a=a"), opinion("a=a>b"))
    assert [(r.text, r.rank) for r in record.responses] == [("a", 1), ("a", 1), ("b", 2)]
    assert len(merge([opinion("a=a>b"), opinion("a>b=b")], "mean")) == 2


def test_what_all_say_of_an_answer_is_kept():
    def said(rank, labeler, **marks):
        answers = [{"text": "a", "rank": rank, **marks}, {"text": "b", "rank": 3 - rank}]
        fields = {"category": "chat", "user_id": labeler, "id": labeler, "meta": {"x": 1}}
        return parse({"prompt": "Why?", "responses": answers, "labeler": labeler, **fields}, "ranking")

    first = said(1, "anna", source="sft", overall=4, flags={"hallucination": True, "harmful_advice": False})
    other = said(1, "bo", source="sft", overall=5, flags={"hallucination": True, "harmful_advice": True})
    record = merged("mean", first, other, said(1, "cy"))
    answer, empty = record.responses
    assert (answer.source, answer.overall, answer.flags) == ("sft", None, Flags(hallucination=True))
    assert (empty.source, empty.overall, empty.flags, empty.axes) == (None, None, None, None)
    assert (record.category, record.user_id, record.id, record.labeler) == ("chat", None, None, None)
    assert record.meta == {"labelers": ["anna", "bo", "cy"], "opinions": 3}


@pytest.mark.parametrize("how", METHODS)
def test_axes_are_merged_where_every_opinion_has_them_for_every_answer(how):
    def said(helpful, truthful):
        both = zip("abc", helpful, truthful, strict=True)
        answers = [{"text": t, "rank": 1, "axes": {"helpful": h} | ({"truthful": v} if v else {})} for t, h, v in both]
        return parse({"prompt": "Why?", "responses": answers}, "ranking")

    record = merged(how, said([1, 5, 9], [1, 1, 1]), said([9, 5, 7], [2, 1, 0]), said([1, 2, 2], [1, 2, 3]))
    helpful = [ranked([1, 5, 9]), ranked([9, 5, 7]), ranked([1, 2, 2])]
    expected = [r.rank for r in merged(how, *helpful).responses]
    assert [r.axes for r in record.responses] == [{"helpful": rank} for rank in expected]
    assert {r.rank for r in record.responses} == {1}


# ---- folds over labelers ----


def opinions_by(**sizes):
    return [opinion("a>b", name, prompt=f"{name} {i}") for name, size in sizes.items() for i in range(size)]


def test_each_named_labeler_is_held_out_once_and_the_parts_are_even():
    rankings = [
        *opinions_by(a=50, b=30, c=20, d=20, e=10, f=5, g=5),
        *[opinion("a>b", prompt=str(i)) for i in range(40)],
    ]
    parts = folds(rankings, 3, seed=0)
    assert Counter(name for part in parts for name in part) == Counter("abcdefg")
    sizes = Counter(record.labeler for record in rankings)
    totals = sorted(sum(sizes[name] for name in part) for part in parts)
    assert totals == [45, 45, 50]  # 50 | 30 + 10 + 5 | 20 + 20 + 5
    assert folds(rankings[::-1], 3, seed=0) == parts


def test_the_seed_decides_between_labelers_of_one_size():
    rankings = opinions_by(**{f"l{i}": 3 for i in range(10)})
    found = [folds(rankings, 5, seed) for seed in range(6)]
    assert all(sorted(map(len, parts)) == [2] * 5 for parts in found)
    assert len({tuple(parts) for parts in found}) > 3
    assert found[2] == folds(rankings, 5, 2) == folds(rankings[::-1], 5, 2)


@often
@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 6), min_size=2), st.integers(2, 8), st.integers(0, 9)
)
def test_no_part_is_empty_and_none_is_larger_than_need_be(sizes, k, seed):
    rankings = opinions_by(**sizes)
    if len(sizes) < k:
        with pytest.raises(DataError, match=f"{len(sizes)} named in {len(rankings)} rankings, .* for {k} parts"):
            folds(rankings, k, seed)
        return
    parts = folds(rankings, k, seed)
    assert len(parts) == k and all(parts) and sorted(name for part in parts for name in part) == sorted(sizes)
    totals = [sum(sizes[name] for name in part) for part in parts]
    # the last labeler that the largest part got made it no more than that labeler larger than the smallest
    assert max(totals) - min(totals) <= max(sizes.values())


def test_too_few_named_labelers_is_one_clear_line():
    rankings = [*opinions_by(anna=2, bo=1), opinion("a>b")]
    with pytest.raises(DataError) as caught:
        folds(rankings, 5, seed=0)
    assert str(caught.value) == (
        "data.rankings: labeler: 2 named in 4 rankings, which is too few for 5 parts; "
        "name the labelers, or lower reward.labeler_folds"
    )
