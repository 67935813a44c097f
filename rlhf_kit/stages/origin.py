"""The adapter that a stage starts from, where its recipe names one by a path."""

from __future__ import annotations

from pathlib import Path

from rlhf_kit.checkpoint import MANIFEST, read_manifest
from rlhf_kit.errors import CheckpointError
from rlhf_kit.models.adapters import WEIGHTS_FILE
from rlhf_kit.models.loading import base_id
from rlhf_kit.recipe import ModelSection


def adapter_at(field: str, path: str, folders: tuple[str, ...], model: ModelSection) -> Path:
    """The directory of an adapter: that of a stage, of an export, or of anybody's.

    Args:
        field: of the recipe, for people.
        folders: where else to look in `path`, the first that has one.
        model: the base that it must have been trained on.

    Raises:
        CheckpointError: there is none, it is damaged, or it was trained on another base.
    """
    places = (Path(path), *(Path(path) / folder for folder in folders))
    found = next((place for place in places if (place / WEIGHTS_FILE).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{field}: {path}: no {WEIGHTS_FILE} in it, nor in its folder {' or '.join(folders)}; name sft, base, or "
            "the directory of an export, of a run or of one of its stages"
        )
    if (found / MANIFEST).is_file():
        trained_on, ours = read_manifest(found).base["id"], base_id(model)
        if trained_on != ours:
            raise CheckpointError(f"{field}: {path}: was trained on {trained_on}, not on {ours}")
    return found
