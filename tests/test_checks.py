"""What is wrong in a row whose fields are right, and what only shows between rows: against double loops."""

import json
import random
import re
from collections import Counter
from itertools import combinations, permutations

import pytest
from datafiles import USER, ranking
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_kit.checks.bias import WinCounter
from rlhf_kit.checks.labelers import Opinions, dense
from rlhf_kit.checks.ledger import Ledger, content_of, prompt_of
from rlhf_kit.checks.quick import reader_of
from rlhf_kit.checks.row import is_plain, is_suspect, problems_in, ranking_problems, token_pattern
from rlhf_kit.parsing import parse
from rlhf_kit.records import Prompt, Text

QUIET = settings(max_examples=300, deadline=None)


def ranked(*ranks, texts=None, **fields):
    texts = texts or [f"answer {i}" for i in range(len(ranks))]
    responses = [{"text": text, "rank": rank} for text, rank in zip(texts, ranks, strict=True)]
    return parse({"prompt": "Why?", "responses": responses, **fields}, "ranking")


def codes(record, **options):
    return [(problem.code, problem.field) for problem in problems_in(record, "f:1", **options)]


# ---- texts ----

TOKENS = [
    "<|im_start|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<｜end▁of▁sentence｜>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<extra_id_1>",
]
NO_TOKENS = [
    "a < b > c",
    "<b>bold</b>",
    "<S>",
    "[inst]",
    "<|>",
    "<| a |>",
    "x|y|z",
    "<strike>",
    "<extra_id_>",
    "f(x)<|y|",
]


@pytest.mark.parametrize("token", TOKENS)
def test_a_control_token_is_found_in_every_text_that_a_model_reads(token):
    text = f"before{token}after"
    dirty = {
        "demonstration": ({"prompt": "a", "completion": text}, "completion"),
        "ranking": ({"prompt": "a", "responses": ["x", text], "ranks": [1, 2]}, "responses.1.text"),
        "prompt": ({"prompt": [USER, {"role": "assistant", "content": text}, USER]}, "prompt.1.content"),
        "rating": ({"prompt": "a", "response": text, "thumb": True}, "response"),
        "text": ({"text": text}, "text"),
    }
    for kind, (row, field) in dirty.items():
        record = parse(row, kind)
        assert codes(record) == [("special-token", field)]
        assert is_suspect(json.dumps(row, ensure_ascii=False).encode())
    assert codes(parse({"prompt": "a", "labeler": text, "meta": {"x": text}}, "prompt")) == []


@pytest.mark.parametrize("text", NO_TOKENS)
def test_what_only_looks_like_a_control_token(text):
    assert codes(Text(text=text)) == []


def test_the_tokens_of_a_model_of_ones_own():
    pattern = token_pattern(["[SEP]", "<a>", " ", "[SEP]X"])
    found = {text: (match := pattern.search(text)) and match[0] for text in ("[SEP]", "[SEP]X", "<a>", "a b", "<|x|>")}
    assert found == {"[SEP]": "[SEP]", "[SEP]X": "[SEP]X", "<a>": "<a>", "a b": None, "<|x|>": "<|x|>"}
    assert codes(Text(text="a [SEP] b"), tokens=pattern) == [("special-token", "text")]


def test_control_characters_and_carriage_returns():
    allowed = {"\t", "\n"}
    for character in map(chr, range(0x20)):
        expected = [("carriage-return", "text")] if character == "\r" else [("control-character", "text")]
        assert codes(Text(text=f"a{character}b")) == ([] if character in allowed else expected)
    assert codes(Text(text="a\x7fb")) == [("control-character", "text")]
    assert codes(Text(text="a\x80\x85\u2028\ufeffb")) == []


@QUIET
@given(
    st.text(st.sampled_from([*'<|>s/[]INSTbo \n\r\t\x00\x7f\u2028｜\\"u03ce', "é"]), min_size=1, max_size=12),
    st.booleans(),
)
def test_no_row_with_a_finding_passes_the_look_at_its_bytes(text, plain):
    """Whatever a text holds and however it is escaped: without a look closer, there would be no finding."""
    if not text.strip():
        return
    raw = json.dumps({"text": text}, ensure_ascii=not plain).encode()
    for form in (raw, raw.replace(b"<", b"\\u003c"), raw.replace(b"/", b"\\/"), raw.replace(b"I", b"\\u0049")):
        record = reader_of(Text)(form)
        if record is not None and not is_suspect(form):
            assert codes(record) == []


