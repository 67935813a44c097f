"""What stands in a page of the documentation: its fenced blocks, and the commands in them."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

from rlhf_kit.cli import _parser

ROOT = Path(__file__).parents[1]


def text_of(name: str) -> str:
    """A page of docs/."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    return [line for block in blocks(text, "bash") for line in block.splitlines() if line.strip()]


def parsed(command: str) -> argparse.Namespace:
    """A command of the kit's as its parser reads it; a wrong one exits."""
    program, *rest = shlex.split(command)
    assert program == "rlhf-kit", command
    return _parser().parse_args(rest)
