"""What was said, as records of the kit: demonstrations, or the prompts alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhf_kit.outputs import Files, json_line, row_of
from rlhf_kit.records import Demonstration, Message, Prompt

__all__ = ["Exchange", "Kind", "save"]

Kind = Literal["demonstrations", "prompts"]


@dataclass(frozen=True)
class Exchange:
    """A question with everything that was said before it, and an answer.

    Attributes:
        speaker: who answered.
        manner: how, in words.
        conversation: it ends with the question.
    """

    speaker: str
    manner: str
    conversation: tuple[Message, ...]
    answer: str


def save(exchanges: Sequence[Exchange], file: Path, kind: Kind, run: str) -> int:
    """Writes them, whole or not at all; returns the number of rows. A prompt that several answered stands there once.

    Raises:
        DataError: the file cannot be written.
    """
    rows: list[Demonstration | Prompt] = []
    if kind == "prompts":
        rows += [Prompt(prompt=one) for one in dict.fromkeys(exchange.conversation for exchange in exchanges)]
    else:
        rows += [
            Demonstration(
                prompt=one.conversation,
                completion=one.answer,
                meta={"policy": one.speaker, "run": run, "sampling": one.manner},
            )
            for one in exchanges
        ]
    with Files([file]) as written:
        for row in rows:
            written.write(file, json_line(row_of(row)))
    return len(rows)
