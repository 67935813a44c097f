"""What becomes of files of tasks, and what the page may send as a reply."""

import json
import subprocess
import sys

import pytest

from rlhf_kit.errors import DataError
from rlhf_kit.labeling.replies import check_reply, parse_reply
from rlhf_kit.labeling.tasks import Candidate, Task, as_text, blank_tasks, read_tasks, task_of, to_json
from rlhf_kit.records import Message


def written(tmp_path, *rows, name="tasks.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


SAMPLED = {
    "prompt": "Why?",
    "category": "open_qa",
    "id": "row-1",
    "meta": {
        "policy": "sft",
        "batch": 3,
        "responses": [
            {"text": "Because.", "ended": True, "tokens": 3, "count": 2, "score": 0.5},
            {"text": "  ", "ended": True, "tokens": 1},
            {"text": "So it is", "ended": False, "tokens": 4, "source": "ppo"},
            {"text": "Who knows", "ended": True, "source": "ppo"},
        ],
    },
}


def test_what_sample_writes_is_a_task_a_row(tmp_path):
    (task,) = read_tasks(written(tmp_path, SAMPLED), "rank")
    assert task.prompt == "Why?" and not task.gold and task.kind == "rank"
    assert [(c.text, c.ended, c.source, c.rank) for c in task.candidates] == [
        ("Because.", True, "sft", None),
        ("So it is", False, "ppo", None),
        ("Who knows", True, "ppo", None),
    ]
    assert task.candidates[0].meta == {"tokens": 3, "count": 2, "score": 0.5}
    assert task.carried == {"category": "open_qa", "id": "row-1", "meta": {"policy": "sft", "batch": 3}}


def test_pairs_to_compare_are_of_different_sources(tmp_path):
    texts = [tuple(c.text for c in task.candidates) for task in read_tasks(written(tmp_path, SAMPLED), "compare")]
    assert texts == [("Because.", "So it is"), ("Because.", "Who knows")]


def test_all_pairs_are_compared_where_nobody_knows_the_sources(tmp_path):
    row = {"prompt": "Why?", "meta": {"responses": [{"text": text} for text in "abc"]}}
    texts = [tuple(c.text for c in task.candidates) for task in read_tasks(written(tmp_path, row), "compare")]
    assert texts == [("a", "b"), ("a", "c"), ("b", "c")]


def test_each_answer_is_rated(tmp_path):
    ratings = [{"prompt": "Why?", "response": text, "score": 3, "scale": [1, 5], "source": "m"} for text in "ab"]
    tasks = read_tasks(written(tmp_path, *ratings), "rate")
    assert [task.candidates for task in tasks] == [(Candidate("a", source="m"),), (Candidate("b", source="m"),)]
    assert len(read_tasks(written(tmp_path, SAMPLED), "rate")) == 3


def test_the_same_text_stands_once_with_all_its_sources(tmp_path):
    responses = [
        {"text": "same", "ended": False, "source": "a"},
        {"text": "other", "source": "a"},
        {"text": "same", "ended": True, "source": "b + a"},
    ]
    (task,) = read_tasks(written(tmp_path, {"prompt": "Why?", "meta": {"responses": responses}}), "rank")
    assert task.candidates == (Candidate("same", True, "a + b"), Candidate("other", True, "a"))


def test_ranks_are_known_only_where_they_are_gold(tmp_path):
    responses = [{"text": "good", "rank": 1, "overall": 6}, {"text": "bad", "rank": 4, "overall": 2}]
    source = written(tmp_path, {"prompt": "Why?", "labeler": "anna", "responses": responses})
    (plain,), (gold,) = read_tasks(source, "rank"), read_tasks(source, "rank", gold=True)
    assert [c.rank for c in plain.candidates] == [None, None] and not plain.gold
    assert [c.rank for c in gold.candidates] == [1, 4] and gold.gold
    assert plain.id != gold.id and plain.carried == {}
    assert [c.meta["overall"] for task in read_tasks(source, "rate", gold=True) for c in task.candidates] == [6, 2]


def test_ranks_that_people_wrote_into_a_sheet_are_gold_too(tmp_path):
    row = {"prompt": "Why?", "meta": {"responses": [{"text": "a", "rank": 2}, {"text": "b", "rank": 1}]}}
    (gold,) = read_tasks(written(tmp_path, row), "compare", gold=True)
    assert [c.rank for c in gold.candidates] == [2, 1]
    unknown = {"prompt": "Why?", "meta": {"responses": [{"text": "a", "rank": 2}, {"text": "b"}]}}
    with pytest.raises(DataError, match="needs the rank of each response"):
        read_tasks(written(tmp_path, unknown), "rank", gold=True)
    with pytest.raises(DataError, match="from 1 to 7"):
        read_tasks(written(tmp_path, unknown), "rate", gold=True)
    with pytest.raises(DataError, match="with a known answer"):
        read_tasks(written(tmp_path, unknown), "demonstrate", gold=True)


def test_prompts_and_demonstrations_ask_for_demonstrations(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    rows = [{"prompt": turns, "origin": "user", "user_id": "u1", "kind": "plain"}, {"prompt": "How?"}]
    first, second = read_tasks(written(tmp_path, *rows), "demonstrate")
    assert first.prompt == (Message(role="system", content="Be brief."), Message(role="user", content="Why?"))
    assert first.carried == {"origin": "user", "user_id": "u1", "kind": "plain"} and second.candidates == ()
    (again,) = read_tasks(written(tmp_path, {"prompt": "How?", "completion": "So."}), "demonstrate")
    assert again.id == second.id
    assert as_text(first) == "system: Be brief.\n\nuser: Why?" and as_text(second) == "How?"


def test_texts_are_hints_for_prompts_to_write(tmp_path):
    rows = [{"text": "About rivers.", "id": "h1"}, {"text": "Rewriting.", "meta": {"kind": "use_case", "week": 2}}]
    plain, use_case = read_tasks(written(tmp_path, *rows), "write")
    assert plain.prompt is None
    assert plain.carried == {"hint": "About rivers.", "id": "h1"}, "which kind it shall be is the labeler's choice"
    assert use_case.carried == {"kind": "use_case", "hint": "Rewriting.", "meta": {"week": 2}}
    assert as_text(plain) == "About rivers."
    with pytest.raises(DataError, match=r"jsonl:1: meta\.kind: must be one of plain, few_shot, use_case"):
        read_tasks(written(tmp_path, {"text": "x", "meta": {"kind": "long"}}), "write")
    assert len({task.id for task in blank_tasks(5)} | {task.id for task in blank_tasks(5, "few_shot")}) == 10


def test_known_answers_that_are_all_alike_make_no_task(tmp_path):
    tied = {"prompt": "Why?", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 1}]}
    with pytest.raises(DataError, match="a row needs answers with different known ranks"):
        read_tasks(written(tmp_path, tied), "rank", gold=True)


