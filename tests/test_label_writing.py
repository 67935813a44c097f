"""How what labelers do gets to the disk: in its order, many at once, each told of its own fate alone."""

import asyncio
import threading
from contextlib import closing

import pytest
from label_site import commits_of, rank_task
from starlette.responses import PlainTextResponse

from rlhf_kit.errors import RlhfKitError
from rlhf_kit.labeling.replies import parse_reply
from rlhf_kit.labeling.store import Refused, Settings, Store
from rlhf_kit.labeling.web.writing import Writer

SAID = parse_reply("rank", {"answers": {"A": {"rank": 1}, "B": {"rank": 2}, "C": {"rank": 3}}})
NAMES = [f"labeler {number}" for number in range(40)]


@pytest.fixture
def store(tmp_path):
    with closing(Store(tmp_path / "store.sqlite")) as opened:
        opened.set_labelers(NAMES)
        opened.add(rank_task(f"question {number}") for number in range(40))
        opened.configure(Settings())
        yield opened


def answer(store, name):
    """The change of somebody who answers what is given to them."""

    def change():
        store.answer(name, store.next(name).id, SAID, 1.0)
        return name

    return change


def told(name):
    return PlainTextResponse(name)


def run(store, *jobs):
    """What all jobs of (change, show) that come at once are told."""

    async def all_at_once():
        writer = Writer(store)
        told_to_all = asyncio.gather(*(writer.write(*job) for job in jobs), return_exceptions=True)
        return await asyncio.wait_for(told_to_all, 30)

    return asyncio.run(all_at_once())


def test_what_comes_at_once_goes_to_the_disk_at_once_and_in_its_order(store):
    commits = commits_of(store)
    answers = run(store, *((answer(store, name), told) for name in NAMES))
    assert len(commits) == 3  # 16, 16 and 8
    assert [one.body.decode() for one in answers] == NAMES
    assert [said.labeler for said in store.answered()] == NAMES  # task by task


def test_nobody_is_told_before_it_is_on_the_disk(store):
    seen = []

    def show(name):
        with closing(Store(store.path)) as other:
            seen.append(name in {said.labeler for said in other.answered()})
        return told(name)

    run(store, *((answer(store, name), show) for name in NAMES[:5]))
    assert seen == [True] * 5


def test_a_change_that_raises_is_its_own_alone(store):
    def wrong():
        store.answer(NAMES[1], "nothing", SAID, 1.0)

    def bug(_):
        raise ZeroDivisionError

    first, second, third, last = run(
        store,
        (answer(store, NAMES[0]), told),
        (wrong, told),
        (answer(store, NAMES[2]), bug),
        (list, lambda _: told("x")),
    )
    assert first.body == b"labeler 0" and last.body == b"x"
    assert isinstance(second, Refused) and isinstance(third, ZeroDivisionError)
    assert [said.labeler for said in store.answered()] == [NAMES[0], NAMES[2]]


def test_a_disk_that_fails_is_told_to_all_and_later_ones_are_kept(store):
    def fail():
        store._database.write(lambda connection: connection.execute("ROLLBACK"))

    found = run(
        store, (answer(store, NAMES[0]), told), (fail, told), *((answer(store, one), told) for one in NAMES[1:])
    )
    assert all(isinstance(one, RlhfKitError) and "cannot be written" in str(one) for one in found[:16])
    assert [one.body.decode() for one in found[16:]] == NAMES[15:]
    assert [said.labeler for said in store.answered()] == NAMES[15:]


def test_what_takes_long_to_show_does_not_hold_up_others(store):
    later = threading.Event()

    def slow(name):
        assert later.wait(20)
        return told(name)

    async def go():
        writer = Writer(store)
        first = asyncio.create_task(writer.write(answer(store, NAMES[0]), slow))
        await asyncio.sleep(0.2)  # it is on the disk, and being shown
        second = await asyncio.wait_for(writer.write(answer(store, NAMES[1]), told), 10)
        assert not first.done()
        later.set()
        return [(await first).body, second.body]

    assert asyncio.run(go()) == [b"labeler 0", b"labeler 1"]


def test_one_who_has_gone_leaves_the_others_alone(store):
    async def go():
        writer = Writer(store)
        tasks = [asyncio.create_task(writer.write(answer(store, name), told)) for name in NAMES[:3]]
        await asyncio.sleep(0)
        tasks[1].cancel()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)

    first, gone, last = asyncio.run(go())
    assert (first.body, last.body) == (b"labeler 0", b"labeler 2") and isinstance(gone, asyncio.CancelledError)
    assert len(list(store.answered())) == 3
