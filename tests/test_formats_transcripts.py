"""Converters of conversations and pairs: which way labels point, what a row becomes, what cannot be used and why.

The winners of the fixtures can be told by reading them: the good answer says something, the other does not.
"""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_kit.codes import CODES
from rlhf_kit.errors import DataError
from rlhf_kit.formats import (
    hh_rlhf,
    messages,
    nectar,
    oasst,
    shp,
    summarize_from_feedback,
    trl,
)
from rlhf_kit.formats.base import Format, Unusable
from rlhf_kit.parsing import parse_shaped
from rlhf_kit.records import Record

FIXTURES = Path(__file__).parent / "fixtures" / "formats"
MODULES = (hh_rlhf, oasst, summarize_from_feedback, shp, nectar, trl, messages)
FORMATS = [module.FORMAT for module in MODULES]


def rows_of(name: str) -> list[dict[str, Any]]:
    return rows_in(FIXTURES / f"{name}.jsonl")


def rows_in(path: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = data.decode("utf-8")
    if path.name.removesuffix(".gz").endswith(".json"):
        return list(json.loads(text))
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def outcomes(format: Format, kind: str, row: Any) -> list[Any]:
    """All that a row, or a list of rows that belong together, comes to; the source must stay as it was."""
    before = copy.deepcopy(row)
    found = list(format.to[kind]([row] if format.key and isinstance(row, dict) else row))
    assert row == before
    return found


def records(format: Format, kind: str, row: Any) -> list[Record]:
    return [parse_shaped(outcome, kind, "here") for outcome in outcomes(format, kind, row)]


def record(format: Format, kind: str, row: Any) -> Any:
    [one] = records(format, kind, row)
    return one


def rejected(format: Format, kind: str, row: Any) -> tuple[str, str]:
    """Code and field of the one reason for which a row cannot be used."""
    [outcome] = outcomes(format, kind, row)
    assert isinstance(outcome, Unusable)
    assert outcome.reason
    assert outcome.code in CODES
    return outcome.code, outcome.field


def findings(format: Format, kind: str, row: Any) -> set[tuple[str, str]]:
    """Codes and fields that the ordinary checks find in what a row becomes."""
    [outcome] = outcomes(format, kind, row)
    with pytest.raises(DataError) as error:
        parse_shaped(outcome, kind, "here")
    return {(problem.code, problem.field) for problem in error.value.problems}


def order(ranking: Any) -> list[str]:
    """The answers' texts, the best first."""
    return [response.text for response in sorted(ranking.responses, key=lambda response: response.rank)]


# ---- all formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_a_clean_fixture_becomes_records_of_every_kind_that_its_format_gives(format: Format) -> None:
    rows = rows_of(format.name)
    assert any("\u4e00" <= character <= "\u9fff" for character in json.dumps(rows, ensure_ascii=False))
    for kind in format.to:
        made = [outcome for row in rows for outcome in outcomes(format, kind, row)]
        if kind != "rating":  # those of these fixtures are comparisons
            assert len([parse_shaped(outcome, kind) for outcome in made]) >= len(rows)
    assert format.documentation.startswith("https://")


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_a_format_recognises_its_own_rows_and_no_others(format: Format) -> None:
    assert all(format.recognise(row) for row in rows_of(format.name))
    for path in sorted(FIXTURES.iterdir()):
        if path.name.split(".")[0] != format.name and path.suffix in (".json", ".jsonl", ".gz"):
            assert [row for row in rows_in(path) if format.recognise(row)] == [], path.name


@pytest.mark.parametrize("name", [format.name for format in FORMATS])
def test_nothing_of_a_row_is_lost(name: str) -> None:
    """Each value somewhere in the source stands somewhere in what it becomes, but for what only says order and role."""
    said = {"labels", "choice", "rank", "role", "type"}
    format = next(format for format in FORMATS if format.name == name)
    for row in rows_of(name):
        found = [outcome for kind in format.to for outcome in outcomes(format, kind, row)]
        made = json.dumps([outcome.row for outcome in found if not isinstance(outcome, Unusable)], ensure_ascii=False)
        for value in leaves(row, said):
            pieces = [json.dumps(value, ensure_ascii=False).strip('"')]
            if isinstance(value, str) and "\n\nHuman: " in value:  # a transcript is in its turns
                pieces = [json.dumps(turn, ensure_ascii=False).strip('"') for turn in turns_by_hand(value)]
            assert all(piece in made for piece in pieces), value


def leaves(value: Any, said: set[str]) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, said) if key not in said]
    return [leaf for inner in value for leaf in leaves(inner, said)] if isinstance(value, list) else [value]


def turns_by_hand(text: str) -> list[str]:
    return [turn for part in text.split("\n\nHuman: ")[1:] for turn in part.split("\n\nAssistant: ")]


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize("junk", [None, 3, True, "", "x", [], [None], {}, {"a": 1}, [[]], [{}]], ids=repr)
def test_junk_in_any_field_is_reported_and_never_a_traceback(format: Format, junk: Any) -> None:
    for row in rows_of(format.name):
        for field in row:
            broken = {**row, field: junk}
            format.recognise(broken)
            if format.key:
                assert hash(format.key(broken)) is not None
            for kind in format.to:
                for outcome in outcomes(format, kind, broken):
                    assert isinstance(outcome, Unusable) or parsed(outcome, kind)


