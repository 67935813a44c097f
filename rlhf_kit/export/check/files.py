"""What stands in an adapter directory: its configuration and its tensors, read without trusting either."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import peft
import torch
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rlhf_kit import reasons

Severity = Literal["error", "warning", "note"]

FAILURES = (
    *(OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError, AttributeError, AssertionError),
    SafetensorError,
)
"""What transformers and PEFT raise for files that are not what they expect."""

# Names under which adapters are found that PEFT does not read.
_OTHER_WEIGHTS = ("adapter_model.pt", "model.safetensors", "pytorch_model.bin", "adapters.safetensors")
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Finding:
    """One thing to know about an adapter.

    Attributes:
        code: short and the same in every version, such as `zero-b`.
        severity: an `error` keeps the adapter from doing what it was trained for; a `warning` may; a `note` does not.
        message: what, where, and what to do.
    """

    code: str
    severity: Severity
    message: str

    def __str__(self) -> str:
        """As it is printed: the files are not trusted, and may hold what a terminal obeys."""
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in self.message)
        return f"{self.severity}: {text} [{self.code}]"


_Rank = Annotated[int, Field(gt=0)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Token = Annotated[int, Field(ge=0)]
_Name = Annotated[str, Field(max_length=500)]


class AdapterConfig(BaseModel):
    """The fields of `adapter_config.json` that are judged, with the defaults of PEFT's `LoraConfig`."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    peft_type: _Name
    task_type: _Name | None = None
    peft_version: _Name | None = None
    auto_mapping: dict[str, Any] | None = None
    base_model_name_or_path: _Name | None = None
    revision: _Name | None = None
    r: _Rank = 8
    lora_alpha: _Number = 8
    use_rslora: bool | None = False
    use_dora: bool | None = False
    lora_bias: bool | None = False
    bias: _Name = "none"
    init_lora_weights: Any = True
    target_modules: list[str] | str | None = None
    target_parameters: list[str] | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Number] | None = None
    trainable_token_indices: list[_Token] | dict[str, list[_Token]] | None = None
    alora_invocation_tokens: list[_Token] | None = None
    layer_replication: list[Any] | None = None
    use_bdlora: Any = None
    use_qalora: bool | None = False

    @property
    def is_lora(self) -> bool:
        """The only kind whose tensors are judged one by one."""
        return self.peft_type == PeftType.LORA.value


def listed(names: Iterator[str] | list[str], shown: int = 3) -> str:
    """The first of some names, and how many there are besides."""
    names = list(names)
    more = len(names) - shown
    return ", ".join(map(_cut, names[:shown])) + (f" and {more} more" if more > 0 else "")


def _cut(text: str, length: int = 200) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def first_line(failure: BaseException) -> str:
    """Of what an exception says, with its type."""
    lines = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {_cut(lines[0]).rstrip('. ')}" if lines else type(failure).__name__


# -------------------------------------------------------------------- the configuration


def read_config(directory: Path) -> tuple[AdapterConfig | None, list[Finding]]:
    """`adapter_config.json`, or None with what is wrong with it."""
    path = directory / CONFIG_NAME
    if not path.is_file():
        return None, [Finding("missing-config", "error", f"{path}: no such file{_where_else(directory)}")]
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as failure:
        return None, [Finding("broken-config", "error", f"{path}: is no JSON ({first_line(failure)}); write it anew")]
    if not isinstance(raw, dict):
        return None, [Finding("broken-config", "error", f"{path}: holds no JSON object; write it anew")]
    try:
        config = AdapterConfig.model_validate(raw)
    except ValidationError as error:
        return None, [*_bad_fields(path, error)]
    if found := [*_bad_patterns(path, config), *_unknown_type(path, config)]:
        return None, found
    return config, [*_unknown_fields(path, raw), *_missing_fields(path, config)]


def _bad_fields(path: Path, error: ValidationError) -> Iterator[Finding]:
    """One finding a field; of a field that may be of several types, what pydantic says of the first of them."""
    named: set[str | int] = set()
    for e in reasons.findings(error):
        where = [str(part) for part in e["loc"] if "[" not in str(part) and part not in ("str", "int")]
        if len(where) == len(e["loc"]) or e["loc"][0] not in named:
            said = f"{path}: {_cut('.'.join(where))}: {reasons.reason_of(e, AdapterConfig)}"
            yield Finding("bad-config", "error", said)
        named.add(e["loc"][0])


def _where_else(directory: Path) -> str:
    """Where the adapter may be instead: PEFT saves named adapters in directories of their names."""
    inside = sorted(child.name for child in directory.iterdir() if (child / CONFIG_NAME).is_file())
    if inside:
        return f"; adapters are in {listed(inside)}: check one of those directories"
    if (directory / "config.json").is_file():
        return "; there is a config.json, so this is a whole model and no adapter"
    return "; without it nobody knows rank, alpha and base: copy it from where the adapter was trained"


