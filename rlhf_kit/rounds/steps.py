"""What a round does once: steps that leave one file, and what it was made from."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_kit.checkpoint import differences, read_json, unused, write_json
from rlhf_kit.files import sha256_of

__all__ = ["once"]

log = logging.getLogger(__name__)


def once(file: Path, inputs: dict[str, Any], do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Has `do` write the file, unless it stands there and was made from the same; returns the account of that.

    The account is `NAME.made.json` beside the file: `inputs`, the file's `sha256`, `seconds`, and what `do` returned. A
    file that was made from something else is kept as `NAME.previous-N`; one that somebody has changed since counts as
    made by hand and stays.

    Args:
        inputs: everything that the file depends on, as JSON.
    """
    beside = file.with_name(f"{file.name}.made.json")
    plain = json.loads(json.dumps(inputs))
    if file.is_file() and beside.is_file():
        account: dict[str, Any] = read_json(beside)
        changed = differences(account["inputs"], plain)
        if not changed:
            if sha256_of(str(file)) != account["sha256"]:
                log.warning("%s: was changed after it was written; it is taken as it is", file)
            return account
        for line in changed:
            log.info("%s: must be made again: %s", file.name, line)
        aside = unused(file, f"{file.name}.previous")
        file.rename(aside)
        log.info("%s: the older one is kept as %s", file.name, aside.name)
    started = time.monotonic()
    said = do()
    account = {
        "inputs": plain,
        "sha256": sha256_of(str(file)),
        "seconds": round(time.monotonic() - started, 1),
        **said,
    }
    write_json(beside, account)
    return account
