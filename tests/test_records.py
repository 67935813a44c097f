"""What is a record and what is not, and how TRL's shapes become records."""

import pickle

import pytest
from pydantic import ValidationError

import rlhf_kit
from rlhf_kit import records
from rlhf_kit.errors import DataError, InputError, Problem, RlhfKitError
from rlhf_kit.parsing import adapt, parse
from rlhf_kit.records import (
    Demonstration,
    Flags,
    Message,
    Prompt,
    Ranking,
    Rating,
    Response,
    Text,
    joined_sources,
    sources_of,
)

USER = {"role": "user", "content": "Why?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "Because."}


def said(row, kind="ranking"):
    with pytest.raises(DataError) as caught:
        parse(row, kind, "f:1")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("f:1: ") for line in lines)
    return [line.removeprefix("f:1: ") for line in lines]


def ranking(*ranks, **fields):
    responses = [{"text": f"answer {i}", "rank": rank} for i, rank in enumerate(ranks)]
    return {"prompt": "Why?", "responses": responses, **fields}


def test_each_kind_is_read():
    assert parse({"prompt": "a", "completion": "b", "labeler": "c"}, "demonstration") == Demonstration(
        prompt="a", completion="b", labeler="c"
    )
    assert parse({"prompt": [SYSTEM, USER]}, "prompt") == Prompt(prompt=(Message(**SYSTEM), Message(**USER)))
    assert parse({"text": "a"}, "text") == Text(text="a", source=None, weight=None)
    assert parse({"text": "a", "source": "b", "weight": 2}, "text").weight == 2.0
    rated = parse({"prompt": "a", "response": "b", "score": 4, "scale": [1, 5], "axis": "helpful"}, "rating")
    assert rated == Rating(prompt="a", response="b", score=4.0, scale=(1.0, 5.0), axis="helpful")
    assert parse({"prompt": "a", "response": "b", "thumb": False}, "rating").thumb is False
    assert parse(ranking(1, 2, meta={"x": [1]}), "ranking") == Ranking(
        prompt="Why?",
        responses=(Response(text="answer 0", rank=1), Response(text="answer 1", rank=2)),
        meta={"x": [1]},
    )


def test_records_are_frozen():
    with pytest.raises(ValidationError):
        Text(text="a").text = "b"


def test_what_was_said_about_a_response_is_kept():
    marks = {"overall": 2, "flags": {"hallucination": True}, "axes": {"helpful": 1, "truthful": 3}, "ended": False}
    row = ranking(1, 2, user_id="u1", category="open_qa", labeler="anna", id="7")
    row["responses"][0] |= {**marks, "source": "sft"}
    record = parse(row, "ranking")
    assert record.responses[0] == Response(
        text="answer 0",
        rank=1,
        source="sft",
        ended=False,
        overall=2,
        flags=Flags(hallucination=True),
        axes={"helpful": 1, "truthful": 3},
    )
    assert record.responses[1].ended and record.responses[1].flags is None
    assert (record.user_id, record.category, record.labeler, record.id) == ("u1", "open_qa", "anna", "7")


def test_a_ranking_tells_what_it_counts_and_by_how_much_scores_should_differ():
    for row in (ranking(1, 2), {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]}):
        record = parse({**row, "weight": 2, "margin": 0}, "ranking")
        assert (record.weight, record.margin, record.meta) == (2.0, 0.0, {})
        assert parse(row, "ranking").weight is parse(row, "ranking").margin is None
        assert said({**row, "weight": 0, "margin": -1}) == [
            "weight: must be greater than 0, not 0",
            "margin: must be at least 0, not -1",
        ]
        assert said({**row, "weight": float("inf"), "margin": "1"}) == [
            "weight: must be a finite number, not Infinity",
            'margin: must be a number, not "1"; write it without quotes',
        ]


def test_a_prompt_tells_where_it_comes_from():
    where_from = {"kind": "few_shot", "origin": "user", "user_id": "u1", "category": "chat", "labeler": "anna"}
    for kind, answer in (("prompt", {}), ("demonstration", {"completion": "b"})):
        row = {"prompt": "a", **answer, **where_from, "id": "1", "meta": {"x": None}}
        assert parse(row, kind).model_dump(exclude_unset=True) == row


