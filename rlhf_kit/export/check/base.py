"""The base of an adapter: what the adapter says of it, and where it can be had."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HTTPError
from peft import PeftConfig
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from rlhf_kit.errors import ModelError
from rlhf_kit.export.check.files import FAILURES, AdapterConfig, Finding, first_line
from rlhf_kit.export.check.keys import Pair
from rlhf_kit.models.sources import is_repository_name, resolve

_HUB_SECONDS = 10.0


@dataclass(frozen=True)
class Adapter:
    """What the directory holds.

    Attributes:
        weights: the file with the tensors.
        tensors: under canonical names.
        pairs: of these tensors, by module.
    """

    directory: Path
    config: AdapterConfig
    peft: PeftConfig
    weights: str
    tensors: dict[str, Tensor]
    pairs: dict[str, Pair]


@dataclass(frozen=True)
class Base:
    """A base that can be had.

    Attributes:
        name: as it was named.
        source: what `from_pretrained` loads.
        revision: of a repository.
        config: the base's own.
    """

    name: str
    source: str
    revision: str | None
    config: PreTrainedConfig


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps PEFT's and transformers' warnings to ourselves: what they say is among the findings, in plainer words."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            transformers_logging.set_verbosity(level)


# -------------------------------------------------------------------- where it is


def name_findings(file: str, config: AdapterConfig) -> Iterator[Finding]:
    """What the adapter says of its base, and whether others can follow it."""
    name = (config.base_model_name_or_path or "").strip()
    advice = "write the Hub id of the base, such as owner/name"
    if not name:
        yield Finding("base-unnamed", "warning", f"{file}: base_model_name_or_path is empty; {advice}")
    elif _is_directory(name):
        said = f"{file}: base_model_name_or_path is {name}, a directory of this machine"
        yield Finding("base-path", "note", f"{said}; before others get the adapter, {advice}")
    elif not is_repository_name(name):
        said = f"{file}: base_model_name_or_path is {name}, a path that is not on this machine"
        yield Finding("base-path", "warning", f"{said}; {advice}")


def _is_directory(name: str) -> bool:
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, RuntimeError):  # too long a name, or the home of nobody
        return False


def find_base(config: AdapterConfig, base: str | None, sha256: str | None) -> tuple[Base | None, list[Finding]]:
    """The base that was named by hand, or the one that the adapter names.

    Raises:
        ModelError: the one named by hand cannot be had.
    """
    name = base or (config.base_model_name_or_path or "").strip()
    if not name:
        return None, [_not_found("the adapter names none")]
    revision = None if base else config.revision
    try:
        source = resolve(name, sha256)
        with quiet():
            found = Base(name, source, revision, _config_of(source, revision))
    except (ModelError, HTTPError, *FAILURES) as failure:
        reason = str(failure) if isinstance(failure, ModelError) else f"{name}: {first_line(failure)}"
        if base:
            raise ModelError(f"{reason}; name a directory or a Hub id of a model") from failure
        return None, [_not_found(reason)]
    return found, [*_other_base(found, config)]


def _other_base(base: Base, config: AdapterConfig) -> Iterator[Finding]:
    """Whether a base that was named by hand is another one than the adapter names. Models of different kinds can have
    modules of the same names and shapes, so only their configurations tell."""
    named = (config.base_model_name_or_path or "").strip()
    if named in ("", base.name):
        return
    try:
        with quiet():
            theirs = AutoConfig.from_pretrained(
                named, revision=config.revision, trust_remote_code=False, local_files_only=True
            ).model_type
    except FAILURES:
        theirs = None
    if theirs not in (None, base.config.model_type):
        said = (
            f"the adapter names {named} as its base, which is of type {theirs}; {base.name} is {base.config.model_type}"
        )
        yield Finding("wrong-base", "error", f"{said}: compare it with its own base")
    elif is_repository_name(named) and is_repository_name(base.name) and not _is_directory(base.name):
        said = f"the adapter names {named} as its base, and was compared with {base.name}"
        yield Finding("base-differs", "warning", f"{said}; that they are the same is yours to know")


def _not_found(reason: str) -> Finding:
    return Finding(
        "no-base",
        "note",
        f"the base cannot be had ({reason}): not checked whether names and shapes fit it, whether its tokenizer is the "
        "adapter's, and whether the adapter changes anything; name a base to have that checked",
    )


def _config_of(source: str, revision: str | None) -> PreTrainedConfig:
    """From a directory or the cache; else from the Hub, which is first asked for an answer within seconds, because
    transformers tries for half a minute."""
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        return AutoConfig.from_pretrained(source, local_files_only=True, **options)
    except OSError:
        if constants.HF_HUB_OFFLINE or Path(source).is_dir():
            raise
    HfApi().model_info(source, revision=revision, timeout=_HUB_SECONDS)
    return AutoConfig.from_pretrained(source, **options)