def parsed(outcome: Any, kind: str) -> bool:
    try:
        parse_shaped(outcome, kind)
    except DataError as error:
        return all(problem.code in CODES for problem in error.problems)
    return True


# ---- hh-rlhf --------------------------------------------------------------------------------------------------------

H, A = "\n\nHuman: ", "\n\nAssistant: "


def hh(chosen: str, rejected: str = f"{H}Hi{A}No.", **more: Any) -> dict[str, Any]:
    return {"chosen": chosen, "rejected": rejected, **more}


def test_of_two_transcripts_chosen_is_the_better_one() -> None:
    ranking = record(hh_rlhf.FORMAT, "ranking", rows_of("hh-rlhf")[1])
    assert order(ranking) == ["Then wipe it dry and put one drop of oil on each link.", "Buy a car."]
    assert [(turn.role, turn.content) for turn in ranking.prompt] == [
        ("user", "My bike squeaks."),
        ("assistant", "Where does it squeak: at the chain or at the brakes?"),
        ("user", "At the chain.\nOnly when it rains."),
    ]
    assert record(hh_rlhf.FORMAT, "prompt", rows_of("hh-rlhf")[1]).prompt == ranking.prompt


def test_the_turns_of_a_transcript_keep_every_character() -> None:
    asked, answer = "  two\r\nlines \n\n\n", " indented,\n\n\nHuman: is no marker after text: Assistant: \t"
    row = hh(f"{H}{asked}{A}{answer.replace('Human', 'human')}", f"{H}{asked}{A}x", split="test")
    ranking = record(hh_rlhf.FORMAT, "ranking", row)
    assert ranking.prompt[0].content == asked
    assert ranking.responses[0].text == answer.replace("Human", "human")
    assert ranking.meta == {"split": "test"}


def test_only_a_marker_after_a_blank_line_begins_a_turn() -> None:
    said = "She wrote:\nHuman: be kind. Then Assistant: too"
    row = hh(f"{H}{said}{A}Yes.\nAssistant: still me", f"{H}{said}{A}No.")
    ranking = record(hh_rlhf.FORMAT, "ranking", row)
    assert [turn.content for turn in ranking.prompt] == [said]
    assert order(ranking) == ["Yes.\nAssistant: still me", "No."]


def test_carriage_returns_between_turns_are_a_blank_line_and_stay_to_be_found() -> None:
    row = hh("\r\n\r\nHuman: Hi\r\n\r\nAssistant: Yes.", "\r\n\r\nHuman: Hi\r\n\r\nAssistant: No.")
    ranking = record(hh_rlhf.FORMAT, "ranking", row)
    assert [turn.content for turn in ranking.prompt] == ["Hi\r"]
    assert order(ranking) == ["Yes.", "No."]


def test_text_before_the_first_turn_is_a_system_turn_and_a_stripped_start_is_none() -> None:
    with_system = record(hh_rlhf.FORMAT, "prompt", hh(f"Be brief.{H}Hi{A}Yes.", f"Be brief.{H}Hi{A}No."))
    assert [(turn.role, turn.content) for turn in with_system.prompt] == [("system", "Be brief."), ("user", "Hi")]
    stripped = record(hh_rlhf.FORMAT, "prompt", hh(f"Human: Hi{A}Yes.", f"Human: Hi{A}No."))
    assert [(turn.role, turn.content) for turn in stripped.prompt] == [("user", "Hi")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (hh(f"{H}Hi {A}Yes."), ("prompt-differs", "rejected")),
        (hh(f"{H}Hi{A}Yes.{H}And?{A}Well."), ("prompt-differs", "rejected")),
        (hh(f"{H}Hi{A}Yes.", f"Be brief.{H}Hi{A}No."), ("prompt-differs", "rejected")),
        (hh(f"{H}Hi"), ("no-answer", "chosen")),
        (hh(f"{H}Hi{A}Yes.", f"{H}Hi"), ("no-answer", "rejected")),
        (hh("no transcript at all"), ("no-answer", "chosen")),
        ({"chosen": f"{H}Hi{A}Yes."}, ("missing", "rejected")),
        (hh(f"{H}Hi{A}Yes.", rejected=None), ("null", "rejected")),
        (hh(["Hi"]), ("wrong-type", "chosen")),
    ],
)
def test_transcripts_that_cannot_be_compared_are_rejected(row: dict[str, Any], expected: tuple[str, str]) -> None:
    assert rejected(hh_rlhf.FORMAT, "ranking", row) == expected
    assert rejected(hh_rlhf.FORMAT, "prompt", row) == expected