# ---- ranks and responses of one row ----


@QUIET
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), min_size=2, max_size=6))
def test_the_findings_of_a_ranking_against_a_double_loop(answers):
    record = ranked(*[rank for _, rank in answers], texts=[text for text, _ in answers])
    expected = Counter()
    for later in range(len(answers)):
        earlier = next((i for i in range(later) if answers[i][0] == answers[later][0]), None)
        if earlier is not None:
            same = answers[earlier][1] == answers[later][1]
            expected["repeated-response" if same else "twin-responses", f"responses.{later}.text"] += 1
    if not any(a[1] != b[1] for a, b in combinations(answers, 2)):
        expected["no-pair", "responses"] += 1
    problems = ranking_problems(record, "f:1")
    assert Counter((problem.code, problem.field) for problem in problems) == expected
    assert is_plain(record) == (not expected)


# ---- between rows ----

RATED = {"prompt": "a", "response": "b", "score": 1}
PEOPLE = [None, "anna", "ben"]
rows_of_few = st.lists(
    st.tuples(
        st.sampled_from(["p", "q"]),
        st.sampled_from(PEOPLE),
        st.permutations(["a", "b", "c"]),
        st.lists(st.sampled_from([1, 2, 3, 9]), min_size=3, max_size=3),
        st.sampled_from([None, "", "x", "y"]),
    ),
    max_size=12,
)


def order_of(texts, ranks):
    """The comparisons that ranks say: for each pair of texts, which one is better."""
    rank = dict(zip(texts, ranks, strict=True))
    return {(a, b): (rank[a] > rank[b]) - (rank[a] < rank[b]) for a, b in combinations(sorted(texts), 2)}


@QUIET
@given(rows_of_few)
def test_duplicates_and_contradictions_against_a_double_loop(rows):
    ledger, expected = Ledger(), Counter()
    for index, (prompt, labeler, texts, ranks, id) in enumerate(rows):
        ledger.add(ranked(*ranks, texts=texts, prompt=prompt, labeler=labeler, id=id), "f:", index + 1)
        if any(id is not None and id == before[4] for before in rows[:index]):
            expected[f"f:{index + 1}", "duplicate-id"] += 1
        same = [before for before in rows[:index] if before[0] == prompt and before[1] == labeler]
        if same:
            twin = order_of(same[0][2], same[0][3]) == order_of(texts, ranks)
            expected[f"f:{index + 1}", "duplicate-row" if twin else "contradiction"] += 1
    found = Counter((problem.where, problem.code) for problem in ledger.problems())
    assert found == expected


def test_several_labelers_of_one_prompt_are_opinions():
    ledger = Ledger()
    for number, labeler in enumerate(["anna", "ben", "carl"], 1):
        ledger.add(ranked(1, 2, labeler=labeler), "f:", number)
    assert list(ledger.problems()) == []


@pytest.mark.parametrize(
    ("kind", "row", "other"),
    [
        ("prompt", {"prompt": "a"}, {"prompt": "b"}),
        ("demonstration", {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "c"}),
        ("rating", RATED, {**RATED, "score": 2}),
        ("rating", RATED, {**RATED, "axis": "x"}),
        ("rating", RATED, {**RATED, "labeler": "x"}),
        ("text", {"text": "a"}, {"text": "a "}),
        ("ranking", ranking(1, 2), ranking(1, 2, prompt="Who?")),
        ("ranking", ranking(1, 2), ranking(1, 2, labeler="x")),
        ("ranking", ranking(1, 2), ranking(1, 2, 3)),
    ],
)
def test_the_same_content_twice(kind, row, other):
    first, second = parse({**row, "meta": {"x": 1}}, kind), parse(row, kind)
    for ledger, rows in ((Ledger(), [first, second]), (Ledger(), [first, parse(other, kind)])):
        for number, record in enumerate(rows, 1):
            ledger.add(record, "f:", number)
        found = [(problem.where, problem.code) for problem in ledger.problems()]
        assert found == ([("f:2", "duplicate-row")] if rows[1] is second else [])


