"""The figures of the admin page, by hand."""

import json

import krippendorff
import numpy as np
import pytest
from labelers import Clock

from rlhf_kit.labeling.assignment import Settings
from rlhf_kit.labeling.figures import figures, gold_pairs, task_agreement
from rlhf_kit.labeling.replies import parse_reply
from rlhf_kit.labeling.store import Store
from rlhf_kit.labeling.tasks import Candidate, Task
from rlhf_kit.records import Message


@pytest.fixture
def clock():
    return Clock(0.0)


@pytest.fixture
def store(tmp_path, clock):
    opened = Store(tmp_path / "labels.sqlite", clock)
    opened.set_labelers(["anna", "ben", "cleo"])
    yield opened
    opened.close()


def task(number, size, **fields):
    return Task(
        "rank", f"question {number}", tuple(Candidate(f"answer {i}", source="m") for i in range(size)), **fields
    )


def reply_in(order, ranks):
    """The reply that gives the candidates, in their own order, these ranks."""
    return parse_reply("rank", {"answers": {"ABCDEF"[key]: {"rank": ranks[i]} for key, i in enumerate(order)}})


def say(store, name, said, seconds):
    """Answers what comes next by its prompt, until everything that is in `said` was asked."""
    said = dict(said)
    while said:
        one = store.next(name)
        ranks = said.pop(one.task.prompt)
        store.answer(name, one.id, reply_in(one.order, ranks), seconds)


def filled(store, clock):
    """Question 0 has three opinions, question 1 two, gold ones two."""
    known = Task("rank", "gold", (Candidate("x", rank=1), Candidate("y", rank=2), Candidate("z", rank=2)), gold=True)
    store.add([task(0, 3), task(1, 2), task(2, 2)])
    store.configure(Settings(overlap=3))
    say(store, "anna", {"question 0": (1, 2, 3), "question 1": (1, 2)}, 10.0)
    clock.now += 100
    say(store, "ben", {"question 0": (1, 9, 4), "question 1": (1, 2)}, 20.0)
    clock.now += 1000
    say(store, "cleo", {"question 0": (1, 2, 2)}, 60.0)
    store.add([known])
    for name, ranks in (("anna", (1, 1, 2)), ("ben", (1, 3, 2))):
        store.take(name, known.id, reply_in(range(3), ranks))
    one = store.next("cleo")
    store.skip("cleo", one.id, "all_bad", "both wrong", 4.0)
    return known


def test_everything_by_hand(store, clock):
    filled(store, clock)
    found = figures(store)
    assert json.loads(json.dumps(found)) == found
    assert found["paused"] is False
    assert found["tasks"] == {"all": 3, "done": 2, "open": 1, "gold": 1}  # nobody is left for question 1
    assert (found["answers"], found["skipped"]) == (5, 1)
    # 3 answers to question 2; mean (10 + 10 + 20 + 20 + 60) / 5 = 24 s; only cleo has answered in the last ten minutes
    assert found["seconds_left"] == pytest.approx(3 * 24)
    # Of question 0 (0, 1) and (0, 2) 3 of 3 each, (1, 2) 0 of 1 as a tie is left out; of question 1 1 of 1.
    assert found["agreement"]["pairs"] == {"value": 7 / 8, "low": None, "high": None}
    rows = {row["name"]: row for row in found["labelers"]}
    assert list(rows) == ["anna", "ben", "cleo"]
    assert {name: row["agreement"]["value"] for name, row in rows.items()} == {"anna": 5 / 6, "ben": 5 / 6, "cleo": 1.0}
    assert {name: (row["gold_right"], row["gold_pairs"]) for name, row in rows.items()} == {
        "anna": (1, 2),
        "ben": (2, 2),
        "cleo": (0, 0),
    }
    assert {name: (row["answered"], row["skipped"]) for name, row in rows.items()} == {
        "anna": (3, 0),
        "ben": (3, 0),
        "cleo": (1, 1),
    }
    assert [(row["median_seconds"], row["per_hour"]) for row in rows.values()] == [(10, 360), (20, 180), (60, 60)]
    assert found["disagreements"] == [
        {
            "task": task(0, 3).id,
            "prompt": "question 0",
            "answers": [
                {"key": key, "text": f"answer {i}", "source": "m", "ranks": {"anna": a, "ben": b, "cleo": c}}
                for i, (key, a, b, c) in enumerate([("A", 1, 1, 1), ("B", 2, 3, 2), ("C", 3, 2, 2)])
            ],
            "agreement": pytest.approx(6 / 9),
        }
    ]
    assert found["skips"] == [
        {
            "task": task(1, 2).id,
            "labeler": "cleo",
            "reason": "all_bad",
            "note": "both wrong",
            "prompt": "question 1",
        }
    ]


def test_alpha_is_that_of_the_library_on_the_verdicts(store, clock):
    filled(store, clock)
    verdicts = np.array(  # of each pair what anna, ben and cleo say: 1 better, 0 tie, -1 worse
        [[1, 1, 1], [1, 1, 1], [1, -1, 0], [1, 1, np.nan]]
    )
    both = np.concatenate([verdicts, -verdicts])  # which of the two comes first means nothing
    expected = krippendorff.alpha(reliability_data=both.T, value_domain=[-1, 0, 1], level_of_measurement="nominal")
    assert figures(store)["agreement"]["alpha"] == pytest.approx(expected)