def test_nothing_in_a_transcript_is_repaired() -> None:
    empty = hh(f"{H}Hi{A}")
    assert findings(hh_rlhf.FORMAT, "ranking", empty) == {("empty-text", "chosen")}
    other = hh(f"{H}Hi{A}Yes.", f"{H}Hi{A} ")
    assert findings(hh_rlhf.FORMAT, "ranking", other) == {("empty-text", "rejected")}
    twice = hh(f"{H}Hi{A}One.{A}Two.{H}And?{A}Yes.", f"{H}Hi{A}One.{A}Two.{H}And?{A}No.")
    assert findings(hh_rlhf.FORMAT, "ranking", twice) == {("role-order", "chosen.2.role")}
    same = record(hh_rlhf.FORMAT, "ranking", hh(f"{H}Hi{A}No."))
    assert [(response.text, response.rank) for response in same.responses] == [("No.", 1), ("No.", 2)]


def test_pairs_of_other_formats_are_no_transcripts() -> None:
    beside_a_prompt = hh(f"{H}Hi{A}Yes.", prompt="Hi")  # whole transcripts: as answers they would hold the prompt twice
    assert hh_rlhf.FORMAT.recognise(beside_a_prompt)
    assert trl.FORMAT.recognise(beside_a_prompt) is None
    assert record(hh_rlhf.FORMAT, "ranking", beside_a_prompt).meta == {"prompt": "Hi"}
    for row in (
        {"chosen": "Yes.", "rejected": "No."},
        {"chosen": "Human: hi", "rejected": "Human: ho"},
        {"prompt": f"{H}Hi{A}", "chosen": "Yes.", "rejected": "No."},
        {"chosen": f"{H}Hi{A}Yes.", "rejected": "No."},
        {"chosen": [{"role": "user", "content": "Hi"}], "rejected": []},
    ):
        assert hh_rlhf.FORMAT.recognise(row) is None


# ---- oasst ----------------------------------------------------------------------------------------------------------


def message(name: str, role: str = "assistant", *replies: Any, **more: Any) -> dict[str, Any]:
    return {"message_id": name, "text": f"text of {name}", "role": role, "replies": list(replies), **more}


def tree(*replies: Any, **more: Any) -> dict[str, Any]:
    return {
        "message_tree_id": "t",
        "tree_state": "ready_for_export",
        "prompt": message("p", "prompter", *replies, **more),
    }


def test_three_ranked_answers_of_a_tree_make_three_pairs_the_best_of_rank_0() -> None:
    ranking = record(oasst.FORMAT, "ranking", rows_of("oasst")[1])
    assert order(ranking) == [
        "天气转凉，叶绿素分解，原本被盖住的黄色素就显现出来。",
        "因为叶绿素变少了。",
        "因为冷。",
    ]
    assert [response.rank for response in ranking.responses] == [2, 3, 1]  # in the order of the file
    assert set(ranking.pairs) == {(2, 0), (2, 1), (0, 1)}


def test_the_whole_record_of_a_set_of_ranked_replies() -> None:
    first = tree(message("a", rank=1, lang="de"), message("b", rank=0, synthetic=True, model_name="chip"), lang="en")
    ranking = record(oasst.FORMAT, "ranking", first)
    assert ranking.model_dump(exclude_defaults=True) == {
        "prompt": ({"role": "user", "content": "text of p"},),
        "responses": (
            {"text": "text of a", "rank": 2},
            {"text": "text of b", "rank": 1, "source": "chip"},
        ),
        "id": "p",
        "meta": {
            "message_tree_id": "t",
            "tree_state": "ready_for_export",
            "lang": "en",
            "turns": [{"message_id": "p", "lang": "en"}],
            "answers": [
                {"message_id": "a", "lang": "de"},
                {"message_id": "b", "synthetic": True, "model_name": "chip"},
            ],
        },
    }


def test_the_prompt_of_a_deeper_set_is_the_whole_conversation_above_it() -> None:
    deeper = message("q", "prompter", message("c", rank=0), message("d", rank=1), user_id="u")
    row = tree(message("a", "assistant", rank=0), message("b", "assistant", deeper, rank=1))
    upper, lower = records(oasst.FORMAT, "ranking", row)
    assert (upper.id, lower.id, lower.user_id) == ("p", "q", "u")
    assert [(turn.role, turn.content) for turn in lower.prompt] == [
        ("user", "text of p"),
        ("assistant", "text of b"),
        ("user", "text of q"),
    ]


def test_replies_that_were_not_compared_become_no_comparison() -> None:
    half = tree(message("a", rank=0), message("b"), message("c", rank=1))
    assert rejected(oasst.FORMAT, "ranking", half) == ("missing-rank", "prompt.replies.1.rank")
    assert rejected(oasst.FORMAT, "demonstration", half) == ("missing-rank", "prompt.replies.1.rank")
    assert rejected(oasst.FORMAT, "ranking", tree(message("a"), message("b"))) == ("unranked", "prompt.replies")
    askers = tree(message("a", "assistant", message("q", "prompter"), message("r", "prompter")))
    assert rejected(oasst.FORMAT, "ranking", askers) == ("unranked", "prompt.replies.0.replies")
    ranked_askers = tree(message("a", "assistant", message("q", "prompter", rank=0), message("r", "prompter", rank=1)))
    assert rejected(oasst.FORMAT, "ranking", ranked_askers) == ("left-out", "prompt.replies.0.replies")
    assert outcomes(oasst.FORMAT, "ranking", tree(message("a", rank=0))) == []
    assert outcomes(oasst.FORMAT, "ranking", tree()) == []


