"""A judge that fails: nothing already judged is lost or asked twice, and the rest is asked for afterwards."""

from __future__ import annotations

import email.utils
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fake_judge import FakeJudge, Fault, completion, error
from judged import PATIENCE, QUESTIONS, ask, endpoint

from rlhf_kit.errors import RlhfKitError
from rlhf_kit.evaluation.judges.base import Judgement
from rlhf_kit.evaluation.judges.endpoint import LEDGER

TOTAL = 60


@pytest.fixture
def server() -> Iterator[FakeJudge]:
    with FakeJudge() as judge:
        yield judge


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Judgement:
    """What comes out where nothing fails."""
    with FakeJudge() as judge:
        return ask(endpoint(judge), QUESTIONS, tmp_path_factory.mktemp("sound"))


def same(one: Judgement, other: Judgement) -> None:
    """All arrays are equal."""
    for name in ("prompt", "ours", "theirs", "our_answer", "their_answer", "outcome", "orders"):
        np.testing.assert_array_equal(getattr(one.verdicts, name), getattr(other.verdicts, name))
    assert one.flags is not None and other.flags is not None and one.flags.keys() == other.flags.keys()
    for flag, shares in one.flags.items():
        np.testing.assert_array_equal(shares, other.flags[flag])
    assert one.missing == other.missing == 0


def kept(directory: Path) -> list[dict[str, object]]:
    file = directory / LEDGER
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


PASSING = {
    "time-outs": Fault(skip=5, times=3, hang=4),
    "503": Fault(skip=5, times=4, status=503, body=b"busy"),
    "an error page": Fault(skip=5, times=4, status=502, body=b"<html>", headers={"Content-Type": "text/html"}),
    "resets": Fault(skip=5, times=4, cut=-1),
    "closed at once": Fault(skip=5, times=4, cut=0),
    "half a body": Fault(skip=5, times=4, cut=40),
    "half a JSON": Fault(skip=5, times=4, body=completion("{}")[:40]),
    "no JSON at all": Fault(skip=5, times=4, body=b"<html>", headers={"Content-Type": "text/html"}),
    "no completion": Fault(skip=5, times=4, body=b'{"choices": []}'),
    "null choices": Fault(skip=5, times=4, body=b'{"choices": null}'),
    "nonsense": Fault(skip=5, times=4, content="I like both."),
    "wrong values": Fault(skip=5, times=4, content='{"better": "C"}'),
    "empty": Fault(skip=5, times=4, content=""),
    "cut off": Fault(skip=5, times=4, content='{"better": "A", "A"', finish="length"),
    "too many": Fault(skip=5, times=4, status=429, body=error("slow down", "rate_limit_exceeded")),
}


@pytest.mark.parametrize("what", PASSING)
def test_a_fault_that_passes_changes_nothing(server: FakeJudge, tmp_path: Path, sound: Judgement, what: str) -> None:
    fault = PASSING[what]
    server.faults = [Fault(**vars(fault))]
    said = ask(endpoint(server, retries=6, timeout=3 if fault.hang else 20), QUESTIONS, tmp_path)
    same(said, sound)
    assert set(server.judged.values()) == {1} and len(server.judged) == TOTAL
    assert len(server.seen) == TOTAL + fault.times and len(kept(tmp_path)) == TOTAL


LASTING = {
    "time-outs": (Fault(skip=21, hang=4), "no reply within 3 s"),
    "503": (Fault(skip=21, status=503, body=b"busy"), "status 503"),
    "resets": (Fault(skip=21, cut=-1), "no connection, or one that broke off"),
    "half a body": (Fault(skip=21, cut=40), "no connection, or one that broke off"),
    "half a JSON": (Fault(skip=21, body=completion("{}")[:40]), "cannot be read"),
    "nonsense": (Fault(skip=21, content="I like both."), "no JSON object in the reply"),
    "cut off": (Fault(skip=21, content='{"better": "A"', finish="length"), "cut off at max_tokens"),
    "too many": (Fault(skip=21, status=429, headers={"Retry-After": "0"}, body=error("slow")), "too many requests"),
    "quota": (Fault(skip=21, status=429, body=error("You exceeded", "insufficient_quota")), "the quota is used up"),
    "401": (Fault(skip=21, status=401, body=error("bad key")), "the key is refused"),
    "402": (Fault(skip=21, status=402, body=error("pay")), "payment is required"),
    "403": (Fault(skip=21, status=403, body=error("no")), "the key may not do this"),
    "404": (Fault(skip=21, status=404, body=error("no such model")), "no such model"),
    "400": (Fault(skip=21, status=400, body=error("never")), "refused: never"),
}
AT_ONCE = ("quota", "401", "402", "403", "404")


