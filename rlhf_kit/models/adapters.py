"""A PEFT adapter on the disk: its two files, and what tells its content from another's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from rlhf_kit.errors import CheckpointError
from rlhf_kit.files import sha256_of

__all__ = ["FILES", "WEIGHTS_FILE", "content_of"]

WEIGHTS_FILE = SAFETENSORS_WEIGHTS_NAME
FILES = (CONFIG_NAME, WEIGHTS_FILE)


def content_of(directory: Path) -> str:
    """A sha256 of an adapter's weights and configuration.

    PEFT keeps the names of modules in sets, so the order in which it lists them changes from one time that it saves an
    adapter to the next: that order is no part of the content.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    file, weights = (directory / name for name in FILES)
    if not weights.is_file():
        raise CheckpointError(f"{directory}: holds no {WEIGHTS_FILE}")
    try:
        config = json.loads(file.read_bytes())
        config = {key: sorted(map(str, value)) if isinstance(value, list) else value for key, value in config.items()}
    except (OSError, ValueError, AttributeError) as failure:
        raise CheckpointError(f"{file}: cannot be read: {failure}") from failure
    content = [config, sha256_of(str(weights))]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