def test_ranks_and_roles_that_are_none_are_named_by_their_place_in_the_tree() -> None:
    row = tree(message("a", rank="0"), message("b", rank=1))
    assert findings(oasst.FORMAT, "ranking", row) == {("bad-rank", "prompt.replies.0.rank")}
    assert rejected(oasst.FORMAT, "demonstration", row) == ("bad-rank", "prompt.replies.0.rank")
    row = tree(message("a", rank=True), message("b", rank=-1), text=None)
    places = {("bad-rank", "prompt.replies.0.rank"), ("bad-rank", "prompt.replies.1.rank"), ("null", "prompt.text")}
    assert findings(oasst.FORMAT, "ranking", row) == places
    row = tree(message("a", "assistant", message("q", "moderator", message("b", rank=0), message("c", rank=1))))
    assert findings(oasst.FORMAT, "ranking", row) == {("bad-value", "prompt.replies.0.replies.0.role")}


def test_the_best_or_only_answer_is_a_demonstration() -> None:
    follow_up = message("q", "prompter", message("c", user_id="writer"))
    row = tree(message("a", rank=1), message("b", "assistant", follow_up, rank=0, synthetic=True, user_id="owner"))
    best, only = records(oasst.FORMAT, "demonstration", row)
    assert (best.completion, best.id, best.labeler) == ("text of b", "b", None)
    assert best.meta["answers"] == [{"message_id": "b", "rank": 0, "synthetic": True, "user_id": "owner"}]
    assert (only.completion, only.labeler, len(only.prompt)) == ("text of c", "writer", 3)
    tie = tree(message("a", rank=0), message("b", rank=0))
    assert rejected(oasst.FORMAT, "demonstration", tie) == ("left-out", "prompt.replies")


def test_every_conversation_that_ends_with_a_prompter_is_a_prompt() -> None:
    row = tree(message("a", "assistant", message("q", "prompter")), message("b"))
    assert [(found.id, len(found.prompt)) for found in records(oasst.FORMAT, "prompt", row)] == [
        ("p", 1),
        ("q", 3),
    ]


def test_deleted_messages_and_spam_are_left_out_with_all_below_them() -> None:
    below = message("q", "prompter", message("c", rank=0), message("d", rank=1))
    row = tree(message("a", "assistant", below, rank=0, deleted=True), message("b", rank=1), message("e", rank=2))
    ranking, left_out = outcomes(oasst.FORMAT, "ranking", row)
    assert (left_out.code, left_out.field) == ("left-out", "prompt.replies.0")
    assert [(found["text"], found["rank"]) for found in ranking.row["responses"]] == [
        ("text of b", 2),
        ("text of e", 3),
    ]
    assert rejected(oasst.FORMAT, "prompt", tree(message("a"), review_result=False)) == ("left-out", "prompt")
    assert len(records(oasst.FORMAT, "prompt", tree(message("a"), review_result=None))) == 1