@pytest.mark.parametrize("what", LASTING)
def test_a_fault_that_lasts_stops_in_time_and_is_resumed(
    server: FakeJudge, tmp_path: Path, sound: Judgement, what: str
) -> None:
    fault, says = LASTING[what]
    server.faults = [Fault(**vars(fault))]
    judge = endpoint(server, timeout=3, retries=0) if fault.hang else endpoint(server)
    with pytest.raises(RlhfKitError, match=says) as failure:
        judge(QUESTIONS, tmp_path, lambda done: None)
    words = str(failure.value)
    assert f"21 of {TOTAL} verdicts are there and kept in {tmp_path / LEDGER}" in words and "\n" not in words
    assert "The same command asks only for the rest" in words
    assert len(kept(tmp_path)) == 21 == server.judged.total()
    # Not into the wall a thousand times: those under way, or a few in a row with all their retries.
    vain = len(server.seen) - 21
    assert vain <= PATIENCE.threads if what in AT_ONCE else vain <= (PATIENCE.in_a_row + PATIENCE.threads) * 3
    server.faults = []
    same(ask(endpoint(server), QUESTIONS, tmp_path), sound)
    assert set(server.judged.values()) == {1} and server.judged.total() == TOTAL == len(kept(tmp_path))


def test_a_server_that_is_gone(tmp_path: Path, sound: Judgement) -> None:
    with FakeJudge() as gone:
        judge = endpoint(gone)
    with pytest.raises(RlhfKitError, match=rf"0 of {TOTAL} .*8 in a row had no answer; ") as failure:
        judge(QUESTIONS, tmp_path, lambda done: None)
    count = re.search(r"; (\d+) x no connection", str(failure.value))
    assert count is not None and 8 <= int(count[1]) < 8 + PATIENCE.threads, "those that were under way are counted too"
    assert not kept(tmp_path)


