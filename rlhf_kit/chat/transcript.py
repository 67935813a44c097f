"""What was said, as records of the kit: demonstrations, or the prompts alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rlhf_kit.errors import DataError, Problem, RlhfKitError
from rlhf_kit.outputs import Files, check_outputs, json_line, row_of
from rlhf_kit.records import Demonstration, Message, Prompt

__all__ = ["KINDS", "Exchange", "Kind", "Round", "Transcript", "check_place", "records", "told"]

Kind = Literal["demonstrations", "prompts"]
KINDS: tuple[Kind, ...] = ("demonstrations", "prompts")


@dataclass(frozen=True)
class Exchange:
    """A question with everything that was said before it, and what one policy answered.

    Attributes:
        speaker: who was asked.
        manner: how the answer was drawn, in words.
        conversation: it ends with the question.
        answer: blank where none was kept: it was empty, or stopped.
        ended: False for one that was cut at the most tokens.
    """

    speaker: str
    manner: str
    conversation: tuple[Message, ...]
    answer: str
    ended: bool = True


@dataclass(eq=False)
class Round:
    """A question and what came of it, from each who was asked."""

    question: str
    exchanges: list[Exchange] = field(default_factory=list)

    @property
    def answered(self) -> list[str]:
        """Who answered, with an answer that was kept."""
        return [exchange.speaker for exchange in self.exchanges if exchange.answer]


def records(exchanges: Iterable[Exchange], kind: Kind, run: str) -> list[Demonstration | Prompt]:
    """A demonstration for each answer, or a prompt for each question, answered or not; the same prompt once.

    Args:
        run: the name of the run, which stands in `meta` beside the policy's.
    """
    if kind == "prompts":
        return [Prompt(prompt=one) for one in dict.fromkeys(exchange.conversation for exchange in exchanges)]
    return [
        Demonstration(
            prompt=one.conversation,
            completion=one.answer,
            meta={"policy": one.speaker, "run": run, "sampling": one.manner, "ended": one.ended},
        )
        for one in exchanges
        if one.answer
    ]


def told(rows: Sequence[Demonstration | Prompt], file: Path) -> str:
    """What was written, in words; answers that were cut are no examples of how to end."""
    kind = "prompt" if isinstance(rows[0], Prompt) else "demonstration"
    cut = sum(row.meta.get("ended") is False for row in rows)
    words = f"wrote {len(rows)} {kind}{'s' if len(rows) > 1 else ''} to {file}"
    return f"{words}; {cut} of them cut at the most tokens (meta.ended is false)" if cut else words


def check_place(file: Path, ours: Collection[Path] = ()) -> None:
    """Sees to it that a transcript can be written there.

    Args:
        ours: files that this talk has written, which it may write again.

    Raises:
        DataError: no name of JSON Lines, a directory, a file that is there already, or a folder that cannot be made.
    """
    check_outputs((), [file])
    if not file.name.lower().removesuffix(".gz").endswith(".jsonl"):
        raise DataError([Problem(str(file), "", "holds one object a line; name it .jsonl")])
    if file.exists() and file not in ours:
        raise DataError([Problem(str(file), "", "is there already, and no talk is written over; name another file")])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise DataError([Problem(str(file), "", f"cannot be written: {failure.strerror}")]) from failure


def _write(rows: Sequence[Demonstration | Prompt], file: Path) -> None:
    with Files([file]) as written:
        for row in rows:
            written.write(file, json_line(row_of(row)))


class Transcript:
    """All that was said in a talk, and the files that it stands in.

    Args:
        run: its name.
        file: gets all of it after every answer, so that nothing that ends the talk can lose it.
        kind: of the rows in it.
    """

    def __init__(self, run: str, file: Path | None, kind: Kind) -> None:
        self.run, self.file, self.kind = run, file, kind
        self.rounds: list[Round] = []
        """The conversation as it stands."""
        self._past: list[Exchange] = []
        self._ours: set[Path] = set()
        self._kept: list[Demonstration | Prompt] = []

    def start_anew(self) -> None:
        """Another conversation begins; what was said before stays in the transcript."""
        self._past = self._exchanges()
        self.rounds = []

    def save(self, file: Path, kind: Kind) -> str:
        """Writes all that was said; returns what that was, in words.

        Raises:
            DataError: the file cannot be written, or is there already and not of this talk.
            RlhfKitError: there is nothing to write.
        """
        check_place(file, self._ours)
        rows = records(self._exchanges(), kind, self.run)
        if not rows:
            raise RlhfKitError("nothing was said yet")
        self._ours.add(file)  # first, for a Ctrl-C in between
        _write(rows, file)
        return told(rows, file)

    def keep(self) -> str | None:
        """Brings the file up to date; returns what stands in it, in words, None where there is nothing.

        Raises:
            DataError: the file cannot be written.
        """
        if self.file is None:
            return None
        rows = records(self._exchanges(), self.kind, self.run)
        if rows != self._kept:
            check_place(self.file, self._ours)
            self._ours.add(self.file)
            if rows:
                _write(rows, self.file)
            else:  # all of it was taken back
                self.file.unlink(missing_ok=True)
            self._kept = rows
        return told(rows, self.file) if rows else None

    def _exchanges(self) -> list[Exchange]:
        return self._past + [exchange for one in self.rounds for exchange in one.exchanges]