def flat(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a tree as the flat export has them, one a row, children before their parents."""
    found: list[dict[str, Any]] = []

    def visit(node: dict[str, Any], parent: str | None) -> None:
        for reply in node["replies"]:
            visit(reply, node["message_id"])
        rest = {key: value for key, value in node.items() if key != "replies"}
        found.append({**rest, "parent_id": parent, "message_tree_id": row["message_tree_id"]})

    visit(row["prompt"], None)
    return found


@pytest.mark.parametrize("kind", ["ranking", "demonstration", "prompt"])
def test_single_messages_join_to_the_same_records_as_their_tree(kind: str) -> None:
    for row in rows_of("oasst"):
        single = flat(row)
        assert all(oasst.FORMAT.recognise(one) for one in single)
        assert {oasst.FORMAT.key(one) for one in single} == {oasst.FORMAT.key(row)}
        nested, joined = (
            [found.model_dump(exclude={"meta"}) for found in records(oasst.FORMAT, kind, source)]
            for source in (row, single)
        )
        assert nested == joined
        assert nested


def test_single_messages_are_named_by_their_id_and_row_and_orphans_are_reported() -> None:
    rows = flat(tree(message("a", rank=0), message("b")))
    rows += [{"message_id": "x", "parent_id": "gone", "role": "assistant", "text": "lost"}, dict(rows[0])]
    found = [(one.code, one.field, one.row) for one in oasst.FORMAT.to["ranking"](rows)]
    assert sorted(found) == [
        ("duplicate-id", "message_id", 4),
        ("missing-rank", "b.rank", 1),
        ("no-part", "parent_id", 3),
    ]


def test_messages_without_a_root_are_told_in_the_order_of_the_file() -> None:
    rows = [{"message_id": f"m{i}", "parent_id": "gone", "role": "assistant", "text": "lost"} for i in range(20)]
    assert [outcome.row for outcome in outcomes(oasst.FORMAT, "ranking", rows)] == list(range(20))


def test_a_tree_deeper_than_pythons_stack_is_walked() -> None:
    node = message("end", "prompter", message("a", rank=0), message("b", rank=1))
    for number in range(1501):
        node = message(str(number), "prompter" if number % 2 else "assistant", node)
    [ranking] = oasst.FORMAT.to["ranking"]([{"message_tree_id": "t", "prompt": message("p", "prompter", node)}])
    assert len(ranking.row["prompt"]) == 1503


# ---- summarize-from-feedback ----------------------------------------------------------------------------------------


def test_choice_is_the_index_of_the_preferred_summary() -> None:
    chose_1, chose_0 = (
        record(summarize_from_feedback.FORMAT, "ranking", row) for row in rows_of("summarize-from-feedback")
    )
    assert order(chose_1)[0] == " neighbour denies having my ladder since May; how do i get it back?"
    assert order(chose_0)[0] == " 猫五点叫醒我，一个月没睡好，怎么办？"


def test_the_whole_record_of_a_comparison_of_summaries() -> None:
    ranking = record(summarize_from_feedback.FORMAT, "ranking", rows_of("summarize-from-feedback")[0])
    assert ranking.model_dump(exclude_defaults=True) == {
        "prompt": "SUBREDDIT: r/advice\n\nTITLE: Neighbour and my ladder\n\nPOST: I lent my neighbour a ladder in May. "
        "It is October and he says he never had it.\n\nTL;DR:",
        "responses": (
            {"text": " ladder is gone", "rank": 2, "source": "sup2"},
            {
                "text": " neighbour denies having my ladder since May; how do i get it back?",
                "rank": 1,
                "source": "ref",
            },
        ),
        "labeler": "w7",
        "meta": {
            "batch": "batch3",
            "split": "train",
            "extra": {"confidence": 8},
            "info": {"id": "t3_a"},
            "summaries": [{"note": "Which ladder?"}, {"note": None}],
        },
    }


AXES = {
    "info": {
        "id": "9f",
        "site": "dailymail",
        "title": "Rain",
        "article": "It rained.",
        "post": None,
        "subreddit": None,
    },
    "summary": {
        "text": "Rain.",
        "policy": "ref",
        "note": "short",
        "axes": {"overall": 6, "accuracy": 7, "coverage": None, "compatible": True},
    },
    "worker": "w1",
    "batch": "cnndm1",
    "split": "test",
}


def test_points_on_axes_become_ratings_on_their_scale() -> None:
    assert summarize_from_feedback.FORMAT.recognise(AXES)
    overall, accuracy = records(summarize_from_feedback.FORMAT, "rating", AXES)
    assert (overall.score, overall.axis, accuracy.score, accuracy.axis) == (6, None, 7, "accuracy")
    assert (overall.scale, overall.labeler, overall.response, overall.source) == ((1, 7), "w1", "Rain.", "ref")
    assert overall.prompt == "Article:\nIt rained.\n\nTL;DR:\n"
    assert overall.meta["summary"]["axes"]["compatible"] is True
    assert overall.meta["info"]["title"] == "Rain"  # of articles it is not in the prompt
    assert record(summarize_from_feedback.FORMAT, "prompt", AXES).labeler is None
    assert rejected(summarize_from_feedback.FORMAT, "ranking", AXES) == ("left-out", "summary")


def changed(row: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The row with another value at a dotted path; `...` takes the field away."""
    row = copy.deepcopy(row)
    *above, last = path.split(".")
    inner: Any = row
    for part in above:
        inner = inner[int(part) if isinstance(inner, list) else part]
    key: Any = int(last) if isinstance(inner, list) else last
    if value is ...:
        del inner[key]
    else:
        inner[key] = value
    return row


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("choice", 2, ("no-verdict", "choice")),
        ("choice", -1, ("no-verdict", "choice")),
        ("choice", True, ("no-verdict", "choice")),
        ("choice", "1", ("no-verdict", "choice")),
        ("choice", ..., ("no-verdict", "choice")),
        ("summaries", [{"text": "one"}], ("bad-value", "summaries")),
        ("info.post", ..., ("missing", "info.post")),
        ("info.post", " ", ("empty-text", "info.post")),
        ("info.subreddit", None, ("null", "info.subreddit")),
        ("info", None, ("missing", "info")),
    ],
)
def test_comparisons_of_summaries_without_a_verdict_or_a_post_are_rejected(
    path: str, value: Any, expected: tuple[str, str]
) -> None:
    row = changed(rows_of("summarize-from-feedback")[0], path, value)
    assert rejected(summarize_from_feedback.FORMAT, "ranking", row) == expected