def test_only_people_at_work_hasten_the_end(store, clock):
    filled(store, clock)
    clock.now += 550
    say(store, "anna", {"question 2": (1, 2)}, 24.0)
    assert figures(store)["seconds_left"] == pytest.approx(2 * 24 / 2)  # cleo and anna
    clock.now += 51
    assert figures(store)["seconds_left"] == pytest.approx(2 * 24)
    clock.now += 10_000
    assert figures(store)["seconds_left"] == pytest.approx(2 * 24)  # nobody, so that one is reckoned with


def test_nothing_yet(store):
    found = figures(store)
    assert (found["seconds_left"], found["agreement"], found["disagreements"]) == (None, None, [])
    assert [(row["name"], row["median_seconds"], row["per_hour"], row["last_at"]) for row in found["labelers"]] == [
        (name, None, None, None) for name in ("anna", "ben", "cleo")
    ]


def test_figures_follow_the_answers(store, clock):
    store.add([task(0, 2)])
    store.configure(Settings(overlap=2))
    say(store, "anna", {"question 0": (1, 2)}, 5.0)
    assert figures(store)["agreement"] is None
    say(store, "ben", {"question 0": (1, 2)}, 5.0)
    assert figures(store)["agreement"]["pairs"]["value"] == 1.0
    clock.now += 1
    ben = store.undo("ben")
    assert figures(store)["agreement"] is None
    store.answer("ben", ben.id, reply_in(ben.order, (2, 1)), 5.0)
    assert figures(store)["agreement"]["pairs"]["value"] == 0.0
    store.pause(True)
    assert figures(store)["paused"] is True


def test_intervals_come_with_ten_prompts(store):
    store.add(task(i, 2) for i in range(10))
    store.configure(Settings(overlap=2))
    say(store, "anna", {f"question {i}": (1, 2) for i in range(10)}, 5.0)
    say(store, "ben", {f"question {i}": (1, 2) if i < 8 else (2, 1) for i in range(10)}, 5.0)
    share = figures(store)["agreement"]["pairs"]
    assert share["value"] == 0.8 and 0.4 <= share["low"] < 0.8 < share["high"] <= 1.0
    assert [one["prompt"] for one in figures(store)["disagreements"]] == ["question 8", "question 9"]


def test_comparisons_and_their_disagreements(store):
    turns = (Message(role="system", content="Be brief."), Message(role="user", content="Why?"))
    one = Task("compare", turns, (Candidate("a"), Candidate("b")))
    store.add([one])
    store.take("anna", one.id, parse_reply("compare", {"better": "A"}), order=(0, 1))
    store.take("ben", one.id, parse_reply("compare", {"better": "A"}), order=(1, 0))  # shows b first
    found = figures(store)
    assert found["agreement"]["pairs"]["value"] == 0.0
    (row,) = found["disagreements"]
    assert row["prompt"] == "system: Be brief.\n\nuser: Why?" and row["agreement"] == 0.0
    assert [answer["ranks"] for answer in row["answers"]] == [{"anna": 1, "ben": 2}, {"anna": 2, "ben": 1}]


def test_marks_order_the_answers_to_a_prompt(store):
    tasks = [Task("rate", "Why?", (Candidate(text),)) for text in "abc"]
    store.add([*tasks, Task("rate", "How?", (Candidate("a"),))])
    for name, marks in (("anna", (7, 4, 1)), ("ben", (6, 5, 5)), ("cleo", (1, 7, 4))):
        for one, mark in zip(tasks, marks, strict=True):
            store.take(name, one.id, parse_reply("rate", {"overall": mark}))
    found = figures(store)
    # a over b: anna, ben; b over a: cleo (1 of 3). a over c: anna, ben; c over a: cleo (1 of 3).
    # b over c: anna, cleo; ben says tie (1 of 1).
    assert found["agreement"]["pairs"]["value"] == pytest.approx(3 / 7)
    assert [(row["answers"][0]["text"], row["agreement"]) for row in found["disagreements"]] == [
        ("a", pytest.approx(0.0)),  # 7 and 1: the whole scale
        ("c", pytest.approx(1 - 4 / 6)),
        ("b", pytest.approx(1 - 3 / 6)),
    ]
    assert found["disagreements"][0]["answers"][0]["ranks"] == {"anna": 7, "ben": 6, "cleo": 1}


def test_known_marks(store):
    one = Task("rate", "Why?", (Candidate("a", meta={"overall": 5}),), gold=True)
    store.add([one])
    for name, mark in (("anna", 4), ("ben", 3), ("cleo", 5)):
        store.take(name, one.id, parse_reply("rate", {"overall": mark}))
    assert {opinion.labeler: gold_pairs(one, opinion) for opinion in store.opinions()} == {
        "anna": (1, 1),
        "ben": (1, 0),
        "cleo": (1, 1),
    }
    assert figures(store)["agreement"] is None


def test_what_is_written_has_no_agreement(store):
    one = Task("demonstrate", "Why?")
    store.add([one])
    for name in ("anna", "ben"):
        store.take(name, one.id, parse_reply("demonstrate", {"completion": name}))
    assert task_agreement(list(store.opinions())) is None
    found = figures(store)
    assert (found["agreement"], found["disagreements"], found["answers"]) == (None, [], 2)
    json.dumps(found)


def test_people_from_elsewhere_are_in_the_table(store):
    store.add([task(0, 2)])
    store.take("dora", task(0, 2).id, reply_in(range(2), (1, 2)))
    row = figures(store)["labelers"][-1]
    assert (row["name"], row["answered"], row["median_seconds"], row["last_at"]) == ("dora", 1, None, 1_000_000.0)
