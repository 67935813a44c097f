"""Versions of an adapter, named by their content: on the disk, and in a vLLM server."""

from __future__ import annotations

import shutil
from pathlib import Path

from rlhf_kit.errors import EngineError
from rlhf_kit.models.adapters import FILES, content_of
from rlhf_kit.models.sources import made_once
from rlhf_kit.rollout.client import Client, Refused, Unanswered
from rlhf_kit.rollout.handshake import ADD_LORA_FAILED, LOAD, NO_FILES

__all__ = ["copy", "load", "version_of"]


def version_of(directory: Path) -> str:
    """The name of an adapter's content."""
    return f"rlhf-kit-{content_of(directory)[:16]}"


def copy(directory: Path, place: Path) -> None:
    """Writes an adapter to its place, whole or not at all; several processes may do so at the same time."""
    if place.exists():
        return
    with made_once(place) as scratch:
        for name in FILES:
            shutil.copyfile(directory / name, scratch / name)
        scratch.chmod(0o755)  # the server may be another user's


def load(client: Client, version: str, directory: Path) -> None:
    """Has the server load an adapter, from here also where it knows it from elsewhere.

    Raises:
        Unanswered: it does not this time.
        EngineError: it cannot.
        Refused: it takes no adapters at all.
    """
    try:
        client.order(LOAD, {"lora_name": version, "lora_path": str(directory.resolve()), "load_inplace": True})
    except Unanswered as failure:
        if failure.said.startswith(ADD_LORA_FAILED):
            raise EngineError(f"{client.url}: the vLLM server cannot load the adapter: {failure.said}") from None
        raise
    except Refused as failure:
        if NO_FILES in failure.said:  # a network's file system may show it later
            raise Unanswered(f"the server does not see the adapter in {directory.resolve()}") from None
        if "already been loaded" not in failure.said:  # by an older vLLM, for another process
            raise