def test_findings_in_summaries_have_the_sources_names() -> None:
    row = changed(rows_of("summarize-from-feedback")[0], "summaries.1.text", "")
    assert findings(summarize_from_feedback.FORMAT, "ranking", row) == {("empty-text", "summaries.1.text")}
    row = changed(AXES, "summary.axes", {"overall": 8})
    assert findings(summarize_from_feedback.FORMAT, "rating", row) == {("no-score", "summary.axes.overall")}
    row = changed(AXES, "summary.axes", {"overall": "6"})
    assert findings(summarize_from_feedback.FORMAT, "rating", row) == {("wrong-type", "summary.axes.overall")}
    assert rejected(summarize_from_feedback.FORMAT, "rating", changed(AXES, "summary.axes", {"overall": None})) == (
        "no-verdict",
        "summary.axes",
    )


# ---- shp ------------------------------------------------------------------------------------------------------------


def test_labels_1_prefers_a_and_0_prefers_b() -> None:
    prefers_b, prefers_a = (record(shp.FORMAT, "ranking", row) for row in rows_of("shp"))
    assert order(prefers_b) == ["Let it rise longer: it should double before it goes into the oven.", "Bad luck."]
    assert order(prefers_a) == ["少加点水，手上抹点油。", "戴手套。"]


def test_the_whole_record_of_two_comments() -> None:
    row = {"post_id": "q", "history": "Why?", "human_ref_A": "So.", "human_ref_B": "No.", "labels": 1, "score_A": 2}
    assert record(shp.FORMAT, "ranking", row).model_dump(exclude_defaults=True) == {
        "prompt": "Why?",
        "responses": ({"text": "So.", "rank": 1}, {"text": "No.", "rank": 2}),
        "meta": {"post_id": "q", "score_A": 2},
    }


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"labels": 1}, "no-verdict"),  # the scores say B
        ({"score_A": 12}, "no-verdict"),  # equal scores, yet B is preferred
        ({"score_A": 13.5}, "no-verdict"),
        ({"labels": 2}, "no-verdict"),
        ({"labels": "0"}, "no-verdict"),
        ({"labels": False}, "no-verdict"),
        ({"labels": None}, "no-verdict"),
    ],
)
def test_labels_that_the_scores_do_not_bear_out_are_no_verdict(change: dict[str, Any], code: str) -> None:
    row = {**rows_of("shp")[0], **change}
    assert rejected(shp.FORMAT, "ranking", row) == (code, "labels")
    assert record(shp.FORMAT, "prompt", row).prompt == "Why is my bread so dense?"


def test_findings_in_comments_have_the_sources_names() -> None:
    row = {**rows_of("shp")[0], "human_ref_B": " ", "history": None}
    assert findings(shp.FORMAT, "ranking", row) == {("empty-text", "human_ref_B"), ("null", "history")}


# ---- nectar ---------------------------------------------------------------------------------------------------------


def test_three_answers_of_ranks_1_2_3_make_three_pairs_whatever_their_order_in_the_file() -> None:
    ranking = record(nectar.FORMAT, "ranking", rows_of("nectar")[0])
    assert order(ranking) == ["The Nile.", "Congo", "A river."]
    assert set(ranking.pairs) == {(0, 1), (0, 2), (2, 1)}
    assert all(type(response.rank) is int for response in ranking.responses)


def test_the_whole_record_of_ranked_answers() -> None:
    ranking = record(nectar.FORMAT, "ranking", rows_of("nectar")[1])
    assert ranking.model_dump(exclude_defaults=True) == {
        "prompt": (
            {"role": "user", "content": "你好"},
            {"role": "assistant", "content": "你好，有什么可以帮你？"},
            {"role": "user", "content": "写一句关于雨的话。"},
        ),
        "responses": (
            {"text": "雨。", "rank": 2, "source": "m-b"},
            {"text": "细雨敲窗，夜色渐深。", "rank": 1, "source": "m-a"},
        ),
        "meta": {"turns": 2, "num_responses": 2, "source": ["sharegpt"], "good_natured": True},
    }
    scored = changed(rows_of("nectar")[1], "answers.0.score", 0.5)
    assert record(nectar.FORMAT, "ranking", scored).meta["answers"] == [{"score": 0.5}, {}]


@pytest.mark.parametrize("rank", [1.5, 0.0, -1.0, float("nan"), "1", True])
def test_a_rank_that_is_no_whole_number_is_reported_where_it_stands(rank: Any) -> None:
    row = changed(rows_of("nectar")[0], "answers.2.rank", rank)
    assert findings(nectar.FORMAT, "ranking", row) == {("bad-rank", "answers.2.rank")}


def test_other_findings_in_ranked_answers_have_the_sources_names() -> None:
    row = changed(rows_of("nectar")[0], "answers.1.rank", ...)
    assert findings(nectar.FORMAT, "ranking", row) == {("missing-rank", "answers.1.rank")}
    row = changed(rows_of("nectar")[0], "answers.1.answer", "")
    assert findings(nectar.FORMAT, "ranking", row) == {("empty-text", "answers.1.answer")}
    row = changed(rows_of("nectar")[0], "answers", [{"answer": "x", "model": "m", "rank": 1.0}])
    assert findings(nectar.FORMAT, "ranking", row) == {("too-few-responses", "answers")}
    row = changed(rows_of("nectar")[0], "prompt", f"{H}Name a river.{A}I begin")
    assert findings(nectar.FORMAT, "prompt", row) == {("no-user-turn", "prompt")}
    row = changed(rows_of("nectar")[0], "prompt", "Name a river.")
    assert rejected(nectar.FORMAT, "ranking", row) == ("no-user-turn", "prompt")
    assert rejected(nectar.FORMAT, "ranking", {"prompt": f"{H}Hi{A}"}) == ("missing", "answers")