def test_part_is_enough_where_it_was_asked_for(
    server: FakeJudge, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Answers of the third policy to two prompts are never judged: 2 prompts x 2 pairs; one order of a third prompt's.
    server.faults = [
        Fault(
            of=lambda shown: shown[0] in ("prompt 2", "prompt 7") and any("c false" in text for text in shown),
            status=500,
        ),
        Fault(of=lambda shown: shown[0] == "prompt 4" and "c false" in shown[1] and shown[2][0] == "a", status=500),
    ]
    with pytest.raises(RlhfKitError, match=f"{TOTAL - 9} of {TOTAL} .*; 9 x status 500"):
        endpoint(server, in_a_row=99)(QUESTIONS, tmp_path, lambda done: None)
    with caplog.at_level(logging.WARNING):
        said = ask(endpoint(server, partial=True, in_a_row=99), QUESTIONS, tmp_path)
    assert f"{TOTAL - 9} of {TOTAL} verdicts are there" in caplog.text and "Goes on with those" in caplog.text
    assert said.missing == 5 and len(said.verdicts.outcome) == 25
    met = {(p, a, b) for p, a, b in zip(said.verdicts.prompt, said.verdicts.ours, said.verdicts.theirs, strict=True)}
    assert (4, 0, 2) not in met and (4, 1, 2) in met and (2, 0, 1) in met and (2, 0, 2) not in met
    assert said.flags is not None and np.isnan(said.flags["truthful"][2]).tolist() == [False, False, True]


def test_nothing_at_all_is_not_a_part(server: FakeJudge, tmp_path: Path) -> None:
    server.faults = [Fault(status=401, body=error("bad key"))]
    with pytest.raises(RlhfKitError, match=f"0 of {TOTAL}"):
        endpoint(server, partial=True)(QUESTIONS, tmp_path, lambda done: None)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for_by_everybody(server: FakeJudge, tmp_path: Path, form: str) -> None:
    wait = "1" if form == "seconds" else email.utils.formatdate(time.time() + 60, usegmt=True)
    server.faults = [Fault(skip=10, times=1, status=429, headers={"Retry-After": wait}, body=error("slow"))]
    ask(endpoint(server, longest=1.0), QUESTIONS, tmp_path)
    longest = max(b - a for a, b in pairwise(server.times))
    assert 0.8 < longest < 30  # no thread asked meanwhile, and a long wait is cut short


def test_no_more_at_once_than_was_said(server: FakeJudge, tmp_path: Path) -> None:
    server.delay = 0.02
    ask(endpoint(server, threads=3), QUESTIONS, tmp_path)
    assert server.most_at_once == 3


def test_nonsense_is_asked_again_twice_and_no_more(server: FakeJudge, tmp_path: Path) -> None:
    server.faults = [Fault(of=lambda shown: shown[0] == "prompt 3", content="Hm.")]
    with pytest.raises(RlhfKitError, match="6 x no JSON object"):
        endpoint(server, retries=9, in_a_row=99)(QUESTIONS, tmp_path, lambda done: None)
    assert len(server.seen) - server.judged.total() == 6 * 3


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from judged import QUESTIONS, PATIENCE
from rlhf_kit.evaluation.judges.chat import Address
from rlhf_kit.evaluation.judges.endpoint import EndpointJudge, EndpointSettings
judge = EndpointJudge("judge-1", Address.parse({address!r}), EndpointSettings(timeout=20, patience=PATIENCE))
print("ready", flush=True)
sys.stdin.readline()
judge(QUESTIONS, Path({kept!r}), lambda done: None)
print("done", flush=True)
"""


def started(server: FakeJudge, kept: Path) -> subprocess.Popen[str]:
    """Another Python that judges; it has imported everything and waits."""
    script = SCRIPT.format(tests=str(Path(__file__).parent), address=server.address, kept=str(kept))
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def until(server: FakeJudge, judged: int) -> None:
    limit = time.monotonic() + 120
    while server.judged.total() < judged:
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_ended_in_the_middle(
    server: FakeJudge, tmp_path: Path, sound: Judgement, which: signal.Signals
) -> None:
    server.delay = 0.2
    process = started(server, tmp_path)
    go(process)
    until(server, 20)
    process.send_signal(which)
    _, words = process.communicate(timeout=300)
    assert process.returncode != 0
    before = server.judged.total()
    had = len(kept(tmp_path)) if which == signal.SIGINT else len((tmp_path / LEDGER).read_bytes().splitlines())
    assert 20 - PATIENCE.threads <= had < TOTAL
    if which == signal.SIGINT:  # what was under way has come in, and nothing was asked afterwards
        assert had == before == len(server.seen) and f"{had} of {TOTAL} verdicts are there and kept" in words
    server.delay = 0
    same(ask(endpoint(server), QUESTIONS, tmp_path), sound)
    again = [shown for shown, times in server.judged.items() if times > 1]
    assert len(again) <= (PATIENCE.threads if which == signal.SIGKILL else 0)  # those under way when it was killed
    assert len(server.judged) == TOTAL == len(kept(tmp_path))


def test_two_processes_on_one_ledger(server: FakeJudge, tmp_path: Path, sound: Judgement) -> None:
    server.delay = 0.03
    processes = [started(server, tmp_path) for _ in range(2)]
    for process in processes:
        go(process)
    for process in processes:
        out, words = process.communicate(timeout=300)
        assert (process.returncode, out) == (0, "done\n"), words
    assert len(kept(tmp_path)) == TOTAL == len({entry["key"] for entry in kept(tmp_path)})
    assert len(server.judged) == TOTAL
    asked = len(server.seen)
    same(ask(endpoint(server), QUESTIONS, tmp_path), sound)
    assert len(server.seen) == asked


@pytest.mark.parametrize("late", [0, 60])
def test_two_runs_share_the_work(server: FakeJudge, tmp_path: Path, late: int) -> None:
    """Side by side they would ask everything twice; in orders of their own they seldom meet."""
    server.delay = 0.02
    many = [replace(q, prompt=f"{q.prompt} {n}") for q in QUESTIONS for n in range(5)]
    judge = endpoint(server)
    runs = [threading.Thread(target=judge, args=(many, tmp_path, lambda done: None)) for _ in range(2)]
    runs[0].start()
    until(server, late)
    runs[1].start()
    for run in runs:
        run.join(300)
    assert len(server.judged) == 5 * TOTAL == len(kept(tmp_path))
    assert server.judged.total() - 5 * TOTAL <= 90  # about 4 ln(300) are expected


def test_an_edited_verdict_is_asked_again(server: FakeJudge, tmp_path: Path, sound: Judgement) -> None:
    ask(endpoint(server), QUESTIONS, tmp_path)
    lines = (tmp_path / LEDGER).read_text().splitlines()
    lines[3] = lines[3].replace('"better": "', '"better": "x')
    (tmp_path / LEDGER).write_text("\n".join(lines) + "\n")
    same(ask(endpoint(server), QUESTIONS, tmp_path), sound)
    assert len(server.seen) == TOTAL + 1
