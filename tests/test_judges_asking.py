"""The parts of a judge behind an endpoint: the ledger of what was said, and how one asks what may fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from judged import PATIENCE

from rlhf_kit.errors import RlhfKitError
from rlhf_kit.evaluation.judges.asking import Hopeless, Patience, Unanswered, ask_all
from rlhf_kit.evaluation.judges.ledger import Ledger, key_of


def test_the_first_of_two_verdicts_counts(tmp_path: Path) -> None:
    one, other = (Ledger(tmp_path / "l.jsonl", lambda entry: "better" in entry) for _ in range(2))
    one.keep({"k": {"better": "A"}})
    other.keep({"k": {"better": "B"}, "l": {"better": "B"}})
    one.refresh()
    assert [ledger.get(key) for ledger in (one, other) for key in "kl"] == [
        {"key": "k", "better": "A"},
        {"key": "l", "better": "B"},
    ] * 2


def test_half_a_line_is_no_entry_and_is_mended(tmp_path: Path) -> None:
    file = tmp_path / "l.jsonl"
    whole = b'{"key": "a", "n": 1}\n'
    file.write_bytes(whole + b'{"key": "b", "n": 2}\nno JSON\n[1]\n{"n": 3}\n{"key": "d", "m": 1}\n{"key": "c", "n"')
    ledger = Ledger(file, lambda entry: "n" in entry)
    assert [ledger.get(key) for key in "abcd"] == [{"key": "a", "n": 1}, {"key": "b", "n": 2}, None, None]
    ledger.keep({"c": {"n": 3}, "a": {"n": 9}, "d": {"n": 4}})
    assert file.read_bytes().endswith(b'{"key": "d", "m": 1}\n{"key": "c", "n": 3}\n{"key": "d", "n": 4}\n')
    assert file.read_bytes().startswith(whole)
    file.write_bytes(b"")  # somebody begins it anew
    ledger.keep({"e": {"n": 5}})
    assert file.read_bytes() == b'{"key": "e", "n": 5}\n'
    with pytest.raises(RlhfKitError, match="cannot be read or written"):
        Ledger(tmp_path, lambda entry: True)


def test_keys_tell_contents_apart() -> None:
    contents = [("ab", "c"), ("a", "bc"), ("ab", "c", ""), ("c", "ab"), (("ab", "c"),), ("ab", None)]
    assert len({key_of(*content) for content in contents}) == len(contents) and key_of("a") == key_of("a")


def test_a_bug_is_not_a_fault_of_the_judge() -> None:
    def broken(task: int) -> None:
        if task == 3:
            raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        ask_all(range(100), broken, PATIENCE)


def test_successes_between_failures_are_no_row() -> None:
    def every_other(task: int) -> None:
        if task % 2:
            raise Unanswered("odd", again=0)

    outcome = ask_all(range(40), every_other, Patience(threads=1, in_a_row=2))
    assert outcome.reasons == {"odd": 20} and outcome.stopped is None
    asked: list[int] = []

    def hopeless(task: int) -> None:
        asked.append(task)
        if task == 5:
            raise Hopeless("over")

    outcome = ask_all(range(40), hopeless, Patience(threads=1))
    assert outcome.stopped == "over" and asked == [0, 1, 2, 3, 4, 5]
