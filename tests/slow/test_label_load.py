"""Fifty labelers at once on a real server: none of 5,000 answers lost, none twice, and none later than people notice.

Each labeler pauses 0.6 s on average before an answer, about twenty times less than a person who reads, or not at all:
then all fifty always wait. What it takes stands in `benchmarks/RESULTS.md`; the bars leave room for slower machines,
and hold where nothing else runs: where others had a tenth of the processors or more in each of three runs, it is told
and left out, while what must not be lost is looked for in each of them. The limits are those that are shipped.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from label_load import Book, Server, label_all, write_tasks

from rlhf_kit.labeling.store import Store
from rlhf_kit.validation import Verdict, validate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="ends a process as only POSIX can"),
]
LABELERS = [f"labeler-{number:02d}" for number in range(50)]


def start(folder: Path, tasks: int) -> Server:
    source = write_tasks(folder / "tasks.jsonl", tasks)
    server = Server(folder, [str(source), "--labelers", ",".join(LABELERS)])
    server.start()
    return server


def check(server: Server, book: Book, tasks: int) -> None:
    """The store and the exported file say what was acknowledged, each answer once."""
    with closing(Store(server.store)) as store:
        stored = list(store.answered())
    assert sorted(str(answered.task.prompt) for answered in stored) == sorted(f"Question {n}" for n in range(tasks))
    said = {(answered.labeler, str(answered.task.prompt)): answered for answered in stored}
    assert book.answers.keys() <= said.keys()
    for place, ranks in book.answers.items():
        answered = said[place]
        shown = [answered.task.candidates[index].text for index in answered.order]
        assert {text: answered.reply.answers[key].rank for key, text in zip("ABCD", shown, strict=True)} == ranks
    rows = [json.loads(line) for line in server.out.read_text(encoding="utf-8").splitlines()]
    assert sorted((row["labeler"], row["prompt"]) for row in rows) == sorted(said)
    (verdict,) = validate([str(server.out)])  # nothing is found
    assert isinstance(verdict, Verdict)


@pytest.mark.parametrize(("think", "bar"), [(0.6, 0.1), (0.0, 0.6)])
def test_fifty_labelers_give_5000_answers(tmp_path, think, bar):
    seen = []
    for number in range(3):  # others may have the processors or the disk for a while
        (tmp_path / str(number)).mkdir()
        before = processor_seconds()
        late = latency_of_5000_answers(tmp_path / str(number), think)
        of_all, of_others, ours = np.subtract(processor_seconds(), before)
        seen.append((round(late, 3), round((of_others - ours) / of_all, 2)))
        if late < bar:
            return
    quiet = [late for late, others in seen if others < 0.1]
    said = f"95 % of the answers within so many seconds, while others had this share of the processors: {seen}"
    assert not quiet, said
    pytest.skip(said)


def processor_seconds():
    """All that there were; those that anybody had; ours, with the servers that have ended."""
    machine, mine = psutil.cpu_times(), os.times()
    spare = machine.idle + getattr(machine, "iowait", 0.0)
    guests = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)  # count as user already
    return sum(machine) - guests, sum(machine) - guests - spare, sum(mine[:4])


def latency_of_5000_answers(folder, think):
    """Seconds in which 95 % of them are acknowledged; that all are there, once, is seen each time."""
    server, book = start(folder, 5000), Book()
    try:
        asyncio.run(label_all(server.links.items(), book, think=think))
    finally:
        code, _ = server.end()
    assert code == 0 and server.log == ""
    assert len(book.answers) == 5000 and book.broken == 0 and book.refused == []
    check(server, book, 5000)
    assert len({labeler for labeler, _ in book.answers}) == 50
    return book.percentile(0.95)


def test_a_server_that_is_killed_has_lost_nothing_that_it_acknowledged(tmp_path):
    server, book = start(tmp_path, 3000), Book()
    kills: list[int] = []

    async def run() -> None:
        async def kill() -> None:
            for count in (400, 1200, 2000):
                while len(book.answers) < count:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(server.kill)
                kills.append(len(book.answers))
                with closing(Store(server.store)) as store:
                    stored = {(answered.labeler, str(answered.task.prompt)) for answered in store.answered()}
                assert book.answers.keys() <= stored
                await asyncio.to_thread(server.start)

        links = dict(server.links)
        await asyncio.gather(label_all(links.items(), book, think=0.05), kill())
        assert server.links == links

    try:
        asyncio.run(run())
    finally:
        code, _ = server.end()
    assert code == 0
    assert len(kills) == 3 and kills[-1] < 3000 and book.broken >= 3
    check(server, book, 3000)
