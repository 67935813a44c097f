"""What is typed: at a terminal or piped in, several lines as one where they say so."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

__all__ = ["messages", "typed"]

_BLOCK = '"""'
_FIRST, _MORE = "> ", "... "


def messages(read: Callable[[str], str]) -> Iterator[str]:
    """Lines of which a backslash at the end, or three quotation marks before and after, make one, to the last line.

    Args:
        read: gives the next line without its end; is told what to show before it; raises EOFError where there is none.
    """
    parts: list[str] = []
    block = False
    with contextlib.suppress(EOFError):
        while True:
            text = read(_MORE if block or parts else _FIRST)
            if not block and not parts and text.strip().startswith(_BLOCK):
                block, text = True, text.strip()[len(_BLOCK) :]
            if block:
                ends = text.rstrip().endswith(_BLOCK)
                parts.append(text.rstrip()[: -len(_BLOCK)] if ends else text)
            else:
                ends = not text.endswith("\\")
                parts.append(text if ends else text[:-1])
            if ends:
                yield _whole(parts, block)
                parts, block = [], False
    if parts:  # the input ended in the middle of it
        yield _whole(parts, block)


def _whole(parts: list[str], block: bool) -> str:
    text = "\n".join(parts)
    return text.strip("\n") if block else text


def typed() -> Iterator[str]:
    """What is typed at the terminal, with line editing where Python has it, or piped in."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # `input` uses it once it is imported
        return messages(input)
    lines = iter(sys.stdin)

    def read(_: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line.rstrip("\r\n")

    return messages(read)