# ---- trl ------------------------------------------------------------------------------------------------------------


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5", "extra": 1}
IMPLICIT = {"chosen": [user("2+2?"), answer("4")], "rejected": [user("2+2?"), answer("5")]}


def test_in_preference_rows_chosen_is_preferred_with_and_without_a_prompt() -> None:
    for row in (PAIR, IMPLICIT, {"prompt": [user("2+2?")], "chosen": [answer("4")], "rejected": [answer("5")]}):
        assert trl.FORMAT.recognise(row)
        assert order(record(trl.FORMAT, "ranking", row)) == ["4", "5"]
        assert record(trl.FORMAT, "demonstration", row).completion == "4"
    assert record(trl.FORMAT, "ranking", PAIR).model_dump(exclude_defaults=True) == {
        "prompt": "2+2?",
        "responses": ({"text": "4", "rank": 1}, {"text": "5", "rank": 2}),
        "meta": {"extra": 1},
    }
    assert [turn.content for turn in record(trl.FORMAT, "prompt", IMPLICIT).prompt] == ["2+2?"]


def test_the_margin_of_a_pair_is_the_rankings_and_no_demonstrations() -> None:
    for row in (PAIR, IMPLICIT):
        made = record(trl.FORMAT, "ranking", {**row, "margin": 2, "weight": 0.5})
        assert (made.margin, made.weight) == (2.0, 0.5) and made.meta.keys() <= {"extra"}
        assert findings(trl.FORMAT, "ranking", {**row, "margin": -1.0}) == {("bad-value", "margin")}
        assert findings(trl.FORMAT, "ranking", {**row, "margin": "2"}) == {("wrong-type", "margin")}
        assert findings(trl.FORMAT, "ranking", {**row, "margin": float("nan")}) == {("not-a-number", "margin")}
        kept = record(trl.FORMAT, "demonstration", {**row, "margin": -2}).meta
        assert kept["margin"] == -2
        assert record(trl.FORMAT, "prompt", {**row, "margin": -2}).meta["margin"] == -2


def test_label_true_is_a_thumb_up_and_false_a_thumb_down() -> None:
    good = {"prompt": [user("2+2?")], "completion": [answer("4")], "label": True, "id": "x", "extra": 1}
    bad = {"prompt": "2+2?", "completion": "5", "label": False}
    assert record(trl.FORMAT, "rating", good).model_dump(exclude_defaults=True) == {
        "prompt": (user("2+2?"),),
        "response": "4",
        "thumb": True,
        "id": "x",
        "meta": {"extra": 1},
    }
    assert record(trl.FORMAT, "rating", bad).thumb is False
    assert record(trl.FORMAT, "demonstration", good).completion == "4"
    assert rejected(trl.FORMAT, "demonstration", bad) == ("left-out", "label")
    for label in (None, 1, 0, "true"):
        assert rejected(trl.FORMAT, "rating", {**bad, "label": label}) == ("no-verdict", "label")
        assert rejected(trl.FORMAT, "demonstration", {**bad, "label": label}) == ("left-out", "label")
    assert rejected(trl.FORMAT, "rating", PAIR) == ("left-out", "")
    assert findings(trl.FORMAT, "rating", {**bad, "completion": ""}) == {("empty-text", "completion")}


def test_completions_and_conversations_are_demonstrations() -> None:
    completion = {"prompt": "2+2?", "completion": "4", "source": "book"}
    assert trl.FORMAT.recognise(completion)
    made = record(trl.FORMAT, "demonstration", completion)
    assert (made.prompt, made.completion, made.meta) == ("2+2?", "4", {"source": "book"})
    chat = {"messages": [user("2+2?"), answer("4")]}
    assert trl.FORMAT.recognise(chat) is None  # any chat row looks so; `messages` takes it
    assert record(trl.FORMAT, "demonstration", chat).completion == "4"
    assert [turn.content for turn in record(trl.FORMAT, "prompt", chat).prompt] == ["2+2?"]
    assert record(trl.FORMAT, "prompt", {"prompt": "2+2?"}).prompt == "2+2?"
    assert trl.FORMAT.recognise({"prompt": "2+2?"})
    assert rejected(trl.FORMAT, "demonstration", {"prompt": "2+2?"}) == ("left-out", "")
    assert rejected(trl.FORMAT, "ranking", completion) == ("left-out", "")


