"""The conversation from the first line to the last."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from rlhf_kit.chat.cast import BASE, Cast
from rlhf_kit.chat.commands import HELP, changed, is_setting
from rlhf_kit.chat.screen import say, show
from rlhf_kit.chat.speaking import Answer, Manner, Speaker
from rlhf_kit.chat.transcript import Exchange, Kind, save
from rlhf_kit.errors import DataError, Problem, RlhfKitError
from rlhf_kit.outputs import check_outputs
from rlhf_kit.records import Message

__all__ = ["Start", "chat", "typed_lines"]

_COMMANDS = "/help shows what else can be typed, /quit ends it"
_BLOCK = '"""'


@dataclass(frozen=True)
class Start:
    """How a conversation begins.

    Attributes:
        speakers: who answers; by default the base and every stage that the run has.
        manner: by default sampling at the temperature of the recipe's evaluation.
        seed: of sampling; by default another one each time.
        system: instructions before the conversation.
        transcript: a file that gets what was said at the end, whatever ends it.
        kind: of its records.
    """

    speakers: tuple[str, ...] = ()
    manner: Manner | None = None
    seed: int | None = None
    system: str | None = None
    transcript: Path | None = None
    kind: Kind = "demonstrations"


def chat(run: Path, lines: Iterable[str], console: Console, start: Start | None = None) -> None:
    """Answers each line until `/quit`, the end of the lines, or Ctrl-C; Ctrl-C during an answer ends the answer only.

    Args:
        run: output directory of a run.

    Raises:
        CheckpointError: a policy that the run does not have, or a directory that is damaged.
        ModelError: the base model cannot be loaded.
        DataError: the transcript cannot be written.
    """
    talk = Talk(Cast(run), console, start or Start())
    try:
        with contextlib.suppress(KeyboardInterrupt):
            talk.begin()
            for line in joined(lines):
                if not talk.hear(line):
                    return
            return
        console.print()
    finally:
        talk.end()