def test_a_text_and_a_conversation_of_one_turn_are_the_same_prompt():
    messages = Prompt(prompt=[USER])
    assert prompt_of(messages) == prompt_of(Prompt(prompt=USER["content"]))
    assert prompt_of(messages) != prompt_of(parse({"prompt": [{"role": "system", "content": "x"}, USER]}, "prompt"))
    assert content_of(ranked(1, 2)) == content_of(ranked(2, 1)), "the ranks are not what was compared"


def test_findings_name_the_file_that_their_row_stands_in():
    ledger = Ledger()
    for place, number, id in [("a#", 0, "x"), ("b:", 1, "y"), ("b:", 2, "x"), ("c#", 0, "y"), ("a#", 1, "y")]:
        ledger.add(Text(text=f"{place}{number}", id=id), place, number)
    found = [(problem.where, re.search(r"of (\S+);", problem.reason)[1]) for problem in ledger.problems()]
    assert sorted(found) == [("a#1", "b:1"), ("b:2", "a#0"), ("c#0", "b:1")]


def test_leaks_are_the_prompts_that_both_have():
    chance = random.Random(1)
    training, heldout = Ledger(keep_prompts=True), Ledger(keep_prompts=True)
    trained = [str(chance.randrange(300)) for _ in range(200)]
    asked = [str(chance.randrange(300)) for _ in range(100)]
    for number, name in enumerate(trained):
        training.add(Prompt(prompt=name), "train#", number)
    for number, name in enumerate(asked):
        heldout.add(ranked(1, 2, prompt=name), "held#", number)
    leaks = {problem.where: problem.reason for problem in heldout.leaks_from(training)}
    assert list(leaks) == [f"held#{i}" for i, name in enumerate(asked) if name in trained]
    for where, reason in leaks.items():
        assert trained[int(re.search(r"train#(\d+)", reason)[1])] == asked[int(where[5:])]


def test_one_weight_for_each_source():
    ledger = Ledger()
    for number, (source, weight) in enumerate(
        [("a", 1), ("b", 2), ("a", 1.0), ("a", 3), (None, 5), (None, 6), ("b", None)]
    ):
        ledger.add(Text(text=str(number), source=source, weight=weight), "f#", number)
    assert [(p.where, p.field, p.code) for p in ledger.problems()] == [
        ("f#3", "weight", "weight-varies"),
        ("f#6", "weight", "weight-varies"),
    ]


def test_a_ledger_keeps_few_bytes_a_row():
    """At most 64 bytes for each further row, as arrays double their room."""
    import tracemalloc

    records = [ranked(1, 2, 3, 4, prompt=f"p{i}", labeler="x") for i in range(2)]
    ledger = Ledger()
    for number in range(5000):
        ledger.add(records[number % 2], "f:", number)
    tracemalloc.start()
    for number in range(5000, 65_000):
        ledger.add(records[number % 2], "f:", number)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / 60_000 < 64


# ---- the labels as a whole ----