def test_every_bad_row_is_told(tmp_path):
    rows = [
        {"prompt": "a", "meta": {"responses": [{"text": 3}, {"text": "x", "ended": "no"}]}},
        {"prompt": "b", "meta": {"responses": "none"}},
        {"prompt": "c", "meta": {}},
        {"prompt": " ", "meta": {"responses": [{"text": "x"}, {"text": "y"}]}},
        {"prompt": "d", "meta": {"responses": [{"text": f"answer {i}"} for i in range(27)]}},
    ]
    with pytest.raises(DataError) as error:
        read_tasks(written(tmp_path, *rows), "rank")
    told = {(problem.where.rpartition(":")[2], problem.field) for problem in error.value.problems}
    assert told == {
        ("1", "meta.responses.0.text"),
        ("1", "meta.responses.1.ended"),
        ("2", "meta.responses"),
        ("3", "meta.responses"),
        ("4", "prompt"),
        ("5", "responses"),
    }


def test_rows_with_too_few_answers_are_passed_over(tmp_path, caplog):
    single = {"prompt": "x", "meta": {"responses": [{"text": "one"}, {"text": "one"}, {"text": " "}]}}
    assert len(read_tasks(written(tmp_path, single, SAMPLED), "rank")) == 1
    assert "1 rows have too few different answers" in caplog.text
    with pytest.raises(DataError, match="holds nothing to rank"):
        read_tasks(written(tmp_path, single), "rank")
    with pytest.raises(DataError, match="holds no answers"):
        read_tasks(written(tmp_path, {"prompt": "x", "completion": "y"}), "rank")


def test_a_task_is_known_by_its_content():
    one = Task("rank", "Why?", (Candidate("a", source="m"), Candidate("b")))
    same = Task("rank", (Message(role="user", content="Why?"),), (Candidate("b"), Candidate("a", meta={"count": 2})))
    assert one.id == same.id and len(one.id) == 16 and int(one.id, 16) >= 0
    others = [
        Task("compare", "Why?", one.candidates),
        Task("rank", "Why not?", one.candidates),
        Task("rank", "Why?", (Candidate("a"), Candidate("c"))),
        Task("rank", "Why?", one.candidates, gold=True),
        Task("rank", (Message(role="system", content="x"), Message(role="user", content="Why?")), one.candidates),
    ]
    assert len({task.id for task in [one, *others]}) == 6