def test_the_records_are_exported_lazily():
    inner = {"SCHEMAS", "Conversation", "ParallelRanking", "Record", "joined_sources", "prompt_name", "sources_of"}
    assert set(records.__all__) - inner <= set(rlhf_kit.__all__)
    for name in rlhf_kit.__all__:
        if name in records.__all__:
            assert getattr(rlhf_kit, name) is getattr(records, name)


@pytest.mark.parametrize(
    ("ranks", "pairs"),
    [
        ((1, 2), {(0, 1)}),
        ((2, 1), {(1, 0)}),
        ((1, 1), set()),
        ((3, 1, 2), {(1, 0), (1, 2), (2, 0)}),
        ((1, 1, 2), {(0, 2), (1, 2)}),
        ((10, 9, 2), {(2, 0), (2, 1), (1, 0)}),  # as numbers: as texts, "10" would come before "9"
    ],
)
def test_pairs_are_those_of_the_ranks(ranks, pairs):
    found = parse(ranking(*ranks), "ranking").pairs
    assert set(found) == pairs
    assert len(found) == len(pairs)


@pytest.mark.parametrize(
    ("rank", "reason"),
    [
        (0, "must be at least 1, not 0"),
        (-3, "must be at least 1, not -3"),
        (True, "must be a whole number, not true"),
        (1.0, "must be a whole number, not 1.0"),
        (1.5, "must be a whole number, not 1.5"),
        ("1", 'must be a whole number, not "1"; write it without quotes'),
        ("best", 'must be a whole number, not "best"'),
        ([1], "must be a whole number, not a list"),
        (None, "null; give each response a rank, 1 = best"),
    ],
)
def test_a_rank_is_a_whole_number_from_one(rank, reason):
    assert said(ranking(1, 2, rank)) == [f"responses.2.rank: {reason}"]


def test_all_mistakes_of_a_row_at_once():
    row = ranking(1, 2, 3, labler="anna", id=7)
    del row["responses"][0]["rank"]
    row["responses"][1]["text"] = " \n"
    row["responses"][2]["ranks"] = [3]
    assert said(row) == [
        "responses.0.rank: missing; give each response a rank, 1 = best",
        "responses.1.text: empty; a text is needed",
        "responses.2.ranks: unknown key; did you mean 'rank'?",
        "id: must be a text, not 7; put it in quotes",
        "labler: unknown key; did you mean 'labeler'?",
    ]


@pytest.mark.parametrize(
    ("row", "lines"),
    [
        (ranking(1), ["responses: 1 given, at least 2 needed; a ranking compares 2 to 64 answers"]),
        (ranking(*[1] * 65), ["responses: 65 given, at most 64 allowed; a ranking compares 2 to 64 answers"]),
        ({"prompt": "a"}, ["responses: missing; a ranking compares 2 to 64 answers"]),
        ({"prompt": "a", "responses": None}, ["responses: null; a ranking compares 2 to 64 answers"]),
        (
            {"prompt": "a", "responses": ["x", "y"]},
            [f'responses.{i}: must be a mapping, not "{t}"' for i, t in [(0, "x"), (1, "y")]],
        ),
        (ranking(1, 2, prompt=None), ["prompt: must be a text or a list of messages"]),
        (ranking(1, 2, prompt=" "), ["prompt: empty; a text is needed"]),
        (ranking(1, 2, meta=None), ["meta: null; a mapping is needed"]),
    ],
)
def test_rankings_that_are_none(row, lines):
    assert said(row) == lines


def test_a_list_is_not_called_too_short_for_its_wrong_items():
    assert said(ranking("x", "y")) == [
        f'responses.{i}.rank: must be a whole number, not "{r}"' for i, r in enumerate("xy")
    ]