def _bad_patterns(path: Path, config: AdapterConfig) -> Iterator[Finding]:
    """PEFT reads some fields as regular expressions."""
    fields: dict[str, list[str]] = {"rank_pattern": [*(config.rank_pattern or {})]}
    fields["alpha_pattern"] = [*(config.alpha_pattern or {})]
    for name, value in (("target_modules", config.target_modules), ("exclude_modules", config.exclude_modules)):
        fields[name] = [value] if isinstance(value, str) else []
    for name, patterns in fields.items():
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as failure:
                reason = f"{pattern!r} is no regular expression ({failure})"
                yield Finding("bad-config", "error", f"{path}: {name}: {reason}; mend it")


def _unknown_type(path: Path, config: AdapterConfig) -> Iterator[Finding]:
    if config.peft_type not in PeftType.__members__:
        yield Finding(
            "unknown-peft-type",
            "error",
            f"{path}: peft_type {_cut(config.peft_type)!r} is none that PEFT {peft.__version__} knows"
            f"{_written_by(config.peft_version)}; upgrade PEFT",
        )


def _written_by(version: object) -> str:
    return f" (it was written by PEFT {version})" if version else ""


def _unknown_fields(path: Path, raw: dict[str, Any]) -> Iterator[Finding]:
    """What a newer PEFT, or another tool, has written. PEFT ignores it, which matters where it is set."""
    known = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[raw["peft_type"]]])}
    unknown = sorted(set(raw) - known)
    if not unknown:
        return
    set_ones = [name for name in unknown if raw[name] not in (None, False, {}, [], "")]
    said = f"{path}: PEFT {peft.__version__} does not know {listed(set_ones or unknown)}"
    said += f"{_written_by(raw.get('peft_version'))} and ignores it"
    if set_ones:
        yield Finding("unknown-fields", "warning", f"{said}; if the adapter needs it, load it with a newer PEFT")
    else:
        yield Finding("unknown-fields", "note", f"{said}; it is not set, so nothing is lost")


def _missing_fields(path: Path, config: AdapterConfig) -> Iterator[Finding]:
    if not config.is_lora:
        return
    for name in ("r", "lora_alpha"):
        if name not in config.model_fields_set:
            default = AdapterConfig.model_fields[name].default
            yield Finding("missing-field", "warning", f"{path}: no {name}; PEFT takes {default}. Write the one it has")
    if config.target_modules is None and not config.target_parameters:
        yield Finding(
            "missing-field",
            "warning",
            f"{path}: no target_modules; PEFT takes those that it keeps for the base's model type. Write them down",
        )


def peft_config(directory: Path) -> tuple[PeftConfig | None, list[Finding]]:
    """The configuration as PEFT reads it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unknown fields, which have a finding of their own
            return PeftConfig.from_pretrained(str(directory)), []
    except FAILURES as failure:
        said = f"{directory / CONFIG_NAME}: PEFT refuses it: {first_line(failure)}"
        return None, [Finding("peft-refuses", "error", f"{said}; mend that field")]


# -------------------------------------------------------------------- the tensors


def read_tensors(directory: Path) -> tuple[dict[str, Tensor], list[Finding]]:
    """The tensors by their names in the file that PEFT reads; none where it is missing or damaged."""
    whole, pickled = directory / SAFETENSORS_WEIGHTS_NAME, directory / WEIGHTS_NAME
    if whole.is_file():
        found = []
        if pickled.is_file():
            found = [Finding("two-weights", "note", f"{pickled}: not read, because there is {whole.name} beside it")]
        return _read(whole, found)
    if pickled.is_file():
        advice = "others may refuse a pickle; save it as safetensors"
        return _read(pickled, [Finding("pickled-weights", "note", f"{pickled}: read with weights_only; {advice}")])
    others = [name for name in _OTHER_WEIGHTS if (directory / name).is_file()]
    instead = f"; there is {listed(others)}, which PEFT does not read" if others else ""
    said = f"{directory}: neither {whole.name} nor {pickled.name} is there{instead}; without weights it does nothing"
    return {}, [Finding("missing-weights", "error", said)]


def _read(path: Path, found: list[Finding]) -> tuple[dict[str, Tensor], list[Finding]]:
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            said = f"{path}: a pointer of Git LFS, not the weights; fetch them with `git lfs pull`"
            return {}, [*found, Finding("damaged-weights", "error", said)]
    pickled = path.suffix == ".bin"
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True) if pickled else load_file(path)
    except (SafetensorError, pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError) as failure:
        what = "damaged, or holds more than tensors" if pickled else "damaged or cut off"
        said = f"{path}: {what} ({first_line(failure)}); copy it again from where it was saved"
        return {}, [*found, Finding("damaged-weights", "error", said)]
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        said = f"{path}: holds no table of tensors; save the adapter with PEFT's save_pretrained"
        return {}, [*found, Finding("damaged-weights", "error", said)]
    if not tensors:
        return {}, [*found, Finding("missing-weights", "error", f"{path}: holds no tensors; save the adapter again")]
    return tensors, found
