"""What a reward model was trained on, kept beside its weights: keys of prompts, names of labelers.

Whoever measures it later sees by that which rows of a file are new to it. Prompts are kept as keys and not as texts, so
that a model can be given away without its data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .records import Conversation, Demonstration, Prompt, Ranking, Rating, prompt_name

__all__ = ["FILE", "Seen", "prompt_key", "read", "write"]

FILE = "training_data.json"
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a stage was trained on."""

    prompts: frozenset[str] = frozenset()
    """Their keys; `prompt_key` makes them."""
    labelers: frozenset[str] = frozenset()
    """Whose opinions were learned from."""
    heldout_labelers: frozenset[str] = frozenset()
    """Whose opinions were kept back."""


def prompt_key(prompt: Conversation) -> str:
    """The first 16 hex digits of the SHA-256 of a prompt's name as JSON (a text, or a list of [role, content]).

    The same for a text and for a conversation of that one user turn (`records.prompt_name`), on every machine. Two of
    200,000 prompts share a key by chance once in 10^9 files.
    """
    text = json.dumps(prompt_name(prompt))  # ASCII alone, so that any text has bytes
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def write(
    directory: Path, records: Iterable[Demonstration | Prompt | Ranking | Rating], heldout_labelers: Iterable[str] = ()
) -> Path:
    """Writes `training_data.json` into a directory that a stage works in; returns the file.

    Args:
        directory: exists; it gets its final name only when all of it is written.
        records: all that was trained on, as it was read: before the opinions of several labelers became one.
        heldout_labelers: whose opinions were kept back.
    """
    prompts, labelers = set(), set()
    for record in records:
        prompts.add(prompt_key(record.prompt))
        if record.labeler is not None:
            labelers.add(record.labeler)
    lists = {"prompts": prompts, "labelers": labelers, "heldout_labelers": set(heldout_labelers)}
    file = directory / FILE
    text = json.dumps({name: sorted(values) for name, values in lists.items()}, indent=1)
    file.write_text(f"{text}\n", encoding="utf-8")
    return file


def read(directory: Path) -> Seen | None:
    """What the stage in this directory was trained on; None where nothing says so.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = directory / FILE
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(file, str(error)) from error
    if not isinstance(value, dict):
        raise _damaged(file, "holds no object")
    prompts, labelers, heldout = (_texts(value, name, file) for name in ("prompts", "labelers", "heldout_labelers"))
    if any(len(key) != 16 or not _HEX.issuperset(key) for key in prompts):
        raise _damaged(file, "'prompts' are not all 16 hex digits")
    return Seen(prompts, labelers, heldout)


def _texts(value: dict[str, Any], name: str, file: Path) -> frozenset[str]:
    found = value.get(name)
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise _damaged(file, f"'{name}' is no list of texts")
    return frozenset(found)


def _damaged(file: Path, why: str) -> CheckpointError:
    advice = "train the stage again, or remove the file: then nobody knows which prompts were trained on"
    return CheckpointError(f"{file}: damaged ({why}); {advice}")
