"""What is typed with a slash: which commands there are, and settings that change while one talks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlhf_kit.chat.speaking import Manner
from rlhf_kit.errors import RlhfKitError

__all__ = ["HELP", "NAMES", "changed", "command_of", "is_setting", "seed_of", "words_of"]

HELP = """\
/use NAME…                who answers from now on: base, sft, ppo, ema, ppo@STEP, or an adapter's directory
/who                      everybody who can be called
/greedy                   the likeliest token each time
/beam N                   beam search with N beams
/temperature T            sampling; 0 is greedy
/top-p P, /top-k N        sampling from the likeliest tokens only; 1 and 0 are all
/max-new-tokens N         length of an answer at most
/seed N                   the same answers to the same words again
/settings                 who answers, and how answers are drawn
/system TEXT              instructions before the conversation, which starts anew; without TEXT there are none
/undo, /retry             takes the last answer back; asks the last question again
/save FILE [--as prompts] writes what was said as demonstrations, or as prompts
/reset                    forgets the conversation
/help, /quit              shows this; ends the talk"""

NAMES = tuple(re.findall(r"(?:^|, )(/[a-z-]+)", HELP, re.MULTILINE))


def command_of(text: str) -> tuple[str, str] | None:
    """The command that a line begins with, and the rest; None for what is said to the policies.

    A path such as /etc/hosts is no command. Capitals and underscores are taken as they are meant.
    """
    found = re.fullmatch(r"\s*(/[A-Za-z_-]+)(?:\s+(.*?))?\s*", text, re.DOTALL)
    return found and (found[1].lower().replace("_", "-"), found[2] or "")


def words_of(text: str) -> list[str]:
    """The words of what stands behind a command; quotation marks hold those together that a name consists of.

    Raises:
        RlhfKitError: a quotation has no end.
    """
    try:
        return shlex.split(text)
    except ValueError as failure:
        raise RlhfKitError(f"{str(failure).lower()}; a name with a quotation mark in it stands in others") from failure


def _number(kind: Callable[[str], Any], least: float, most: float, words: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise RlhfKitError(f"needs {words}, not {text!r}")
        return value

    return read


_MOST = 1 << 20
_SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "/temperature": ("temperature", _number(float, 0, 100, "a number from 0 to 100")),
    "/top-p": ("top_p", _number(float, 1e-6, 1, "a share above 0 and at most 1")),
    "/top-k": ("top_k", _number(int, 0, _MOST, "a whole number from 0")),
    "/beam": ("beams", _number(int, 1, 64, "a whole number from 1 to 64")),
    "/max-new-tokens": ("max_new_tokens", _number(int, 1, _MOST, "a whole number from 1")),
}
seed_of = _number(int, 0, (1 << 63) - 1, "a whole number from 0 to 2^63 - 1")


def is_setting(command: str) -> bool:
    """Whether it changes how answers are drawn."""
    return command in _SETTINGS or command == "/greedy"


def changed(manner: Manner, command: str, text: str) -> Manner:
    """The manner with one setting changed.

    Whoever sets how to sample no longer wants beam search.

    Raises:
        RlhfKitError: with what the setting needs.
    """
    if command == "/greedy":
        return replace(manner, temperature=0.0, beams=1)
    name, read = _SETTINGS[command]
    value = read(text)
    sampled = {"beams": 1} if name in ("temperature", "top_p", "top_k") else {}
    return replace(manner, **{**sampled, name: value})
