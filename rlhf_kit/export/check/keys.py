"""The names of an adapter's tensors: as PEFT writes them, and the ways in which others get them wrong."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from torch import Tensor

from rlhf_kit.export.check.files import Finding, listed

PREFIX = "base_model.model."
"""What every name begins with in a PEFT checkpoint."""

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?:(?P<linear>[AB])\.weight|embedding_(?P<embedding>[AB]))")
# The adapter's name inside a name, as in a state dict that was saved without PEFT's help.
_ADAPTER_NAME = (
    re.compile(r"(?P<before>\.lora_[AB])\.(?P<name>[^.]+)(?P<after>\.(?:weight|bias))$"),
    re.compile(
        r"(?P<before>\.lora_(?:embedding_[AB]|magnitude_vector))\.(?P<name>(?!weight$)[^.]+)(?P<after>)(?:\.weight)?$"
    ),
)
_SAVED_NAME = re.compile(r"(?P<before>)\.modules_to_save\.(?P<name>[^.]+)(?P<after>\.[^.]+)$")
_WORDS = {
    "doubled-prefix": f"begin with {PREFIX} more than once, as if an adapter had been put on an adapter; PEFT ignores "
    f"them. Take {PREFIX} off each name until one is left",
    "bare-keys": f"do not begin with {PREFIX}; PEFT ignores them. Put it before each name",
    "foreign-prefix": f"have something before {PREFIX}, such as a wrapper's name; PEFT ignores them. Take it off",
    "adapter-name": "have the adapter's name in them; PEFT ignores them, as vLLM does. Take it out of each name",
    "default-name": "have the adapter's name, default, in them; PEFT finds them under that name only, vLLM not at all. "
    "Take it out of each name",
}
_DEFAULT = "default"


@dataclass(frozen=True)
class Pair:
    """The two factors of one module's LoRA; either may be missing.

    Attributes:
        module: its name in the base.
        a: (r, in) or (r, V) of an embedding.
        b: (out, r) or (H, r) of an embedding.
    """

    module: str
    a: Tensor | None = None
    b: Tensor | None = None

    @property
    def rank(self) -> int | None:
        """By A, or by B where there is no A; None where neither is a matrix."""
        if self.a is not None and self.a.dim() > 1:
            return self.a.shape[0]
        return self.b.shape[1] if self.b is not None and self.b.dim() > 1 else None


def canonical(name: str) -> tuple[str, list[str]]:
    """A tensor's name as PEFT writes it, and the codes of what is wrong with the one it has."""
    faults = []
    if name.startswith(PREFIX + PREFIX):
        faults.append("doubled-prefix")
        while name.startswith(PREFIX + PREFIX):
            name = name.removeprefix(PREFIX)
    elif not name.startswith(PREFIX):
        faults.append("foreign-prefix" if f".{PREFIX}" in name else "bare-keys")
        name = PREFIX + name.rpartition(PREFIX)[2]
    for pattern in (*_ADAPTER_NAME, _SAVED_NAME):
        if match := pattern.search(name):
            found_all_the_same = match["name"] == _DEFAULT and pattern is not _SAVED_NAME
            faults.append("default-name" if found_all_the_same else "adapter-name")
            name = name[: match.start()] + match["before"] + match["after"]
    return name, faults


def canonical_tensors(file: str, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Finding]]:
    """The tensors under the names that PEFT would have written, with a finding for each kind of wrong name."""
    wrong: defaultdict[str, list[str]] = defaultdict(list)
    right: dict[str, Tensor] = {}
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain, faults = canonical(name)
        (renamed if faults else right)[plain] = tensor
        for code in faults:
            wrong[code].append(name)
    found = [
        Finding(
            "adapter-name" if code == "default-name" else code,
            "warning" if code == "default-name" else "error",
            f"{file}: {len(names)} of {len(tensors)} names ({listed(names, 1)}) {_WORDS[code]}",
        )
        for code, names in wrong.items()
    ]
    return renamed | right, found


def lora_pairs(tensors: dict[str, Tensor]) -> dict[str, Pair]:
    """The LoRA pairs by the names of their modules.

    Args:
        tensors: under canonical names.
    """
    halves: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if match := _FACTOR.fullmatch(name):
            side = match["linear"] or match["embedding"]
            halves[match["module"].removeprefix(PREFIX)][side.lower()] = tensor
    return {module: Pair(module, **factors) for module, factors in halves.items()}