def test_preference_rows_that_contradict_themselves_are_rejected() -> None:
    differs = {"chosen": IMPLICIT["chosen"], "rejected": [user("3+3?"), answer("5")]}
    assert rejected(trl.FORMAT, "ranking", differs) == ("prompt-differs", "rejected")
    assert rejected(trl.FORMAT, "ranking", {"prompt": "x", **IMPLICIT}) == ("prompt-differs", "prompt")
    assert rejected(trl.FORMAT, "ranking", {"chosen": "4", "rejected": "5"}) == ("missing", "prompt")
    assert rejected(trl.FORMAT, "ranking", {**PAIR, "rejected": None}) == ("null", "rejected")
    assert rejected(trl.FORMAT, "ranking", {"prompt": "x", "chosen": "4"}) == ("missing", "rejected")
    assert findings(trl.FORMAT, "ranking", {**PAIR, "rejected": ""}) == {("empty-text", "rejected")}
    blank = {"chosen": [user("2+2?"), answer(" ")], "rejected": IMPLICIT["rejected"]}
    assert findings(trl.FORMAT, "ranking", blank) == {("empty-text", "chosen.1.content")}


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"chosen": f"{H}Hi{A}Yes.", "rejected": f"{H}Hi{A}No."},
        {"prompt": "a", "response": "b", "helpfulness": 3},
        {"prompt": "a", "answers": []},
        {"instruction": "a", "input": "", "chosen": "b", "rejected": "c"},
        {"conversations": [], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
        {"messages": [user("a"), answer("b")], "label": True},
        {"prompt": "a", "completions": ["b"], "labels": [True]},
        {"prompt": {"text": "a"}, "message_tree_id": "t"},
        {"text": "a"},
    ],
)
def test_rows_of_other_formats_are_not_taken_for_trls(row: dict[str, Any]) -> None:
    assert trl.FORMAT.recognise(row) is None


# ---- messages -------------------------------------------------------------------------------------------------------


def test_a_chat_is_one_demonstration_of_its_last_turn() -> None:
    made = record(messages.FORMAT, "demonstration", rows_of("messages")[1] | {"topic": "books", "id": "m"})
    assert made.model_dump(exclude_defaults=True) == {
        "prompt": (user("你好"), answer("你好！"), user("推荐一本书。")),
        "completion": "《边城》，沈从文写的，很短。",
        "id": "m",
        "meta": {"topic": "books"},
    }
    assert record(messages.FORMAT, "prompt", rows_of("messages")[1]).prompt == made.prompt
    [asked] = record(messages.FORMAT, "prompt", {"messages": [user("Hi")]}).prompt
    assert (asked.role, asked.content) == ("user", "Hi")


def test_text_parts_are_joined_and_what_a_message_holds_besides_is_kept() -> None:
    made = record(messages.FORMAT, "demonstration", rows_of("messages")[2])
    assert made.prompt[0].content == "Count to three."
    assert made.meta == {"messages": [{}, {"weight": 1}]}


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([user("Hi")], ("no-answer", "messages")),
        ([answer("Hi")], ("no-user-turn", "messages")),
        ([], ("no-answer", "messages")),
        (None, ("null", "messages")),
        ("Hi", ("wrong-type", "messages")),
        ([user("Hi"), "Ho"], ("wrong-type", "messages.1")),
        ([user("Hi"), {"role": "tool", "content": "3"}, answer("Ho")], ("bad-value", "messages.1.role")),
        ([user("Hi"), {**answer("Ho"), "tool_calls": [{"id": "c"}]}], ("bad-value", "messages.1.tool_calls")),
        ([user("Hi"), {**answer("Ho"), "function_call": {"name": "f"}}], ("bad-value", "messages.1.function_call")),
        ([{"role": "user", "content": [{"type": "image_url"}]}, answer("Ho")], ("bad-value", "messages.0.content.0")),
        ([user("Hi"), {**answer("Ho"), "weight": 0}], ("left-out", "messages.1.weight")),
    ],
)
def test_chats_that_hold_no_answer_to_imitate_are_rejected(turns: Any, expected: tuple[str, str]) -> None:
    assert rejected(messages.FORMAT, "demonstration", {"messages": turns}) == expected


def test_findings_in_chats_are_named_by_their_message() -> None:
    row = {"messages": [user("Hi"), user("Ho"), answer(" ")]}
    assert findings(messages.FORMAT, "demonstration", row) == {
        ("empty-text", "messages.2.content"),
        ("role-order", "messages.1.role"),
    }
    row = {"messages": [{"role": "developer", "content": "x"}, user("Hi"), answer("Ho")]}
    assert findings(messages.FORMAT, "prompt", row) == {("bad-value", "messages.0.role")}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("a"), answer("b")], "label": True},
        {"messages": [user("a"), answer("b")], "images": ["a.png"]},
        {"prompt": "a", "chosen": [], "rejected": [], "messages": [user("a")]},
        {"messages": [{"from": "human", "value": "a"}]},
        {"messages": "a"},
        {"messages": []},
        {"conversations": [user("a")]},
    ],
)
def test_rows_of_other_formats_are_not_taken_for_chats(row: dict[str, Any]) -> None:
    assert messages.FORMAT.recognise(row) is None