def test_tasks_go_through_json(tmp_path):
    turns = (Message(role="user", content="Ünïcode \x00 ?"),)
    for task in [
        Task("rank", turns, (Candidate("a", False, "m", 2, {"score": 1.5}),), {"id": "x"}, True, 2.5),
        *blank_tasks(1),
    ]:
        assert task_of(json.loads(json.dumps(to_json(task)))) == task


def test_the_command_need_not_wait_for_torch_or_numpy():
    code = (
        "import sys; import rlhf_kit.labeling.figures, rlhf_kit.labeling.exporting, rlhf_kit.labeling.store;"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def rank_reply(**changes):
    return {"answers": {"A": {"rank": 1, **changes}, "B": {"rank": 2}}}


GOOD = [
    ("rank", rank_reply(overall=7, flags={"hallucination": True, "harmful_advice": False}, axes={"helpful": 2})),
    ("rank", {**rank_reply(), "note": "n" * 4000}),
    ("compare", {"better": "tie"}),
    ("rate", {"overall": 1, "flags": {}, "note": ""}),
    ("demonstrate", {"completion": "So."}),
    ("write", {"kind": "plain", "prompt": "Why?", "examples": [], "use_case": ""}),
    ("write", {"kind": "few_shot", "prompt": "Sort:", "examples": [{"query": "b a", "response": "a b"}]}),
    ("write", {"kind": "use_case", "prompt": "Why?", "use_case": "rewriting"}),
]
BAD = [
    ("rank", rank_reply(rank=0), ["answers.A.rank"]),
    ("rank", rank_reply(rank="1"), ["answers.A.rank"]),
    ("rank", rank_reply(rank=True), ["answers.A.rank"]),
    ("rank", rank_reply(rank=1.0), ["answers.A.rank"]),
    ("rank", rank_reply(rank=27), ["answers.A.rank"]),
    ("rank", rank_reply(overall=8, flags={"nice": True}), ["answers.A.overall", "answers.A.flags.nice"]),
    ("rank", rank_reply(flags={"hallucination": 1}), ["answers.A.flags.hallucination"]),
    ("rank", rank_reply(axes={"funny": 1}), ["answers.A.axes.funny"]),
    ("rank", {"answers": {"A": {"rank": 1}}}, ["answers"]),
    ("rank", {"answers": {"A": {"rank": 1}, "aa": {"rank": 1}}}, ["answers.aa"]),
    ("rank", {**rank_reply(), "note": "n" * 4001}, ["note"]),
    ("rank", {**rank_reply(), "note": "\ud800"}, ["note"]),
    ("rank", {**rank_reply(), "labeler": "ben"}, ["labeler"]),
    ("compare", {"better": "C"}, ["better"]),
    ("rate", {"overall": None}, ["overall"]),
    ("demonstrate", {"completion": " \n"}, ["completion"]),
    ("demonstrate", {"completion": "x" * 50_001}, ["completion"]),
    ("write", {"kind": "few_shot", "prompt": "Sort:"}, ["examples"]),
    ("write", {"kind": "plain", "prompt": "Sort:", "examples": [{"query": "a", "response": "b"}]}, ["examples"]),
    ("write", {"kind": "use_case", "prompt": "x", "use_case": " "}, ["use_case"]),
    ("write", {"kind": "few_shot", "prompt": "x", "examples": [{"query": "a"}]}, ["examples.0.response"]),
    ("rank", [1], [""]),
    ("rank", None, [""]),
]


@pytest.mark.parametrize(("kind", "value"), GOOD)
def test_replies_that_are_taken(kind, value):
    reply = parse_reply(kind, value)
    assert parse_reply(kind, reply.model_dump(mode="json")) == reply


@pytest.mark.parametrize(("kind", "value", "fields"), BAD)
def test_replies_that_are_not(kind, value, fields):
    with pytest.raises(DataError) as error:
        parse_reply(kind, value)
    assert [problem.field for problem in error.value.problems] == fields
    assert all(problem.reason for problem in error.value.problems)


def test_lines_end_as_in_all_data():
    assert parse_reply("demonstrate", {"completion": "a\r\nb\rc"}).completion == "a\nb\nc"


def test_a_reply_must_fit_its_task():
    reply = parse_reply("rank", rank_reply())
    check_reply(reply, "rank", 2)
    for kind, count, fields in [("rank", 3, ["answers.C"]), ("rank", 1, ["answers.B"]), ("compare", 2, [""])]:
        with pytest.raises(DataError) as error:
            check_reply(reply, kind, count)
        assert [problem.field for problem in error.value.problems] == fields
