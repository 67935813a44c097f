"""The store: no answer is lost, nothing is done twice, whatever comes in whatever order, from threads and processes."""

import datetime
import json
import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import closing
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from label_site import commits_of
from labelers import Clock

from rlhf_kit.errors import DataError, RlhfKitError
from rlhf_kit.labeling.assignment import Settings
from rlhf_kit.labeling.replies import parse_reply
from rlhf_kit.labeling.store import ADMIN, Progress, Refused, Store
from rlhf_kit.labeling.tasks import Candidate, Task


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    opened = Store(tmp_path / "labels.sqlite", clock)
    opened.set_labelers(["anna", "ben", "cleo"])
    yield opened
    opened.close()


def ranking(number, answers=2, **fields):
    return Task("rank", f"question {number}", tuple(Candidate(f"answer {i}") for i in range(answers)), **fields)


def gold(number):
    candidates = (Candidate("good", rank=1), Candidate("bad", rank=2))
    return Task("rank", f"gold {number}", candidates, gold=True)


def reply(*ranks, note=""):
    return parse_reply(
        "rank", {"answers": {k: {"rank": r} for k, r in zip("ABCDEF", ranks, strict=False)}, "note": note}
    )


FIRST, TIE = reply(1, 2), reply(1, 1)


def answer_all(store, labeler, limit=1000):
    asked = []
    while len(asked) < limit and (one := store.next(labeler)) is not None:
        store.answer(labeler, one.id, FIRST, 1.0)
        asked.append(one.task)
    return asked


# ---- an answer and what comes next, in one


def test_an_answer_with_what_comes_next_is_both_of_them(tmp_path, clock):
    one, other = (Store(tmp_path / f"{name}.sqlite", clock) for name in ("one", "other"))
    for store in (one, other):
        store.configure(Settings(overlap=1, seed=3))
        store.set_labelers(["anna", "ben"])
        store.add([ranking(number) for number in range(3)])
    for _ in range(3):
        apart = one.next("anna")
        together = other.turn("anna")
        assert together.assignment.task == apart.task and together.assignment.order == apart.order
        assert not together.is_over and together.progress == one.progress("anna")
        one.answer("anna", apart.id, FIRST, 2.0)
        with other.together():
            other.answer("anna", together.assignment.id, FIRST, 2.0)
            turn = other.turn("anna")
        following = one.next("anna")
        assert (turn.assignment and turn.assignment.task) == (following and following.task)
        assert (turn.paused, turn.progress) == (one.paused, one.progress("anna"))
    assert turn.assignment is None and turn.is_over
    assert [said.reply for said in other.answered()] == [said.reply for said in one.answered()] == [FIRST] * 3
    one.close()
    other.close()


def test_a_refused_answer_gives_nothing_new_out(store):
    store.add([ranking(number) for number in range(2)])
    given = store.turn("anna").assignment
    with pytest.raises(Refused, match="no such task for this labeler"), store.together():
        store.answer("ben", given.id, FIRST, 1.0)
        store.turn("ben")
    assert store.progress().answered == 0 and store.progress("ben").left == 1, "ben was given nothing"
    with store._database.reading() as connection:
        assert connection.execute("SELECT count(*) FROM assignments").fetchone() == (1,)


# ---- the file


