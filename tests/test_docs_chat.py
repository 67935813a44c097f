"""docs/chat.md: its commands are commands, and its list is the one that /help shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rlhf_kit.chat.commands import HELP
from rlhf_kit.cli import _parser

TEXT = (Path(__file__).parents[1] / "docs" / "chat.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    program, *rest = shlex.split(command)
    assert program == "rlhf-kit" and _parser().parse_args(rest).command == "chat"


def test_the_list_of_commands_is_what_help_shows() -> None:
    assert len(COMMANDS) == 4 and f"```text\n{HELP}\n```" in TEXT