@QUIET
@given(
    st.lists(
        st.tuples(
            st.integers(2, 4).flatmap(
                lambda k: st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=k, max_size=k)
            ),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_wins_of_the_longer_and_of_the_first_against_a_double_loop(rankings):
    counter, longer, first, pairs, ties = WinCounter(), [0, 0], [0, 0], 0, 0
    for answers, sided in rankings:
        record = ranked(*[r for _, r in answers], texts=["x" * length for length, _ in answers])
        counter.add([one.text for one in record.responses], [one.rank for one in record.responses], sided)
        for i, j in combinations(range(len(answers)), 2):
            (length, rank), (other_length, other_rank) = answers[i], answers[j]
            ties += rank == other_rank
            pairs += rank != other_rank
            if rank == other_rank:
                continue
            if length != other_length:
                longer[1] += 1
                longer[0] += (length > other_length) == (rank < other_rank)
            if not sided:
                first[1] += 1
                first[0] += rank < other_rank
    assert [counter.longer.wins, counter.longer.pairs] == longer
    assert [counter.first.wins, counter.first.pairs] == first
    assert (counter.pairs, counter.ties) == (pairs, ties)


def test_wins_are_counted_over_many_rows_and_with_ranks_of_any_size():
    counter = WinCounter()
    for number in range(10_000):
        counter.add(["xx", "x"], [1, 10**30 if number % 2 else 2], False)
    assert (counter.longer.wins, counter.longer.pairs, counter.pairs, counter.ties) == (10_000, 10_000, 10_000, 0)


def biased(pairs, wins, length=True):
    """A ledger of pairs of which so many are won by the longer, or by the first, one."""
    ledger = Ledger()
    for number in range(pairs):
        ranks = (1, 2) if number < wins else (2, 1)
        texts = [f"{number:04}" + "x" * length, f"{number:04}"]
        if length and number % 2:
            texts, ranks = texts[::-1], ranks[::-1]
        ledger.add(ranked(*ranks, texts=[texts[0] + "a", texts[1] + "b"], prompt=str(number)), "f:", number + 1)
    return {problem.code: problem.reason for problem in ledger.problems()}


@pytest.mark.parametrize(("length", "code"), [(True, "length-bias"), (False, "position-bias")])
def test_bias_is_told_from_75_percent_of_100_pairs(length, code):
    assert biased(99, 99 if length else 98, length) == {}
    assert biased(100, 74, length) == {}
    assert biased(100, 26, length) == {}
    assert "75% of 100 pairs" in biased(100, 75, length)[code] and "turned round" not in biased(100, 75, length)[code]
    assert "75% of 100 pairs" in biased(100, 25, length)[code]
    assert ("turned round" in biased(100, 25, length)[code]) == length


def test_rows_that_are_all_sorted_say_nothing_about_places():
    assert list(biased(100, 100, length=False)) == ["sorted-by-rank"]
    assert list(biased(100, 99, length=False)) == ["position-bias"]


# ---- labelers ----


@QUIET
@given(st.lists(st.integers(1, 10**20), min_size=1, max_size=64))
def test_dense_ranks_keep_the_order_without_gaps(ranks):
    result = dense(ranks)
    assert set(result) == set(range(1, len(set(ranks)) + 1))
    assert all((a < b) == (c < d) for (a, c), (b, d) in permutations(zip(ranks, result, strict=True), 2))


@QUIET
@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(1, 4), min_size=4, max_size=4)), max_size=10))
def test_agreement_of_labelers_against_a_double_loop(opinions):
    names = ["anna", "ben", "carl", "dora"]
    kept, seen = Opinions(), {}
    for person, ranks in opinions:
        if person not in seen:
            kept.add(names[person], ranks)
            seen[person] = ranks
    kept.compare(range(len(kept)))
    expected = {}
    for one, other in permutations(seen, 2):
        counts = expected.setdefault(hash(names[one]) & 0xFFFFFFFF, [0, 0])
        for i, j in combinations(range(4), 2):
            mine, theirs = seen[one][i] - seen[one][j], seen[other][i] - seen[other][j]
            if mine and theirs:
                counts[0] += (mine > 0) == (theirs > 0)
                counts[1] += 1
    assert {name: counts for name, counts in kept._pairs.items() if counts[1]} == {
        name: counts for name, counts in expected.items() if counts[1]
    }


def three_labelers(prompts, turned):
    ledger = Ledger()
    for number in range(prompts):
        for place, person in enumerate(("anna", "ben", "carl")):
            ranks = (2, 1) if (number + (person == "carl" and number < turned)) % 2 else (1, 2)
            ledger.add(ranked(*ranks, prompt=f"p{number}", labeler=person), "f:", number * 3 + place + 1)
    return [(problem.code, problem.field, problem.reason) for problem in ledger.problems()]


def test_a_labeler_whose_ranks_are_turned_round():
    """Three people on ten prompts of one pair: carl against anna and ben makes twenty shared pairs of his."""
    assert three_labelers(10, 0) == []
    assert three_labelers(10, 10) == [
        ("labeler-contradicts", "labeler", "'carl' orders 20 of 20 shared pairs against the other labelers; "
         "are that person's ranks turned round? 1 is the best"),
    ]  # fmt: skip
    assert three_labelers(10, 5) == [], "half of them may be chance"
    assert len(three_labelers(10, 6)) == 1
    assert three_labelers(9, 9) == [], "18 pairs are too few to say so"
