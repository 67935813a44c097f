"""What is seen of the answers: streamed, one under the other, or side by side in columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf_kit.chat.speaking import Answer, Speaker

__all__ = ["Reply", "say", "show"]

Reply = Callable[[Speaker, Callable[[str], None]], Answer]
"""Has a speaker answer; is given what each piece of text goes to."""

_COLUMN = 36  # characters; below that, answers stand one under the other
_PAUSE = 0.1  # seconds between two drawings of the columns


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
    drawn = 0.0
    # Without a thread that draws by itself: it would read the texts while they grow.
    with Live(_newest(console, speakers, shown), console=console, auto_refresh=False) as live:

        def on_text(place: int, piece: str) -> None:
            nonlocal drawn
            shown[place].append(piece)
            if monotonic() - drawn > _PAUSE:
                live.update(_newest(console, speakers, shown), refresh=True)
                drawn = monotonic()

        try:
            for place, speaker in enumerate(speakers):
                answer = reply(speaker, partial(on_text, place))
                shown[place].append(_ending(answer, limit))
                answers.append(answer)
        finally:  # the whole of it is drawn in the end, also of what was stopped
            live.update(_table(console, speakers, shown))
    for speaker, answer in zip(speakers, answers, strict=True):
        _tell_dropped(console, speaker, answer)
    return answers


def _newest(console: Console, speakers: Sequence[Speaker], shown: Sequence[Text]) -> Table:
    """The end of each answer, as much as the terminal is high: what has left it cannot be drawn again."""
    width = max(1, (console.width - 3) // len(speakers) - 3)
    ends = [text.wrap(console, width)[-max(1, console.height - 5) :] for text in shown]
    return _table(console, speakers, [Text("\n").join(lines) for lines in ends])


def _table(console: Console, speakers: Sequence[Speaker], shown: Sequence[Text]) -> Table:
    # Less than the whole width: the terminal shows a Ctrl-C as ^C where the cursor is, and a new line would begin.
    table = Table(width=console.width - 3, show_edge=False, header_style="bold")
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