def test_only_its_owner_reads_the_file(store, tmp_path):
    for path in tmp_path.glob("labels.sqlite*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert len(list(tmp_path.glob("labels.sqlite*"))) == 3  # with what belongs to a journal of this kind


def test_what_is_committed_is_on_the_disk(store):
    with store._database.reading() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_files_that_are_no_store_are_left_alone(tmp_path):
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (x)")
    before = other.read_bytes()
    with pytest.raises(RlhfKitError, match="another program's database"):
        Store(other)
    assert other.read_bytes() == before
    text = tmp_path / "text.sqlite"
    text.write_text("no database at all, but long enough to be looked at" * 20)
    with pytest.raises(RlhfKitError, match="not a database"):
        Store(text)
    assert text.read_text().startswith("no database")
    with pytest.raises(RlhfKitError, match="cannot be opened"):
        Store(tmp_path)


def test_a_store_of_another_version_is_refused(tmp_path):
    Store(tmp_path / "a.sqlite").close()
    with sqlite3.connect(tmp_path / "a.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(RlhfKitError, match="version 99, this is version 2"):
        Store(tmp_path / "a.sqlite")


def test_a_closed_store_says_so(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    store.close()
    with pytest.raises(RlhfKitError, match="closed"):
        store.progress()


def test_a_full_disk_is_told_and_loses_nothing(store):
    store.add([ranking(0)])
    one = store.next("anna")
    with store._database.reading() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(RlhfKitError, match="cannot be written: database or disk is full"):
        store.add(ranking(i) for i in range(1, 400))
    assert store.progress().tasks == 1 and store.next("anna") == one
    store.answer("anna", one.id, FIRST, 1.0)
    assert [kept.reply for kept in store.answered()] == [FIRST]


def test_what_is_written_together_waits_for_the_disk_once(store, tmp_path):
    store.add(ranking(i) for i in range(3))
    store.configure(Settings())
    commits = commits_of(store)
    with closing(Store(tmp_path / "labels.sqlite")) as other:
        with store.together():
            for name in ("anna", "ben", "cleo"):
                store.answer(name, store.next(name).id, FIRST, 1.0)
            assert other.progress().answered == 0 and commits == []
        assert other.progress().answered == 3 and commits == ["COMMIT"]


def test_what_raises_among_what_is_written_together_undoes_itself_alone(store):
    store.add([ranking(0), ranking(1)])
    one, other = store.next("anna"), store.next("ben")
    with store.together():
        store.answer("anna", one.id, FIRST, 1.0)
        with pytest.raises(RuntimeError, match="half"):
            store._database.write(half_an_answer)
        store.answer("ben", other.id, TIE, 1.0)
    kept = [("anna", FIRST, 1.0), ("ben", TIE, 1.0)]
    assert [(said.labeler, said.reply, said.seconds) for said in store.answered()] == kept
    with pytest.raises(RuntimeError, match="half"), store.together():  # one that leaves the block undoes all
        store.undo("anna")
        store._database.write(half_an_answer)
    assert [(said.labeler, said.reply, said.seconds) for said in store.answered()] == kept


def test_a_block_within_a_block_undoes_itself_alone(store):
    store.add([ranking(0), ranking(1), ranking(2)])
    one, other = store.next("anna"), store.next("ben")
    commits = commits_of(store)
    with store.together():
        store.answer("anna", one.id, FIRST, 1.0)
        with pytest.raises(Refused, match="no such task for this labeler"), store.together():
            store.answer("ben", other.id, TIE, 1.0)
            store.skip("ben", one.id, "unclear", "", 1.0)
        with store.together():
            store.pause(True)
        assert commits == []
    assert commits == ["COMMIT"] and store.paused and [said.labeler for said in store.answered()] == ["anna"]


def half_an_answer(connection):
    connection.execute("UPDATE assignments SET seconds = 99")
    raise RuntimeError("half of it")


def test_a_full_disk_is_told_to_all_who_write_together(store):
    store.add([ranking(0), ranking(1)])
    one, other = store.next("anna"), store.next("ben")
    with store._database.reading() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(RlhfKitError, match="cannot be written"), store.together():
        store.answer("anna", one.id, FIRST, 1.0)
        with pytest.raises(RlhfKitError, match="cannot be written: database or disk is full"):
            store.add(ranking(i) for i in range(2, 400))
        store._database.write(lambda connection: connection.execute("ROLLBACK"))  # as SQLite may do by itself then
        store.answer("ben", other.id, FIRST, 1.0)
    assert list(store.answered()) == []
    store.answer("anna", one.id, FIRST, 1.0)
    assert len(list(store.answered())) == 1


def test_tasks_may_hold_what_json_does_not(store):
    when = datetime.date(2026, 1, 2)
    store.add([Task("rank", "Why?", (Candidate("a", meta={"at": when}), Candidate("b")), {"meta": {"on": when}})])
    assert store.next("anna").task.candidates[0].meta == {"at": "2026-01-02"}


# ---- people


def test_links_are_the_same_after_a_restart(store, tmp_path):
    tokens = {name: store.token(name) for name in ("anna", "ben", ADMIN)}
    assert len(set(tokens.values())) == 3
    store.close()
    again = Store(tmp_path / "labels.sqlite")
    assert {name: again.token(name) for name in tokens} == tokens
    assert [again.who(token) for token in tokens.values()] == list(tokens)
    assert [again.who(token) for token in ("", "x" * 64, tokens["ben"][:-1], "\ud800")] == [None] * 4
    again.set_labelers(["ben"])
    assert again.who(tokens["anna"]) is None and again.who(tokens["ben"]) == "ben"
    other = Store(tmp_path / "other.sqlite")
    assert other.token("anna") != tokens["anna"]


def test_what_somebody_who_was_left_out_had_open_goes_to_another_at_once(store):
    store.add([ranking(0)])
    begun = store.next("anna")
    store.keep_draft("anna", begun.id, {"note": "so far"})
    assert store.next("ben") is None, "anna has it"
    store.set_labelers(["ben"])
    assert store.next("ben").task == begun.task
    store.set_labelers(["anna", "ben"])
    assert store.next("anna") is None, "ben has it"
    store.skip("ben", store.next("ben").id, "unclear", "", 1.0)
    again = store.next("anna")
    assert again.id == begun.id and again.draft == {"note": "so far"}


@pytest.mark.parametrize("names", [["admin"], [" "], ["a" * 65], ["a\nb"], ["anna", "anna"]])
def test_names_that_cannot_be(store, names):
    with pytest.raises(RlhfKitError, match="labelers"):
        store.set_labelers(names)
    assert store.labelers() == ["anna", "ben", "cleo"]


def test_strangers_are_refused(store):
    store.add([ranking(0)])
    for ask in (lambda: store.next("dora"), lambda: store.undo("dora"), lambda: store.progress("dora")):
        with pytest.raises(Refused, match="no such labeler"):
            ask()


# ---- who is asked what


def test_tasks_are_added_once(store):
    assert store.add([ranking(0), ranking(1), ranking(0)]) == 2
    assert store.add([ranking(1), ranking(2)], batch="later") == 1
    assert [task.prompt for task in store.tasks()] == ["question 0", "question 1", "question 2"]
    assert [task.prompt for task in store.tasks(batch="later")] == ["question 1", "question 2"]
    assert store.task(ranking(2).id) == ranking(2) and store.task("0" * 16) is None
    with pytest.raises(RlhfKitError, match="finite"):
        store.add([ranking(3), ranking(4, priority=float("nan"))])
    assert store.progress().tasks == 3  # all of them or none


def test_higher_priorities_come_first_and_what_is_begun_before_them(store):
    store.add([ranking(0), ranking(1), ranking(2, priority=2.0)])
    first = store.next("anna")
    store.add([ranking(3, priority=5.0)])
    assert store.next("anna") == first and first.task.prompt == "question 2"
    store.answer("anna", first.id, FIRST, 1.0)
    assert [task.prompt for task in answer_all(store, "anna")] == ["question 3", "question 0", "question 1"]


def test_a_task_that_is_added_again_gets_the_higher_priority(store):
    """Also where everything of its priority was given out already."""
    store.add([ranking(0, priority=-9.0), ranking(1), ranking(2), ranking(3, priority=-1.0), ranking(4, priority=-5.0)])
    assert [task.prompt for task in answer_all(store, "anna", limit=2)] == ["question 1", "question 2"]
    held = store.next("anna")
    assert held.task == ranking(3, priority=-1.0)
    assert store.add([ranking(0, priority=3.0), ranking(3, priority=-9.0)]) == 0
    store.answer("anna", held.id, FIRST, 1.0)
    assert [task.prompt for task in answer_all(store, "anna")] == ["question 0", "question 4"]
    assert store.progress().left == 0


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_each_task_has_as_many_labelers_as_were_asked_for(store, overlap):
    store.add(ranking(i) for i in range(7))
    store.configure(Settings(overlap=overlap))
    for _ in range(21):  # in turns, as people do
        for name in ("anna", "ben", "cleo"):
            answer_all(store, name, limit=1)
    given = Counter(one.task.id for one in store.answered())
    assert given == {ranking(i).id: overlap for i in range(7)}
    assert len({(one.task.id, one.labeler) for one in store.answered()}) == 7 * overlap
    assert store.progress() == Progress(7, 7 * overlap, 7 * overlap, 0, 0)


def test_an_open_task_is_nobody_elses(store):
    store.add([ranking(0)])
    assert store.next("anna") is not None
    assert store.next("ben") is None
    assert store.progress("ben").left == 0 and store.progress("anna").left == 1 and store.progress().left == 1


def test_a_lease_that_ran_out_gives_the_task_to_another(store, clock):
    store.add([ranking(0)])
    store.configure(Settings(lease=60.0))
    anna = store.next("anna")
    clock.now += 59
    store.keep_draft("anna", anna.id, {"note": "hm"})  # a sign of life
    clock.now += 59
    assert store.next("ben") is None
    clock.now += 2
    ben = store.next("ben")
    assert ben.task == anna.task and ben.id != anna.id and ben.draft is None
    store.keep_draft("anna", anna.id, {"note": "hm, hm"})  # kept, but the place is ben's
    assert store.next("anna") is None and store.progress("anna").left == 0
    clock.now += 61
    assert store.next("cleo") is not None  # ben has gone too
    clock.now += 2
    store.skip("cleo", store.next("cleo").id, "other", "", 1.0)
    assert store.progress("anna").left == 1
    assert store.next("anna").draft == {"note": "hm, hm"}
    assert store.next("ben") is None


def test_whoever_leaves_without_having_begun_is_waited_for_a_minute(store, clock):
    store.add([ranking(0), ranking(1)])
    anna, ben = store.next("anna"), store.next("ben")
    store.leave("anna", anna.id)
    store.keep_draft("ben", ben.id, {"note": "hm"})
    store.leave("ben", ben.id)
    clock.now += 59
    assert store.next("cleo") is None
    clock.now += 1
    cleo = store.next("cleo")
    assert cleo.task == anna.task
    store.leave("anna", anna.id)  # of no moment by now, as for what is answered
    assert store.next("anna") is None and store.next("cleo") == cleo
    store.answer("cleo", cleo.id, FIRST, 1.0)
    store.leave("cleo", cleo.id)
    clock.now += 61
    assert store.next("anna") is None and store.progress().answered == 1
    store.leave("cleo", store.undo("cleo").id)  # what was said is a draft now
    clock.now += 61
    assert store.next("anna") is None


def test_a_late_answer_is_kept(store, clock):
    store.add([ranking(0)])
    store.configure(Settings(lease=60.0))
    anna = store.next("anna")
    clock.now += 61
    store.answer("anna", anna.id, FIRST, 61.0)  # nobody else had it
    assert [one.late for one in store.answered()] == [False]
    store.add([ranking(1)])
    anna = store.next("anna")
    clock.now += 61
    ben = store.next("ben")
    store.answer("anna", anna.id, FIRST, 61.0)
    store.answer("ben", ben.id, TIE, 2.0)
    assert [(one.labeler, one.late) for one in store.answered()] == [("anna", False), ("anna", True), ("ben", False)]
    assert store.next("cleo") is None


def test_a_skipped_task_goes_to_another_and_is_done_when_all_have_skipped_it(store):
    store.add([ranking(0)])
    for left, name in ((1, "anna"), (1, "ben"), (0, "cleo")):
        one = store.next(name)
        store.skip(name, one.id, "unclear", f"says {name}", 3.0)
        store.skip(name, one.id, "unclear", f"says {name}", 9.0)
        assert store.next(name) is None
        assert store.progress().left == left
    assert store.progress() == Progress(1, 1, 0, 1, 0)
    assert [(one.labeler, one.reason, one.note, one.seconds) for one in store.skipped()] == [
        (name, "unclear", f"says {name}", 3.0) for name in ("anna", "ben", "cleo")
    ]
    store.set_labelers(["anna", "dora"])  # somebody new could still do it
    assert store.progress().left == 1 and store.next("dora") is not None


def test_a_task_that_is_free_again_is_found_behind_others(store, clock):
    store.add(ranking(i) for i in range(5))
    store.configure(Settings(lease=60.0))
    skipped, left = store.next("anna"), store.next("ben")
    assert store.next("cleo").task.prompt == "question 2"
    assert [task.prompt for task in answer_all(store, "cleo")] == ["question 2", "question 3", "question 4"]
    store.skip("anna", skipped.id, "too_hard", "", 1.0)
    assert store.progress("cleo").left == 1
    assert [task.prompt for task in answer_all(store, "cleo")] == ["question 0"]
    clock.now += 61
    assert store.next("cleo").task == left.task


def test_what_skips_can_be(store):
    store.add([ranking(0)])
    one = store.next("anna")
    with pytest.raises(Refused, match="unclear, all_bad, too_hard, harmful, broken, other"):
        store.skip("anna", one.id, "boring", "", 1.0)
    with pytest.raises(Refused, match="too long"):
        store.skip("anna", one.id, "other", "x" * 4001, 1.0)
    assert store.next("anna") == one


def test_one_more_labeler_for_a_task(store):
    store.add([ranking(0), ranking(1)])
    assert len(answer_all(store, "anna")) == 2
    store.more(ranking(1).id)
    assert [task.prompt for task in answer_all(store, "ben")] == ["question 1"]
    assert answer_all(store, "cleo") == []
    store.more(ranking(1).id)
    store.configure(Settings(overlap=2))
    assert {task.prompt for task in answer_all(store, "cleo")} == {"question 0", "question 1"}
    assert store.progress() == Progress(2, 6, 5, 0, 0)  # question 1 wants four, but there are three people
    store.add([gold(0)])
    for wrong in ("0" * 16, gold(0).id):
        with pytest.raises(Refused):
            store.more(wrong)


def test_one_in_so_many_is_gold_once_for_everybody(store):
    store.add([*(ranking(i) for i in range(40)), *(gold(i) for i in range(4))])
    store.configure(Settings(overlap=3, gold_every=5, seed=3))
    places = {}
    for name in ("anna", "ben", "cleo"):
        asked = [task.gold for task in answer_all(store, name)]
        assert len(asked) == 44 and sum(asked) == 4
        assert all(sum(asked[at : at + 5]) == 1 for at in range(0, 20, 5)) and not any(asked[20:])
        places[name] = [index for index, is_gold in enumerate(asked) if is_gold]
    assert len(set(map(tuple, places.values()))) > 1  # a labeler cannot learn from another which they are
    assert store.progress() == Progress(40, 120, 120, 0, 0)
    assert {one.labeler for one in store.answered() if one.task == gold(1)} == {"anna", "ben", "cleo"}


def test_no_gold_without_anything_else_to_do(store):
    store.add([gold(i) for i in range(4)])
    store.configure(Settings(gold_every=1))
    assert store.next("anna") is None


def shown_orders(path, size):
    store = Store(path)
    store.set_labelers(["anna", "ben"])
    store.add(ranking(i, 3) for i in range(120))
    store.configure(Settings(overlap=2, seed=5))
    found = {}
    for name in ("anna", "ben"):
        for _ in range(size):
            one = store.next(name)
            found[name, one.task.id] = one.order
            store.answer(name, one.id, reply(1, 2, 3), 1.0)
    assert {(one.labeler, one.task.id): one.order for one in store.answered()} == found
    store.close()
    return found


def test_the_shown_order_is_drawn_and_kept(tmp_path):
    orders = shown_orders(tmp_path / "a.sqlite", 120)
    again = shown_orders(tmp_path / "b.sqlite", 5)
    assert len(again) == 10 and all(orders[key] == order for key, order in again.items())
    counts = Counter(orders.values())
    # 240 draws of 6 orders: 40 each, standard deviation 5.8; 4.5 of them
    assert set(counts) == set(permutations(range(3))) and all(14 <= count <= 66 for count in counts.values())
    same = sum(orders["anna", ranking(i, 3).id] == orders["ben", ranking(i, 3).id] for i in range(120))
    assert 2 <= same <= 38  # one in six by chance: 20 of 120, standard deviation 4.1


def test_a_pause_lets_people_finish(store):
    store.add([ranking(0), ranking(1)])
    one = store.next("anna")
    store.pause(True)
    assert store.paused and store.next("anna") == one and store.next("ben") is None
    store.answer("anna", one.id, FIRST, 1.0)
    assert store.next("anna") is None
    store.pause(False)
    assert not store.paused and store.next("anna") is not None


# ---- answers


def test_the_same_answer_again_changes_nothing_and_another_is_refused(store):
    store.add([ranking(0), ranking(1)])
    one = store.next("anna")
    store.answer("anna", one.id, FIRST, 4.0)
    store.answer("anna", one.id, FIRST, 99.0)
    with pytest.raises(Refused, match="closed"):
        store.answer("anna", one.id, TIE, 5.0)
    with pytest.raises(Refused, match="closed"):
        store.skip("anna", one.id, "other", "", 5.0)
    with pytest.raises(Refused, match="no such task"):
        store.answer("ben", one.id, FIRST, 5.0)
    with pytest.raises(Refused, match="no such task"):
        store.answer("anna", "0" * 16, FIRST, 5.0)
    (kept,) = store.answered()
    assert (kept.labeler, kept.reply, kept.seconds, kept.order) == ("anna", FIRST, 4.0, one.order)


def test_an_answer_must_fit_its_task(store):
    store.add([ranking(0, 3)])
    one = store.next("anna")
    for wrong in (FIRST, reply(1, 2, 3, 4), parse_reply("compare", {"better": "A"})):
        with pytest.raises(DataError):
            store.answer("anna", one.id, wrong, 1.0)
    assert list(store.answered()) == []


@pytest.mark.parametrize(("claimed", "kept"), [(-5.0, 0.0), (float("nan"), 0.0), (1e9, 86_400.0), (3, 3.0)])
def test_seconds_are_what_they_can_be(store, claimed, kept):
    store.add([ranking(0)])
    store.answer("anna", store.next("anna").id, FIRST, claimed)
    assert [one.seconds for one in store.answered()] == [kept]


def test_drafts_outlive_the_page(store, tmp_path):
    store.add([ranking(0)])
    one = store.next("anna")
    draft = {"answers": {"A": {"rank": 1}}, "note": "ünd \x00"}
    store.keep_draft("anna", one.id, draft)
    with pytest.raises(Refused):
        store.keep_draft("ben", one.id, draft)
    with pytest.raises(Refused, match="too long"):
        store.keep_draft("anna", one.id, {"note": "x" * 400_000})
    store.close()
    again = Store(tmp_path / "labels.sqlite")
    assert again.next("anna").draft == draft
    again.answer("anna", one.id, FIRST, 1.0)
    again.keep_draft("anna", one.id, draft)  # one that was under way
    assert [one.reply for one in again.answered()] == [FIRST]


def test_undo_opens_the_last_one_and_the_one_before_it(store, tmp_path, clock):
    store.add(ranking(i) for i in range(4))
    first = store.next("anna")
    store.answer("anna", first.id, FIRST, 4.0)
    second = store.next("anna")
    store.keep_draft("anna", second.id, {"note": "half"})
    store.skip("anna", second.id, "too_hard", "", 1.0)
    third = store.next("anna")
    opened = store.undo("anna")
    assert (opened.id, opened.draft) == (second.id, {"note": "half"})
    opened = store.undo("anna")
    assert (opened.id, opened.draft, opened.order) == (first.id, FIRST.model_dump(mode="json"), first.order)
    assert store.undo("anna") is None and store.undo("ben") is None
    assert not store.progress("anna").can_undo and list(store.answered()) == [] == list(store.skipped())
    store.close()
    again = Store(tmp_path / "labels.sqlite", clock)
    for one, given in ((first, TIE), (second, FIRST), (third, FIRST)):
        assert again.next("anna").id == one.id
        again.answer("anna", one.id, given, 2.0)
    assert [(one.task.prompt, one.reply) for one in again.answered()] == [
        ("question 0", TIE),
        ("question 1", FIRST),
        ("question 2", FIRST),
    ]
    with again._database.reading() as connection:  # what was said before is not gone
        rows = connection.execute("SELECT state, reply, reason FROM history ORDER BY rowid").fetchall()
    assert [(row[0], row[2]) for row in rows] == [("skipped", "too_hard"), ("answered", None)]
    assert parse_reply("rank", json.loads(rows[1][1])) == FIRST


def test_a_skip_cannot_be_undone_when_another_has_the_task(store):
    store.add([ranking(0)])
    store.skip("anna", store.next("anna").id, "other", "", 1.0)
    ben = store.next("ben")
    with pytest.raises(Refused, match="another labeler"):
        store.undo("anna")
    store.skip("ben", ben.id, "other", "", 1.0)
    assert store.undo("anna") is not None


def test_answers_that_were_given_elsewhere(store):
    task = ranking(0, 3)
    store.add([task])
    assert store.take("dora", task.id, reply(1, 2, 3), order=(2, 0, 1))
    assert not store.take("dora", task.id, reply(1, 2, 3), order=(2, 0, 1))
    with pytest.raises(Refused, match="another answer"):
        store.take("dora", task.id, reply(1, 2, 3))
    with pytest.raises(Refused, match="cannot be"):
        store.take("emil", task.id, reply(1, 2, 3), order=(0, 0, 1))
    with pytest.raises(Refused, match="no such task"):
        store.take("emil", "0" * 16, reply(1, 2, 3))
    with pytest.raises(DataError):
        store.take("emil", task.id, FIRST)
    assert [(one.labeler, one.order, one.reply) for one in store.answered()] == [("dora", (2, 0, 1), reply(1, 2, 3))]
    assert store.labelers() == ["anna", "ben", "cleo"] and store.who(store.token("dora")) is None
    assert store.next("anna") is None  # it has its answer


def test_batches_share_tasks(store):
    store.add([ranking(0), ranking(1)], batch="one")
    store.add([ranking(1), ranking(2)], batch="two")
    answer_all(store, "anna")
    assert [one.task.prompt for one in store.answered(batch="two")] == ["question 1", "question 2"]
    assert list(store.answered(batch="three")) == []


# ---- speed


def steps_of(store, ask):
    """Instructions of SQLite's machine: a measure of work that no other load on the computer changes."""
    count = 0

    def tell():
        nonlocal count
        count += 1

    def watched(connection):
        connection.set_progress_handler(tell, 1)
        return connection

    database = store._database
    database._idle.append(watched(database._idle.pop()))
    ask()
    database._idle[-1].set_progress_handler(None, 0)
    return count


def test_what_comes_next_is_found_without_a_look_at_all_tasks(tmp_path):
    steps = {}
    for size in (100, 5000):
        store = Store(tmp_path / f"{size}.sqlite")
        store.set_labelers(["anna", "ben"])
        store.add(ranking(i) for i in range(size))

        def answer(connection, size=size):
            connection.execute(
                """INSERT INTO assignments (id, task, labeler, shown, state, opened, until, reply, seconds, at)
                SELECT l.name || t.number, t.number, l.number, '[0, 1]', 'answered', 0, 0, '{}', 1, t.number
                FROM tasks t, labelers l WHERE t.number <= ?""",
                (size - 10,),
            )

        store.configure(Settings(overlap=3))  # every task stays open for a third one
        store._database.write(answer)
        store.answer("anna", store.next("anna").id, FIRST, 1.0)  # passes over what is done, once
        steps[size] = steps_of(store, lambda store=store: store.next("anna"))
        store.close()
    assert 50 < steps[100] < 2000
    assert steps[5000] < 1.5 * steps[100]


def test_how_far_somebody_is_is_known_without_a_look_at_all_tasks(tmp_path):
    steps = {}
    for size in (100, 5000):
        store = Store(tmp_path / f"{size}.sqlite")
        store.set_labelers(["anna"])
        store.add(ranking(i) for i in range(size))
        store.configure(Settings())
        steps[size] = steps_of(store, lambda store=store: store.turn("anna"))
        assert store.progress("anna").left == size
        store.close()
    assert 50 < steps[100] < 2000
    assert steps[5000] < 1.5 * steps[100]


# ---- several at once


def test_threads_write_at_once(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    names = [f"labeler {i}" for i in range(12)]
    store.set_labelers(names)
    store.add(ranking(i) for i in range(60))
    store.configure(Settings(overlap=2))
    wrong = []

    def work(name):
        try:
            while (one := store.next(name)) is not None:
                with pytest.raises(DataError):  # one that fails leaves the others alone
                    store.answer(name, one.id, reply(1, 2, 3), 1.0)
                store.answer(name, one.id, FIRST, 1.0)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert wrong == []
    assert Counter(one.task.id for one in store.answered()) == {ranking(i).id: 2 for i in range(60)}
    assert len({(one.task.id, one.labeler) for one in store.answered()}) == 120


def label_as(path, names, wrong):
    """What each of the processes does."""
    try:
        store = Store(path)
        store.configure(Settings(overlap=2))
        store.set_labelers([f"labeler {i}" for i in range(4)])
        store.add(ranking(i) for i in range(40))
        for name in names * 40:
            if (one := store.next(name)) is not None:
                store.answer(name, one.id, FIRST, 1.0)
        store.close()
    except BaseException as error:
        wrong.put(repr(error))


def test_processes_share_a_file(tmp_path):
    path, spawn = tmp_path / "a.sqlite", multiprocessing.get_context("spawn")
    wrong = spawn.Queue()
    shares = (["labeler 0", "labeler 1"], ["labeler 2", "labeler 3"])
    processes = [spawn.Process(target=label_as, args=(path, names, wrong)) for names in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0] and wrong.empty()
    store = Store(path)
    assert store.progress() == Progress(40, 80, 80, 0, 0)
    assert Counter(one.task.id for one in store.answered()) == {ranking(i).id: 2 for i in range(40)}


_KILLED = """
import sys
from pathlib import Path
from rlhf_kit.labeling.replies import parse_reply
from rlhf_kit.labeling.store import Store
store = Store(Path(sys.argv[1]))
said = parse_reply("rank", {"answers": {"A": {"rank": 1}, "B": {"rank": 2}}})
while (one := store.next("anna")) is not None:
    store.answer("anna", one.id, said, 1.0)
    print(one.task.id, flush=True)
"""


def test_what_was_acknowledged_outlives_a_killed_process(store, tmp_path):
    store.add(ranking(i) for i in range(3000))
    store.close()
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "labels.sqlite")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        acknowledged = [process.stdout.readline().strip() for _ in range(25)]
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += process.stdout.read().split()
    assert process.returncode == -signal.SIGKILL and 25 <= len(acknowledged) < 3000
    again = Store(tmp_path / "labels.sqlite")
    kept = [one.task.id for one in again.answered()]
    assert kept[: len(acknowledged)] == acknowledged
    assert len(kept) - len(acknowledged) in (0, 1)  # one may have been kept and not been told
    assert again.next("anna").task.prompt == f"question {len(kept)}"


# ---- anything, in any order


class Labeling(RuleBasedStateMachine):
    """A plain account of who has said what, beside the store."""

    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.store = Store(Path(self.directory.name) / "a.sqlite", self.clock)
        self.names = ["a", "b", "c"]
        self.store.set_labelers(self.names)
        self.store.add([*(ranking(i) for i in range(4)), gold(0)])
        self.store.configure(Settings(overlap=2, gold_every=3, lease=100.0))
        self.said = {}  # (labeler, task): reply, or a reason to skip
        self.order = {name: [] for name in self.names}
        self.seen = {}  # (labeler, task): assignment
        self.wanted = {ranking(i).id: 2 for i in range(4)}
        self.ever = set()

    def teardown(self):
        self.store.close()
        self.directory.cleanup()

    @rule(name=st.sampled_from("abc"), choice=st.sampled_from(["first", "tie", "skip", "wait", "leave"]))
    def work(self, name, choice):
        one = self.store.next(name)
        if one is None:
            held = self.held()
            assert all((name, task) in self.ever or held[task] >= self.wanted[task] for task in self.wanted)
            return
        key = name, one.task.id
        self.ever.add(key)
        assert key not in self.said
        assert self.seen.setdefault(key, one.id) == one.id
        self.close(key, choice)

    @rule(data=st.data(), choice=st.sampled_from(["first", "tie", "skip"]))
    def come_back(self, data, choice):
        """A page that was open all the time sends its answer."""
        waiting = sorted(key for key in self.seen if key not in self.said)
        if waiting:
            key = data.draw(st.sampled_from(waiting))
            self.close(key, choice)

    def close(self, key, choice):
        name, task = key
        if choice == "leave":
            self.store.leave(name, self.seen[key])
        if choice in ("wait", "leave"):
            return
        if choice == "skip":
            self.store.skip(name, self.seen[key], "other", "", 1.0)
        else:
            self.store.answer(name, self.seen[key], FIRST if choice == "first" else TIE, 1.0)
        self.said[key] = {"skip": "other", "first": FIRST, "tie": TIE}[choice]
        self.order[name].append(task)

    @rule(data=st.data())
    def scribble(self, data):
        """A page that was open all the time keeps a draft."""
        if self.seen:
            name, task = data.draw(st.sampled_from(sorted(self.seen)))
            self.store.keep_draft(name, self.seen[name, task], {"note": task})

    @rule(name=st.sampled_from("abc"))
    def undo(self, name):
        try:
            one = self.store.undo(name)
        except Refused:
            assert self.said[name, self.order[name][-1]] == "other"
            return
        assert (one is None) == (not self.order[name])
        if one is not None:
            assert one.task.id == self.order[name].pop()
            del self.said[name, one.task.id]
            assert self.store.next(name) == one

    @rule(seconds=st.sampled_from([1.0, 60.0, 101.0]))
    def wait(self, seconds):
        self.clock.now += seconds

    @precondition(lambda self: max(self.wanted.values()) < 4)
    @rule(number=st.integers(0, 3))
    def more(self, number):
        self.store.more(ranking(number).id)
        self.wanted[ranking(number).id] += 1

    @invariant()
    def nothing_is_lost_or_added(self):
        answers = {key: said for key, said in self.said.items() if said != "other"}
        assert {(one.labeler, one.task.id): one.reply for one in self.store.answered()} == answers
        assert {(one.labeler, one.task.id) for one in self.store.skipped()} == self.said.keys() - answers.keys()

    def held(self):
        """Of each task, how many have answered it in time or have a lease that lasts."""
        with self.store._database.reading() as connection:
            query = """SELECT t.id, count(*) FROM tasks t JOIN assignments a ON a.task = t.number WHERE NOT t.gold
                AND (a.state = 'answered' OR (a.state = 'open' AND a.until > ?)) GROUP BY t.number"""
            return Counter(dict(connection.execute(query, (self.clock.now,)).fetchall()))

    @invariant()
    def free_places_are_counted(self):
        with self.store._database.reading() as connection:
            (counted,) = connection.execute("SELECT value FROM facts WHERE name = 'free'").fetchone()
            query = "SELECT count(*) FROM tasks WHERE gold = 0 AND places > answers + leases"
            assert (int(counted),) == connection.execute(query).fetchone()

    @invariant()
    def nobody_works_in_vain(self):
        late = Counter(one.task.id for one in self.store.answered() if one.late)
        held = self.held()
        assert all(held[task] - late[task] <= wanted for task, wanted in self.wanted.items())


TestLabeling = Labeling.TestCase
TestLabeling.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