@pytest.mark.parametrize("turns", [[USER], [SYSTEM, USER], [USER, ANSWER, USER], [SYSTEM, USER, ANSWER, USER]])
def test_conversations(turns):
    assert parse({"prompt": turns}, "prompt").prompt == tuple(Message(**turn) for turn in turns)


@pytest.mark.parametrize(
    ("turns", "line"),
    [
        ([], "prompt: must end with a user turn, which is what the model answers"),
        ([SYSTEM], "prompt: must end with a user turn, which is what the model answers"),
        ([USER, ANSWER], "prompt: must end with a user turn, which is what the model answers"),
        ([ANSWER, USER], "prompt.0.role: must be 'user', not 'assistant'"),
        ([USER, USER], "prompt.1.role: must be 'assistant', not 'user'"),
        ([USER, SYSTEM, USER], "prompt.1.role: must be 'assistant', not 'system'"),
        ([SYSTEM, SYSTEM, USER], "prompt.1.role: must be 'user', not 'system'"),
        ([{**USER, "role": "human"}], "prompt.0.role: must be 'system', 'user' or 'assistant', not \"human\""),
        ([{**USER, "content": ""}], "prompt.0.content: empty; a text is needed"),
        ([{**USER, "content": None}], "prompt.0.content: null; a text is needed"),
        ([{**USER, "name": "x"}], "prompt.0.name: unknown key; known are role, content"),
    ],
)
def test_conversations_that_are_none(turns, line):
    (found,) = said({"prompt": turns}, "prompt")
    assert found.partition(": a system turn")[0] == line


def test_half_a_surrogate_pair_is_no_text():
    assert said({"text": "\ud800"}, "text") == [
        "text: holds half of a surrogate pair, which no text can; write the character itself"
    ]


def test_bytes_are_no_text():
    (line,) = said({"text": b"abc"}, "text")
    assert line.startswith("text: must be a text, not ")


# ---- TRL's shapes ----


def test_messages_become_prompt_and_completion():
    row = {"messages": [SYSTEM, USER, ANSWER], "id": "1", "num_turns": 1}
    assert adapt(row, "demonstration") == {
        "prompt": [SYSTEM, USER],
        "completion": "Because.",
        "id": "1",
        "meta": {"num_turns": 1},
    }
    row = {"messages": [USER, ANSWER], "kind": "plain", "origin": "user", "user_id": "u1", "meta": {"x": 1}, "y": 2}
    assert parse(row, "demonstration") == Demonstration(
        prompt=(Message(**USER),),
        completion="Because.",
        kind="plain",
        origin="user",
        user_id="u1",
        meta={"x": 1, "y": 2},
    )


def test_a_completion_may_be_a_list_with_one_answer():
    assert parse({"prompt": [USER], "completion": [ANSWER]}, "demonstration").completion == "Because."


def test_messages_become_a_prompt():
    assert adapt({"messages": [USER], "source": "x"}, "prompt") == {"prompt": [USER], "meta": {"source": "x"}}


def test_ranks_may_stand_in_a_list_of_their_own():
    row = {"prompt": "Why?", "responses": ["b", "a", "c"], "ranks": [2, 1, 2], "labeler": "anna", "meta": {"x": 1}}
    record = parse(row, "ranking")
    assert [(r.text, r.rank) for r in record.responses] == [("b", 2), ("a", 1), ("c", 2)]
    assert set(record.pairs) == {(1, 0), (1, 2)}
    assert (record.labeler, record.meta) == ("anna", {"x": 1})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": "Good.", "rejected": "Bad."},
        {"prompt": [USER], "chosen": [{**ANSWER, "content": "Good."}], "rejected": [{**ANSWER, "content": "Bad."}]},
        {"chosen": [USER, {**ANSWER, "content": "Good."}], "rejected": [USER, {**ANSWER, "content": "Bad."}]},
        {
            "prompt": "Why?",
            "chosen": [USER, {**ANSWER, "content": "Good."}],
            "rejected": [USER, {**ANSWER, "content": "Bad."}],
        },
    ],
)
def test_the_chosen_response_is_the_best(row):
    record = parse({**row, "score_chosen": 9.5, "labeler": "anna"}, "ranking")
    assert record.prompt == (Message(**USER),)
    assert [(r.text, r.rank) for r in record.responses] == [("Good.", 1), ("Bad.", 2)]
    assert record.pairs == ((0, 1),)
    assert record.meta == {"score_chosen": 9.5}
    assert record.labeler == "anna"


