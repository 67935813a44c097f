"""Talking to the policies of a run side by side: each keeps a conversation of its own.

The same encoder and the same sampler as in training, so what is seen here is what was trained.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_kit.checkpoint import MANIFEST, read_manifest
from rlhf_kit.data import Encoder
from rlhf_kit.errors import CheckpointError
from rlhf_kit.models import Backbone, load_backbone
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Message
from rlhf_kit.rewards import autocast
from rlhf_kit.rollout import sample

__all__ = ["Answer", "Speaker", "chat", "typed_lines"]

BASE = "base"
TRAINED = ("sft", "ppo")
_COMMANDS = "/reset forgets the conversation, /quit ends it"
_COLUMN = 36  # characters; below that, answers stand one under the other


@dataclass(frozen=True)
class Answer:
    """What a policy said, and whether it ended by itself."""

    text: str
    ended: bool


@dataclass
class Speaker:
    """One policy with its conversation so far."""

    name: str
    backbone: Backbone
    encoder: Encoder
    turns: list[Message] = field(default_factory=list)

    def reply(
        self,
        text: str,
        *,
        temperature: float,
        max_new_tokens: int,
        generator: torch.Generator | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answers the next turn of the user. An empty answer is not kept: no conversation could go on from it."""
        question = Message(role="user", content=text)
        prompt = self.encoder.prompt((*self.turns, question))
        stream = _TextStream(self.encoder, on_text) if on_text else None
        with self.backbone.role(None if self.name == BASE else self.name), autocast(self.backbone):
            (ids,) = sample(
                self.backbone,
                [prompt],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                generator=generator,
                on_token=stream.feed if stream else None,
            )
        answer = Answer(_printable(self.encoder.text(ids)), ids[-1] == self.backbone.tokenizer.eos_token_id)
        if stream:
            stream.close()
        if answer.text.strip():
            self.turns += [question, Message(role="assistant", content=answer.text)]
        return answer


class _TextStream:
    """Hands on the text of tokens as they come; a character of several tokens waits until it is whole."""

    def __init__(self, encoder: Encoder, on_text: Callable[[str], None]) -> None:
        self.encoder, self.on_text = encoder, on_text
        self.ids: list[int] = []
        self.shown = ""

    def feed(self, token: int) -> None:
        """One more token."""
        self.ids.append(token)
        text = _printable(self.encoder.text(self.ids))
        if not text.endswith("\ufffd"):
            self._show(text)

    def close(self) -> None:
        """What still waits."""
        self._show(_printable(self.encoder.text(self.ids)))

    def _show(self, text: str) -> None:
        if text.startswith(self.shown) and text != self.shown:
            self.on_text(text[len(self.shown) :])
            self.shown = text


def _printable(text: str) -> str:
    """Without control characters: a model's output must not steer the terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def chat(
    run: Path,
    lines: Iterable[str],
    console: Console,
    *,
    policies: Sequence[str] | None = None,
    temperature: float | None = None,
    max_new_tokens: int = 256,
) -> None:
    """Answers each line until `/quit`, the end of the lines, or Ctrl-C.

    Args:
        run: output directory of a run.
        policies: who answers, in this order; by default the base and every policy that the run has.
        temperature: by default that of the recipe's evaluation.

    Raises:
        CheckpointError: a policy that the run does not have, or a directory that is damaged.
        ModelError: the base model cannot be loaded.
    """
    with contextlib.suppress(KeyboardInterrupt):
        names = _present(run, policies)
        recipe = _recipe(run)
        temperature = recipe.evaluate.temperature if temperature is None else temperature
        speakers = _load(recipe, run, names)
        generator = torch.Generator(device=speakers[0].backbone.device)
        generator.seed()
        _say(console, f"{', '.join(names)} at temperature {temperature:g}; {_COMMANDS}")
        for line in lines:
            if not (text := line.strip()):
                continue
            if text == "/quit":
                return
            if text == "/reset":
                for speaker in speakers:
                    speaker.turns.clear()
                _say(console, "the conversation starts anew")
            elif re.fullmatch(r"/\w+", text):
                _say(console, f"{text}: no such command; {_COMMANDS}")
            else:
                _answer(speakers, text, console, temperature, max_new_tokens, generator)
        return
    console.print()


def _say(console: Console, line: str) -> None:
    console.print(Text(line, style="dim"), soft_wrap=True)


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


def _present(run: Path, wanted: Sequence[str] | None) -> list[str]:
    there = [name for name in TRAINED if (run / name / MANIFEST).is_file()]
    if not there:
        raise CheckpointError(f"{run}: no finished sft or ppo stage in it; name the output_dir of a run")
    missing = [name for name in wanted or () if name not in (BASE, *there)]
    if missing:
        raise CheckpointError(
            f"{run}: has no finished {' and no '.join(missing)} stage; there are {', '.join((BASE, *there))}"
        )
    return list(dict.fromkeys(wanted or (BASE, *there)))


def _recipe(run: Path) -> Recipe:
    """The recipe of the last stage that is finished."""
    stage = next(run / name for name in reversed(TRAINED) if (run / name / MANIFEST).is_file())
    try:
        return Recipe.model_validate(read_manifest(stage).recipe)
    except ValidationError as failure:
        raise CheckpointError(
            f"{stage / MANIFEST}: its recipe is not one of this version ({failure.error_count()} mistakes)"
        ) from failure


def _load(recipe: Recipe, run: Path, names: Sequence[str]) -> list[Speaker]:
    for name in names:
        if name != BASE:
            read_manifest(run / name)  # checks the weights before they are loaded
    backbone = load_backbone(recipe.model)
    for name in names:
        if name != BASE:
            backbone.load_adapter(name, run / name)
    if recipe.model.quantization is None:  # bitsandbytes has put a quantised one where it belongs
        backbone.to(PartialState().device)
    encoder = Encoder(backbone.tokenizer, max_prompt_length=recipe.data.max_prompt_length)
    return [Speaker(name, backbone, encoder) for name in names]


def _answer(
    speakers: Sequence[Speaker],
    text: str,
    console: Console,
    temperature: float,
    max_new_tokens: int,
    generator: torch.Generator,
) -> None:
    options = {"temperature": temperature, "max_new_tokens": max_new_tokens, "generator": generator}
    if len(speakers) == 1:
        (speaker,) = speakers
        console.print(Text(speaker.name, style="bold"))
        answer = speaker.reply(text, on_text=lambda piece: console.out(piece, end="", highlight=False), **options)  # type: ignore[arg-type]
        console.print(_ending(answer, max_new_tokens))
        return
    answers = []
    for speaker in speakers:
        with console.status(f"{speaker.name} answers"):
            answers.append(speaker.reply(text, **options))  # type: ignore[arg-type]
    shown = [Text(answer.text) + _ending(answer, max_new_tokens) for answer in answers]
    if console.is_terminal and console.width >= _COLUMN * len(speakers):
        table = Table(expand=True, show_edge=False, header_style="bold")
        for speaker in speakers:
            table.add_column(speaker.name, ratio=1, overflow="fold")
        table.add_row(*shown)
        console.print(table)
        return
    for speaker, answer_text in zip(speakers, shown, strict=True):
        console.print(Text(speaker.name, style="bold"))
        console.print(answer_text, soft_wrap=True)


def _ending(answer: Answer, limit: int) -> Text:
    """What stands behind an answer that a reader would misunderstand otherwise."""
    if not answer.text.strip():
        return Text("(an empty answer)", style="dim")
    return Text("" if answer.ended else f" [cut at {limit} tokens]", style="dim")