class Talk:
    """Speakers, how they answer, and what was said so far."""

    def __init__(self, cast: Cast, console: Console, start: Start) -> None:
        self.cast, self.console, self.start = cast, console, start
        recipe = cast.recipe
        self.manner = start.manner or Manner(temperature=recipe.evaluate.temperature)
        self.system = start.system
        self.said: list[list[Exchange]] = []
        """What was said, the answers to one question together."""
        self.speakers: list[Speaker] = []
        self.generator = torch.Generator()

    def begin(self) -> None:
        """Calls the first speakers."""
        names = list(dict.fromkeys(self.start.speakers)) or [BASE, *self.cast.stages]
        for name in names:
            self.cast.check(name)  # before anything is loaded
        if self.start.transcript is not None:
            _check_place(self.start.transcript)
        self.speakers = [self.cast.speaker(name) for name in names]
        self.generator = torch.Generator(device=self.cast.backbone.device)
        self._seed(self.start.seed)
        self._reset()
        self._tell_settings()

    def end(self) -> None:
        """Writes the transcript, where one was asked for."""
        if self.start.transcript is not None and self.said:
            self._save(self.start.transcript, self.start.kind)

    def hear(self, text: str) -> bool:
        """One line; False where it ends the conversation."""
        if not text.strip():
            return True
        found = re.fullmatch(r"\s*(/[a-z-]+)(?:\s+(.*?))?\s*", text, re.DOTALL)
        if found is None:
            self._answer(text.strip())
            return True
        command, rest = found[1], found[2] or ""
        if command == "/quit":
            return False
        try:
            self._obey(command, rest)
        except (RlhfKitError, ValueError) as failure:
            say(self.console, f"{command}: {failure}" if isinstance(failure, ValueError) else str(failure))
        return True

    def _obey(self, command: str, rest: str) -> None:
        simple: dict[str, Callable[[], None]] = {
            "/help": lambda: say(self.console, HELP),
            "/settings": self._tell_settings,
            "/who": lambda: say(self.console, ", ".join(self.cast.names)),
            "/undo": self._undo,
            "/retry": self._retry,
        }
        if is_setting(command):
            self.manner = changed(self.manner, command, rest)
            self._tell_settings()
        elif command in simple:
            simple[command]()
        elif command == "/use":
            self._use(rest.split())
        elif command == "/seed":
            if not rest.isdecimal():
                raise ValueError(f"needs a whole number from 0, not {rest!r}")
            self._seed(int(rest))
        elif command in ("/system", "/reset"):
            if command == "/system":
                self.system = rest or None
            self._reset()
            say(self.console, "the conversation starts anew")
        elif command == "/save":
            self._save_as(rest)
        else:
            say(self.console, f"{command}: no such command; {_COMMANDS}")

    # ---------------------------------------------------------------- what commands do

    def _answer(self, text: str) -> None:
        exchanges: list[Exchange] = []

        def reply(speaker: Speaker, on_text: Callable[[str], None]) -> Answer:
            before = (*speaker.turns, Message(role="user", content=text))
            answer = speaker.reply(text, self.manner, generator=self.generator, on_text=on_text)
            if answer.text.strip():
                exchanges.append(Exchange(speaker.name, str(self.manner), before, answer.text))
            return answer

        try:
            show(self.console, self.speakers, reply, self.manner.max_new_tokens)
        except KeyboardInterrupt:
            self.console.print()
            say(self.console, "(stopped; this answer is not kept. Ctrl-C again, or /quit, ends the conversation)")
        except RlhfKitError as failure:
            say(self.console, str(failure))
        if exchanges:
            self.said.append(exchanges)

    def _use(self, names: Sequence[str]) -> None:
        """Who joins takes the conversation of the first speaker over; who stays keeps their own."""
        if not names:
            raise ValueError(f"needs names: {', '.join(self.cast.names)}")
        present = {speaker.name: speaker for speaker in self.speakers}
        called = {name: present.get(name) or self.cast.speaker(name) for name in dict.fromkeys(names)}
        first = self.speakers[0]
        for name, speaker in called.items():
            if name not in present:
                speaker.turns = list(first.turns)
        joined = [name for name in called if name not in present]
        self.speakers = list(called.values())
        if joined and len(first.turns) > (self.system is not None):
            say(self.console, f"{', '.join(joined)} takes over what was said with {first.name}")
        self._tell_settings()

    def _undo(self) -> None:
        if not self.said:
            raise ValueError("nothing was said yet")
        names = {exchange.speaker for exchange in self.said.pop()}
        for speaker in self.speakers:
            if speaker.name in names:
                speaker.undo()
        say(self.console, "the last question and what was answered are taken back")

    def _retry(self) -> None:
        if not self.said:
            raise ValueError("nothing was said yet")
        question = self.said[-1][0].conversation[-1].content
        self._undo()
        self._answer(question)

    def _save_as(self, rest: str) -> None:
        words = rest.split()
        kind = words.pop() if len(words) > 1 and words[-1] in ("prompts", "demonstrations") else self.start.kind
        if not words:
            raise ValueError("needs a file, such as talk.jsonl")
        self._save(Path(" ".join(words)), "prompts" if kind == "prompts" else "demonstrations")

    def _save(self, file: Path, kind: Kind) -> None:
        rows = save([one for together in self.said for one in together], file, kind, self.cast.run.resolve().name)
        say(self.console, f"wrote {rows} {kind} to {file}")

    def _seed(self, seed: int | None) -> None:
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def _reset(self) -> None:
        for speaker in self.speakers:
            speaker.turns = [] if self.system is None else [Message(role="system", content=self.system)]

    def _tell_settings(self) -> None:
        names = ", ".join(speaker.name for speaker in self.speakers)
        say(self.console, f"{names}: {self.manner}; {_COMMANDS}")


def _check_place(file: Path) -> None:
    """Raises `DataError` where a transcript could not be written at the end."""
    check_outputs((), [file])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise DataError([Problem(str(file), "", f"cannot be written: {failure.strerror}")]) from failure


def joined(lines: Iterable[str]) -> Iterator[str]:
    """Lines of which a backslash at the end, or three quotation marks before and after, make one."""
    parts: list[str] = []
    block = False
    for line in lines:
        text = line.rstrip("\r\n")
        if not block and not parts and text.strip().startswith(_BLOCK):
            block, text = True, text.strip()[len(_BLOCK) :]
        if block:
            end = text.rstrip().endswith(_BLOCK)
            parts.append(text.rstrip()[: -len(_BLOCK)] if end else text)
            if not end:
                continue
        elif text.endswith("\\"):
            parts.append(text[:-1])
            continue
        else:
            parts.append(text)
        yield "\n".join(parts).strip("\n") if block else "\n".join(parts)
        parts, block = [], False
    if parts:
        yield "\n".join(parts)


def typed_lines() -> Iterator[str]:
    """What is typed at the terminal, with line editing where Python has it, or piped in, one prompt a line."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # `input` uses it once it is imported
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