def test_the_margin_and_the_weight_of_a_pair_are_its_rankings():
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "score": 1}
    record = parse({**row, "margin": 3, "weight": 0.5}, "ranking")
    assert (record.margin, record.weight, record.meta) == (3.0, 0.5, {"score": 1})
    assert parse({**row, "margin": None}, "ranking").margin is None
    assert said({**row, "margin": -0.5}) == ["margin: must be at least 0, not -0.5"]
    assert said({**row, "weight": "x"}) == ['weight: must be a number, not "x"']


@pytest.mark.parametrize(
    ("kind", "row", "line"),
    [
        ("ranking", {"prompt": "a", "chosen": "", "rejected": "b"}, "chosen: empty; a text is needed"),
        ("ranking", {"prompt": "a", "chosen": "b"}, "rejected: missing; a pair needs both chosen and rejected"),
        ("ranking", {"chosen": "a", "rejected": "b"}, "prompt: missing; chosen and rejected hold only the answers"),
        (
            "ranking",
            {"chosen": [USER, ANSWER], "rejected": [SYSTEM, USER, ANSWER]},
            "rejected: its turns before the answer differ from those of chosen; both must answer one prompt",
        ),
        (
            "ranking",
            {"prompt": "Who?", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
            "prompt: differs from the turns before the answer in chosen; keep one of the two",
        ),
        (
            "ranking",
            {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": " "}]},
            "rejected.1.content: empty; a text is needed",
        ),
        (
            "demonstration",
            {"messages": [USER]},
            "messages: must be messages ending with the assistant's turn, which is the answer",
        ),
        (
            "demonstration",
            {"messages": [USER, {**ANSWER, "tool_calls": []}]},
            "messages.1.tool_calls: unknown key; a message has a role and a content",
        ),
        (
            "demonstration",
            {"messages": [{**USER, "content": ""}, ANSWER]},
            "messages.0.content: empty; a text is needed",
        ),
    ],
)
def test_mistakes_in_these_shapes_name_the_columns_that_the_file_has(kind, row, line):
    assert said(row, kind) == [line]


@pytest.mark.parametrize("junk", [None, 3, "x", [], [3], [None], {}, [[]], [{"role": "assistant"}], [{"role": []}]])
@pytest.mark.parametrize("column", ["messages", "completion", "chosen", "rejected", "prompt", "responses", "text"])
@pytest.mark.parametrize("kind", ["demonstration", "ranking", "prompt", "text"])
def test_junk_is_a_problem_or_a_record_but_never_a_crash(kind, column, junk):
    for rest in ({}, {"prompt": "a", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}):
        try:
            parse({**rest, column: junk}, kind)
        except DataError as error:
            assert error.problems


# ---- errors ----


def test_a_problem_leaves_out_what_it_does_not_have():
    assert str(Problem("a.jsonl:3", "id", "bad")) == "a.jsonl:3: id: bad"
    assert str(Problem("a.jsonl:3", "", "bad")) == "a.jsonl:3: bad"


def test_an_input_error_has_a_line_for_each_problem_and_survives_pickling():
    error = DataError([Problem("a", "", "b"), Problem("c", "d", "e")])
    assert isinstance(error, InputError) and isinstance(error, RlhfKitError)
    assert str(error) == "a: b\nc: d: e"
    assert pickle.loads(pickle.dumps(error)).problems == error.problems


def test_sources_are_joined_once_each_and_taken_apart():
    assert joined_sources("sft", None, "ppo", "sft + base") == "sft + ppo + base"
    assert sources_of("sft + ppo + base") == ("sft", "ppo", "base")
    assert joined_sources(None, "") is None and sources_of(None) == ()
