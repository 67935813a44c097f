"""The talk from the first line to the last."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from rlhf_kit.chat.cast import BASE, Cast
from rlhf_kit.chat.commands import HELP, NAMES, changed, command_of, is_setting, seed_of, words_of
from rlhf_kit.chat.screen import say, show
from rlhf_kit.chat.speaking import Answer, Manner, Speaker
from rlhf_kit.chat.transcript import KINDS, Exchange, Kind, Round, Transcript, check_place
from rlhf_kit.errors import DataError, RlhfKitError
from rlhf_kit.records import Message

__all__ = ["Start", "chat"]


@dataclass(frozen=True)
class Start:
    """How a talk begins.

    Attributes:
        speakers: who answers; by default the base and every stage that the run has.
        manner: by default sampling at the temperature of the recipe's evaluation.
        seed: of sampling; by default another one each time.
        system: instructions before the conversation.
        transcript: a file that gets what was said, whatever ends the talk.
        kind: of its records.
    """

    speakers: tuple[str, ...] = ()
    manner: Manner | None = None
    seed: int | None = None
    system: str | None = None
    transcript: Path | None = None
    kind: Kind = "demonstrations"


def chat(cast: Cast, messages: Iterable[str], console: Console, start: Start | None = None) -> None:
    """Answers each message until `/quit`, the last one, or Ctrl-C; Ctrl-C during an answer ends the answer only.

    Raises:
        CheckpointError: a policy that the run does not have, or a directory that is damaged.
        ModelError: the base model cannot be loaded.
        DataError: the transcript cannot be written.
    """
    talk = Talk(cast, console, start or Start())
    try:
        with contextlib.suppress(KeyboardInterrupt):
            talk.begin()
            for message in messages:
                if not talk.hear(message):
                    return
        if console.is_terminal:  # what was typed last stands on a line without an end
            console.print()
    finally:
        talk.end()


class Talk:
    """Speakers, how they answer, and what was said so far."""

    def __init__(self, cast: Cast, console: Console, start: Start) -> None:
        self.cast, self.console = cast, console
        self.names = list(dict.fromkeys(start.speakers)) or [BASE, *cast.stages]
        self.manner = start.manner or Manner(temperature=cast.recipe.evaluate.temperature)
        self.system = (start.system or "").strip() or None
        self.seed: int | None = None
        self.generator = torch.Generator()
        self._plant(start.seed)
        self.transcript = Transcript(cast.run.resolve().name, start.transcript, start.kind)
        self.unsaved = ""
        self.speakers: list[Speaker] = []

    def begin(self) -> None:
        """Calls the first speakers."""
        for name in self.names:
            self.cast.check(name)  # before anything is loaded
        if self.transcript.file is not None:
            check_place(self.transcript.file)
        self.speakers = [self._call(name) for name in self.names]
        self._start_anew()
        say(self.console, f"{self._settings()}; /help shows what else can be typed, /quit ends it")

    def end(self) -> None:
        """Says where the transcript is, and writes it where that has failed before."""
        written = self.transcript.keep()
        if written:
            say(self.console, written)

    def hear(self, message: str) -> bool:
        """One message; False where it ends the talk."""
        if not message.strip():
            return True
        command, rest = command_of(message) or ("", "")
        if command == "/quit":
            return False
        try:
            if command:
                self._obey(command, rest)
            else:
                self._answer(message.strip())
        except RlhfKitError as failure:
            say(self.console, f"{command}: {failure}" if command else str(failure))
        self._keep()
        return True

    def _obey(self, command: str, rest: str) -> None:
        actions: dict[str, Callable[[], None]] = {
            "/help": lambda: say(self.console, HELP),
            "/settings": lambda: say(self.console, f"{self._settings()}\n{self._circumstances()}"),
            "/who": lambda: say(self.console, ", ".join(self.cast.names)),
            "/use": lambda: self._use(rest),
            "/seed": lambda: self._plant(seed_of(rest)),
            "/system": lambda: self._instruct(rest),
            "/reset": self._start_anew,
            "/undo": self._undo,
            "/retry": self._retry,
            "/save": lambda: self._save(rest),
        }
        if is_setting(command):
            self.manner = changed(self.manner, command, rest)
            say(self.console, self._settings())
        elif command in actions:
            actions[command]()
            done = {"/seed": f"seed {self.seed}", "/system": "the conversation starts anew"}
            done["/reset"] = done["/system"]
            if command in done:
                say(self.console, done[command])
        else:
            say(self.console, f"{command}: no such command; there are {', '.join(NAMES)}")

    # ---------------------------------------------------------------- questions and answers

    def _answer(self, question: str) -> None:
        """Asks all speakers; each draws with the same seed, so that equal policies say the same side by side."""
        current = Round(question)
        self.transcript.rounds.append(current)
        seed = int(torch.randint(1 << 62, (), generator=self.generator))

        def reply(speaker: Speaker, on_text: Callable[[str], None]) -> Answer:
            conversation = (*speaker.turns, Message(role="user", content=question))
            asked = Exchange(speaker.name, str(self.manner), conversation, "")
            generator = torch.Generator().manual_seed(seed)
            try:
                answer = speaker.reply(question, self.manner, generator=generator, on_text=on_text)
            except KeyboardInterrupt:
                current.exchanges.append(asked)
                raise
            if answer.is_kept:
                asked = replace(asked, answer=answer.text, ended=answer.ended)
            current.exchanges.append(asked)
            return answer

        try:
            show(self.console, self.speakers, reply, self.manner.max_new_tokens)
        except KeyboardInterrupt:
            left = [speaker.name for speaker in self.speakers if speaker.name not in current.answered]
            kept = f"no answer of {', '.join(left)} is kept. /retry asks again" if left else "all answers are kept"
            self.console.print()
            say(self.console, f"(stopped: {kept}, Ctrl-C ends the talk)")

    def _undo(self) -> None:
        rounds = self.transcript.rounds
        last = next((one for one in reversed(rounds) if one.answered), None)
        if last is None:
            raise RlhfKitError("nothing was said yet")
        rounds.remove(last)
        self._take_back(last)
        shown = last.question if len(last.question) <= 60 else f"{last.question[:60]}…"
        say(self.console, f"taken back, with what was answered: {' '.join(shown.split())}")

    def _retry(self) -> None:
        """Asks the last question again, whatever came of it; an answer goes only when another one has come."""
        rounds = self.transcript.rounds
        if not rounds:
            raise RlhfKitError("nothing was said yet")
        last, before = rounds.pop(), [list(speaker.turns) for speaker in self.speakers]
        self._take_back(last)
        try:
            self._answer(last.question)
        finally:
            new = rounds[-1]
            silent = [at for at, speaker in enumerate(self.speakers) if speaker.name not in new.answered]
            if silent and last.answered:
                for at in silent:
                    self.speakers[at].turns = before[at]
                stays = [one for one in last.exchanges if one.answer and one.speaker not in new.answered]
                new.exchanges = [one for one in new.exchanges if one.answer] + stays
                say(self.console, f"{', '.join(self.speakers[at].name for at in silent)}: what was said before stays")

    def _take_back(self, last: Round) -> None:
        """Also from whoever has taken the conversation over from the one who answered."""
        for speaker in self.speakers:
            for exchange in last.exchanges:
                answer = [turn.content for turn in speaker.turns[-2:]]
                if exchange.answer and answer == [last.question, exchange.answer]:
                    del speaker.turns[-2:]
                    break

    # ---------------------------------------------------------------- who speaks, and how

    def _call(self, name: str) -> Speaker:
        speaker = self.cast.speaker(name)
        if doubt := self.cast.doubt(name):
            say(self.console, doubt)
        return speaker

    def _use(self, rest: str) -> None:
        """Who joins takes the conversation of the first speaker over; who stays keeps their own."""
        names = list(dict.fromkeys(words_of(rest)))
        if not names:
            raise RlhfKitError(f"needs names: {', '.join(self.cast.names)}")
        present = {speaker.name: speaker for speaker in self.speakers}
        called = [present.get(name) or self._call(name) for name in names]
        first = self.speakers[0]
        joined = [speaker for speaker in called if speaker.name not in present]
        for speaker in joined:
            speaker.turns = list(first.turns)
        self.speakers = called
        if joined and any(turn.role == "user" for turn in first.turns):
            takes = "takes" if len(joined) == 1 else "take"
            who = ", ".join(speaker.name for speaker in joined)
            say(self.console, f"{who} {takes} over what was said with {first.name}")
        say(self.console, self._settings())

    def _instruct(self, text: str) -> None:
        self.system = text or None
        self._start_anew()

    def _start_anew(self) -> None:
        self.transcript.start_anew()
        for speaker in self.speakers:
            speaker.turns = [] if self.system is None else [Message(role="system", content=self.system)]

    def _plant(self, seed: int | None) -> None:
        self.seed = seed
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def _settings(self) -> str:
        return f"{', '.join(speaker.name for speaker in self.speakers)}: {self.manner}"

    def _circumstances(self) -> str:
        seed = "no seed" if self.seed is None else f"seed {self.seed}"
        instructions = "no instructions" if self.system is None else f"instructions: {self.system}"
        return f"{seed}; a context of {self.cast.backbone.context_length} tokens; {instructions}"

    # ---------------------------------------------------------------- what is kept

    def _save(self, rest: str) -> None:
        name, *how = words_of(rest) or [""]
        asked = [word for word in how if word != "--as"] or [self.transcript.kind]
        kind = next((kind for kind in KINDS if asked == [kind]), None)
        if not name or kind is None:
            raise RlhfKitError("needs a file and perhaps what its rows are, such as talk.jsonl --as prompts")
        say(self.console, self.transcript.save(Path(name).expanduser(), kind))

    def _keep(self) -> None:
        """Brings the transcript up to date; a reason why it cannot be is told once."""
        try:
            self.transcript.keep()
        except DataError as failure:
            if str(failure) != self.unsaved:
                say(self.console, f"{failure}; /save FILE writes what was said elsewhere")
            self.unsaved = str(failure)
