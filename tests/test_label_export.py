"""What is exported: by hand for one of each kind, and whatever people answer passes `rlhf-kit validate`."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_kit import files
from rlhf_kit.errors import DataError
from rlhf_kit.labeling.assignment import Settings
from rlhf_kit.labeling.exporting import records, write_records
from rlhf_kit.labeling.replies import AXES, FLAGS, parse_reply
from rlhf_kit.labeling.store import Store
from rlhf_kit.labeling.tasks import Candidate, Task, blank_tasks
from rlhf_kit.outputs import row_of
from rlhf_kit.records import Message
from rlhf_kit.validation import Verdict, validate


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "labels.sqlite", lambda: 1_000_000.0)
    yield opened
    opened.close()


def validated(path):
    """The findings of `rlhf-kit validate` that are errors, and how many rows it counts."""
    found = list(validate([str(path)]))
    (verdict,) = [one for one in found if isinstance(one, Verdict)]
    return [one for one in found if not isinstance(one, Verdict)], verdict.examined


THREE = Task(
    "rank",
    "Why?",
    (
        Candidate("a", True, "sft", None, {"score": 0.5, "count": 2}),
        Candidate("b", False, "ppo"),
        Candidate("c", True, None),
    ),
    {"category": "open_qa", "kind": "plain", "origin": "user", "user_id": "u1", "id": "r1", "meta": {"batch": 3}},
)


def test_a_ranking_is_what_was_said_in_the_order_of_the_task(store):
    store.add([THREE])
    said = {
        "A": {"rank": 3, "overall": 2, "flags": {"hallucination": True}, "axes": {"helpful": 4}},
        "B": {"rank": 1, "axes": {"helpful": 2, "harmless": 1}},
        "C": {"rank": 3},
    }
    store.take("anna", THREE.id, parse_reply("rank", {"answers": said, "note": "hm"}), order=(2, 0, 1))
    (record,) = records(store)
    assert row_of(record) == {  # A was c, B was a, C was b; ranks 3, 1, 3 are 2, 1, 2
        "prompt": "Why?",
        "responses": (
            {"text": "a", "rank": 1, "source": "sft", "axes": {"helpful": 1, "harmless": 1}},
            {"text": "b", "rank": 2, "source": "ppo", "ended": False},
            {"text": "c", "rank": 2, "overall": 2, "flags": {"hallucination": True}, "axes": {"helpful": 2}},
        ),
        "labeler": "anna",
        "category": "open_qa",
        "user_id": "u1",
        "id": "r1",
        "meta": {
            "batch": 3,
            "seconds": 0.0,
            "kind": "plain",
            "origin": "user",
            "answers": [{"score": 0.5, "count": 2}, {}, {}],
            "shown": [2, 0, 1],
            "note": "hm",
        },
    }


@pytest.mark.parametrize(("better", "ranks"), [("A", (2, 1)), ("B", (1, 2)), ("tie", (1, 1))])
def test_a_comparison_is_a_ranking_of_two(store, better, ranks):
    task = Task("compare", "Why?", (Candidate("a", source="x"), Candidate("b", source="y")))
    store.add([task])
    store.take("anna", task.id, parse_reply("compare", {"better": better}), order=(1, 0))  # A was b
    (record,) = records(store)
    assert [(one.text, one.rank, one.source) for one in record.responses] == [
        ("a", ranks[0], "x"),
        ("b", ranks[1], "y"),
    ]


def test_a_rating_has_its_scale(store):
    task = Task("rate", "Why?", (Candidate("a", False, "ppo", meta={"score": 1.5}),), {"meta": {"seconds": "mine"}})
    store.add([task])
    store.take("anna", task.id, parse_reply("rate", {"overall": 6, "flags": {"harmful_advice": False}}))
    (record,) = records(store)
    assert row_of(record) == {
        "prompt": "Why?",
        "response": "a",
        "score": 6.0,
        "scale": (1.0, 7.0),
        "source": "ppo",
        "labeler": "anna",
        "meta": {  # neither hides the other
            "meta": {"seconds": "mine"},
            "seconds": 0.0,
            "flags": {"harmful_advice": False},
            "ended": False,
            "answers": [{"score": 1.5}],
            "shown": [0],
        },
    }


def test_a_demonstration(store):
    turns = (Message(role="system", content="Be brief."), Message(role="user", content="Why?"))
    carried = {"category": "open_qa", "kind": "plain", "origin": "user", "user_id": "u1"}
    task = Task("demonstrate", turns, (), carried)
    store.add([task])
    store.take("anna", task.id, parse_reply("demonstrate", {"completion": "So.\r\n", "note": "easy"}))
    (record,) = records(store)
    assert row_of(record) == {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        "completion": "So.\n",
        "labeler": "anna",
        **carried,
        "meta": {"seconds": 0.0, "note": "easy"},
    } | {"prompt": tuple(turn.model_dump() for turn in turns)}


def test_prompts_of_the_three_kinds(store):
    tasks = [*blank_tasks(2), Task("write", None, (), {"kind": "few_shot", "hint": "Sorting", "id": "h1"})]
    store.add(tasks)
    pairs = [
        {"query": "b a", "response": "a b"},
        {"query": "2\n1", "response": "1\n2"},
        {"query": "z y", "response": "y z"},
    ]
    replies = [
        {"kind": "plain", "prompt": "Why?"},
        {"kind": "use_case", "prompt": "Shorten this: x", "use_case": " rewriting "},
        {"kind": "few_shot", "prompt": "Sort.", "examples": pairs},
    ]
    for task, value in zip(tasks, replies, strict=True):
        store.take("anna", task.id, parse_reply("write", value))
    plain, use_case, few_shot = map(row_of, records(store))
    same = {"origin": "labeler", "labeler": "anna"}
    assert plain == {"prompt": "Why?", "kind": "plain", "meta": {"seconds": 0.0}, **same}
    assert use_case["category"] == "rewriting" and use_case["kind"] == "use_case"
    assert few_shot == {
        "prompt": "Sort.\n\nQ: b a\nA: a b\n\nQ: 2\n1\nA: 1\n2\n\nQ: z y\nA:",
        "kind": "few_shot",
        "id": "h1",
        "meta": {"seconds": 0.0, "examples": pairs, "hint": "Sorting"},
        **same,
    }


def test_ids_are_unique_and_as_they_were_where_they_can_be(store):
    pair = (Candidate("a"), Candidate("b"))
    alone, shared = Task("rank", "1", pair, {"id": "one"}), Task("rank", "2", pair, {"id": "two"})
    parts = [Task("compare", "3", (Candidate("a"), Candidate(text)), {"id": "three"}) for text in "bc"]
    store.add([alone, shared, *parts])
    both = parse_reply("rank", {"answers": {"A": {"rank": 1}, "B": {"rank": 2}}})
    store.take("anna", alone.id, both)
    for name in ("anna", "ben"):
        store.take(name, shared.id, both)
        for part in parts:
            store.take(name, part.id, parse_reply("compare", {"better": "A"}))
    assert [record.id for record in records(store)] == [
        "one",
        "two/anna",
        "two/ben",
        *(f"three/{part.id}/{name}" for part in parts for name in ("anna", "ben")),
    ]


def test_gold_and_skips_stay_here_and_late_ones_say_so(tmp_path):
    now = [1_000_000.0]
    store = Store(tmp_path / "a.sqlite", lambda: now[0])
    store.set_labelers(["anna", "ben"])
    pair = (Candidate("a", rank=1), Candidate("b", rank=2))
    store.add([Task("rank", "gold", pair, gold=True), Task("rank", "plain", pair), Task("rank", "skipped", pair)])
    reply = parse_reply("rank", {"answers": {"A": {"rank": 1}, "B": {"rank": 2}}})
    asked = {}
    while len(asked) < 3:
        store.configure(Settings(gold_every=2, lease=50.0))
        one = store.next("anna")
        asked[one.task.prompt] = one.id
        if one.task.prompt == "plain":
            now[0] += 51
            store.configure(Settings(gold_every=0, lease=50.0))
            ben = store.next("ben")
            assert ben.task.prompt == "plain"
            store.answer("anna", one.id, reply, 51.26)
        elif one.task.prompt == "gold":
            store.answer("anna", one.id, reply, 1.0)
        else:
            store.skip("anna", one.id, "other", "", 1.0)
    store.answer("ben", ben.id, reply, 2.0)
    assert write_records(store, tmp_path / "out.jsonl") == 2
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["labeler"], row["meta"].get("late")) for row in rows] == [
        ("plain", "anna", True),
        ("plain", "ben", None),
    ]
    assert [row["meta"]["seconds"] for row in rows] == [51.3, 2.0]
    assert "rank" not in json.dumps(rows[0]["meta"])


def test_a_file_holds_one_kind_and_none_is_written_for_nothing(store, tmp_path):
    out = tmp_path / "out.jsonl"
    assert write_records(store, out) == 0 and not out.exists()
    ranked, rated = Task("rank", "1", (Candidate("a"), Candidate("b"))), Task("rate", "1", (Candidate("a"),))
    store.add([ranked])
    store.add([rated], batch="live")
    store.take("anna", ranked.id, parse_reply("rank", {"answers": {"A": {"rank": 1}, "B": {"rank": 2}}}))
    store.take("anna", rated.id, parse_reply("rate", {"overall": 3}))
    with pytest.raises(DataError, match=r"several kinds \(ranking, rating\)"):
        write_records(store, out)
    assert not out.exists()
    assert write_records(store, out, batch="live") == 1
    assert [record.score for record in files.load(str(out), "rating")] == [3.0]


# ---- whatever people answer

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip()) and any(not c.isspace() for c in text)
)
MARK = st.integers(1, 7)
FLAGGED = st.dictionaries(st.sampled_from(FLAGS), st.booleans(), max_size=3)
NOTES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)


def answer_reply(size):
    axes = st.dictionaries(st.sampled_from(AXES), st.integers(1, size))
    return st.fixed_dictionaries(
        {"rank": st.integers(1, 26), "overall": st.none() | MARK, "flags": FLAGGED, "axes": axes}
    )


def reply_of(task):
    size = len(task.candidates)
    if task.kind == "rank":
        said = {key: answer_reply(size) for key in "ABCDEFGH"[:size]}
        return st.fixed_dictionaries({"answers": st.fixed_dictionaries(said), "note": NOTES})
    if task.kind == "compare":
        return st.fixed_dictionaries({"better": st.sampled_from(["A", "B", "tie"]), "note": NOTES})
    if task.kind == "rate":
        return st.fixed_dictionaries({"overall": MARK, "flags": FLAGGED, "note": NOTES})
    if task.kind == "demonstrate":
        return st.fixed_dictionaries({"completion": TEXTS, "note": NOTES})
    examples = st.lists(st.fixed_dictionaries({"query": TEXTS, "response": TEXTS}), min_size=1, max_size=3)
    return st.one_of(
        st.fixed_dictionaries({"kind": st.just("plain"), "prompt": TEXTS}),
        st.fixed_dictionaries({"kind": st.just("few_shot"), "prompt": TEXTS, "examples": examples}),
        st.fixed_dictionaries({"kind": st.just("use_case"), "prompt": TEXTS, "use_case": TEXTS}),
    )


@st.composite
def jobs(draw):
    """Tasks of one kind, some rows of which share an id, and who answers them."""
    kind = draw(st.sampled_from(["rank", "compare", "rate", "demonstrate", "write"]))
    sizes = {"rank": (2, 5), "compare": (2, 2), "rate": (1, 1)}.get(kind, (0, 0))
    tasks = []
    for number in range(draw(st.integers(1, 4))):
        texts = draw(st.lists(TEXTS, min_size=sizes[0], max_size=sizes[1], unique=True))
        prompt = None if kind == "write" else draw(TEXTS)
        carried = {"kind": "plain", "hint": str(number)} if kind == "write" else {}
        carried["id"] = draw(st.sampled_from(["x", "y", "x/anna"]))
        sources = st.none() | st.sampled_from(["sft", "ppo"])
        candidates = tuple(Candidate(text, draw(st.booleans()), draw(sources)) for text in texts)
        tasks.append(Task(kind, prompt, candidates, carried))
    answers = []
    first = {task.id: task for task in reversed(tasks)}  # of tasks that ask the same the first is the one that is kept
    for task in first.values():
        for name in draw(st.sets(st.sampled_from(["anna", "ben", "cleo"]), min_size=1)):
            order = draw(st.permutations(range(len(task.candidates))))
            answers.append((name, task, draw(reply_of(task)), order))
    return tasks, answers


@settings(max_examples=50, deadline=None)
@given(jobs())
def test_whatever_people_answer_is_valid_and_says_what_they_said(job):
    tasks, answers = job
    with tempfile.TemporaryDirectory() as directory:
        store, out = Store(Path(directory) / "a.sqlite"), Path(directory) / "out.jsonl"
        store.add(tasks)
        for name, task, value, order in answers:
            store.take(name, task.id, parse_reply(task.kind, value), order=order)
        assert write_records(store, out) == len(answers)
        problems, examined = validated(out)
        kinds = {"compare": "ranking", "rank": "ranking", "rate": "rating", "demonstrate": "demonstration"}
        assert examined.kind == kinds.get(tasks[0].kind, "prompt")
        assert examined.kept == len(answers) and examined.rejected == 0, problems
        back = files.load(str(out), examined.kind)
        store.close()
    for name, task, value, order in answers:
        if task.kind != "rank":
            continue
        (record,) = [
            one for one in back if one.labeler == name and one.meta["shown"] == list(order) and is_of(one, task)
        ]
        said = [value["answers"]["ABCDEFGH"[list(order).index(i)]] for i in range(len(order))]
        given = [one["rank"] for one in said]
        ranks = [one.rank for one in record.responses]
        assert sorted(set(ranks)) == list(range(1, len(set(given)) + 1))
        for i in range(len(given)):
            assert [(ranks[i] < r) - (ranks[i] > r) for r in ranks] == [(given[i] < g) - (given[i] > g) for g in given]
        assert [one.overall for one in record.responses] == [one["overall"] for one in said]
        assert [one.source for one in record.responses] == [one.source for one in task.candidates]


def is_of(record, task):
    return record.prompt == task.prompt and {r.text for r in record.responses} == {c.text for c in task.candidates}
