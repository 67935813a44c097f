"""What is seen of the answers: streamed, one under the other, or side by side in columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf_kit.chat.speaking import Answer, Speaker

__all__ = ["Reply", "say", "show"]

Reply = Callable[[Speaker, Callable[[str], None]], Answer]
"""Has a speaker answer; is given what each piece of text goes to."""

_COLUMN = 36  # characters; below that, answers stand one under the other


def say(console: Console, line: str) -> None:
    """A remark of the program's own, which nobody takes for an answer."""
    console.print(Text(line, style="dim"), soft_wrap=True)


def show(console: Console, speakers: Sequence[Speaker], reply: Reply, limit: int) -> list[Answer]:
    """Has each speaker answer and shows it as it comes."""
    if len(speakers) > 1 and console.is_terminal and console.width >= _COLUMN * len(speakers):
        return _columns(console, speakers, reply, limit)
    answers = []
    for speaker in speakers:
        console.print(Text(speaker.name, style="bold"))
        answer = reply(speaker, lambda piece: console.out(piece, end="", highlight=False))
        console.print(_ending(answer, limit))
        _tell_dropped(console, speaker, answer)
        answers.append(answer)
    return answers


def _columns(console: Console, speakers: Sequence[Speaker], reply: Reply, limit: int) -> list[Answer]:
    shown = [Text() for _ in speakers]
    answers = []
    with Live(_table(speakers, shown), console=console, refresh_per_second=8) as live:
        for place, speaker in enumerate(speakers):

            def on_text(piece: str, place: int = place) -> None:
                shown[place].append(piece)
                live.update(_table(speakers, shown))

            answer = reply(speaker, on_text)
            shown[place].append(_ending(answer, limit))
            live.update(_table(speakers, shown))
            answers.append(answer)
    for speaker, answer in zip(speakers, answers, strict=True):
        _tell_dropped(console, speaker, answer)
    return answers


def _table(speakers: Sequence[Speaker], shown: Sequence[Text]) -> Table:
    table = Table(expand=True, show_edge=False, header_style="bold")
    for speaker in speakers:
        table.add_column(Text(speaker.name), ratio=1, overflow="fold")
    table.add_row(*shown)
    return table


def _tell_dropped(console: Console, speaker: Speaker, answer: Answer) -> None:
    if answer.dropped:
        say(console, f"{speaker.name} no longer sees the first {answer.dropped} turns: its context is full")


def _ending(answer: Answer, limit: int) -> Text:
    """What stands behind an answer that a reader would misunderstand otherwise."""
    if not answer.text.strip():
        return Text("(an empty answer)", style="dim")
    return Text("" if answer.ended else f" [cut at {limit} tokens]", style="dim")
