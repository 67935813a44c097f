"""What a model looks like without its weights: transformers' configuration, from wherever it can be had."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from rlhf_kit.errors import ModelError
from rlhf_kit.models.sources import cache_dir, resolve
from rlhf_kit.recipe import ModelSection

__all__ = ["Architecture", "architecture_of", "known_models", "whereabouts"]

_TUNED = re.compile(r"-(instruct|chat|it|base)(-.*)?$")


@dataclass(frozen=True)
class Architecture:
    """A configuration.

    Attributes:
        name: of the model, for people.
        config: transformers' own; it belongs to the reader, who must not change it.
        source: where it is from, for people.
    """

    name: str
    config: PretrainedConfig
    source: str


@functools.cache
def known_models() -> dict[str, dict[str, Any]]:
    """The architecture numbers that come with the package: fields of the configuration, and the published number of
    parameters."""
    found: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "models.json").read_text(encoding="utf-8"))
    return found


def architecture_of(model: ModelSection) -> Architecture:
    """Of a recipe's model: a directory's or a GGUF file's own, the cached or the shipped one of a name, the Hub's.

    Raises:
        ModelError: none of them has it, or it cannot be read.
    """
    name = model.base_id or model.name_or_path
    try:
        place = whereabouts(model)
        if place is not None and place.suffix == ".gguf":
            config = AutoConfig.from_pretrained(str(place.parent), gguf_file=place.name)
            return Architecture(name, config, "the header of the GGUF file")
        if place is not None:
            return Architecture(name, AutoConfig.from_pretrained(str(place)), "its own config.json")
        return _by_name(model, name)
    except (OSError, ValueError, KeyError) as failure:
        lines = str(failure).strip().splitlines() or [type(failure).__name__]
        raise ModelError(f"{model.name_or_path}: no configuration: {lines[0]}") from failure


def whereabouts(model: ModelSection) -> Path | None:
    """The directory or the GGUF file of a model that is on this machine; None where it would have to be fetched."""
    name = model.name_or_path
    if name.startswith("pypi:"):
        file = Path(name.rpartition("#")[2]).name
        there = model.sha256 is not None and any(cache_dir().glob(f"packages/*/{file}"))
        return Path(resolve(name, model.sha256)) if there else None
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return path
    return Path(resolve(name)) if path.is_dir() else None


def _by_name(model: ModelSection, name: str) -> Architecture:
    options: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    try:
        return Architecture(name, AutoConfig.from_pretrained(name, local_files_only=True, **options), "the Hub's cache")
    except (OSError, ValueError):
        pass
    key = _key(name)
    for known, entry in known_models().items():
        if _key(known) == key:
            fields = dict(entry["config"])
            return Architecture(name, AutoConfig.for_model(fields.pop("model_type"), **fields), "shipped with the kit")
    try:
        return Architecture(name, AutoConfig.from_pretrained(name, **options), "the Hub")
    except (OSError, ValueError) as failure:
        raise ModelError(
            f"{name}: its configuration is neither here nor can it be fetched from the Hub; name a directory with its "
            f"config.json, or one of {', '.join(known_models())}"
        ) from failure


def _key(name: str) -> str:
    """A model's name without its owner and without what it was tuned to."""
    bare = name.rpartition("/")[2].lower().removeprefix("meta-")
    return _TUNED.sub("", bare)


def on_meta(config: PretrainedConfig, dtype: torch.dtype, attention: str | None = None) -> Any:
    """The causal language model of a configuration, without memory for its weights.

    Raises:
        ModelError: transformers has no such model.
    """
    options = {} if attention is None else {"attn_implementation": attention}
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, **options)
    except (ValueError, KeyError, ImportError) as failure:
        raise ModelError(f"{config.model_type}: cannot be built: {str(failure).splitlines()[0]}") from failure
