"""docs/chat.md: its commands are commands, and its list is the one that /help shows."""

from __future__ import annotations

import pytest
from docs_page import commands, parsed, text_of

from rlhf_kit.chat.commands import HELP

TEXT = text_of("chat.md")
COMMANDS = commands(TEXT)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    assert parsed(command).command == "chat"


def test_the_list_of_commands_is_what_help_shows() -> None:
    assert len(COMMANDS) == 4 and f"```text\n{HELP}\n```" in TEXT
