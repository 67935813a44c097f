"""Python environments that a command makes for a tool that must not share one with the kit.

A converter that brings its own `gguf` would overwrite the one that transformers reads with; llama.cpp is compiled. Each
gets an environment of its own in the cache, made once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from rich.console import Console

from rlhf_kit.errors import ExportError
from rlhf_kit.models.sources import cache_dir, made_once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Environment:
    """What is installed, and how.

    Attributes:
        name: of its directory.
        requirements: pinned, so that what was verified is what is used.
        sees_ours: it also sees the packages of the environment that runs the kit, behind its own: torch and
            transformers are not fetched again, and what `requirements` bring comes first.
        words: what takes long, for the person who waits.
        needs: of the machine.
        cmake: words for CMake where something is compiled, before those of the user (`CMAKE_ARGS`).
    """

    name: str
    requirements: tuple[str, ...]
    sees_ours: bool
    words: str
    needs: str = "the package index"
    cmake: tuple[str, ...] = ()

    @property
    def directory(self) -> Path:
        """Another one for other requirements or another Python."""
        ours = sysconfig.get_path("purelib") if self.sees_ours else ""
        key = "\n".join((*self.requirements, sys.version, sys.base_prefix, ours))
        return cache_dir() / "environments" / f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def python_of(environment: Environment) -> Path:
    """The interpreter of an environment, which is made where it is not there yet.

    Raises:
        ExportError: it cannot be made; what pip said stands in the message, and nothing is kept.
    """
    target = environment.directory
    if not _interpreter(target).exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")):  # who comes second waits, and compiles nothing
            if not _interpreter(target).exists():
                with made_once(target) as scratch:
                    _make(environment, scratch)
    return _interpreter(target)


def _interpreter(directory: Path) -> Path:
    return directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _make(environment: Environment, directory: Path) -> None:
    log.info("%s: making an environment of its own, once (%s)", environment.name, environment.words)
    with Console(stderr=True).status(f"{environment.name}: {environment.words}"):
        _run(environment, [sys.executable, "-m", "venv", str(directory)])
        python = str(_interpreter(directory))
        options = ["--no-deps"] if environment.sees_ours else []
        pip = [python, "-m", "pip", "install", "--disable-pip-version-check", *options, *environment.requirements]
        _run(environment, pip)
        if environment.sees_ours:
            paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
            command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
            own = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
            (own / "of_rlhf_kit.pth").write_text("\n".join(sorted(paths)) + "\n", encoding="utf-8")


def _run(environment: Environment, command: list[str]) -> None:
    cmake = " ".join(filter(None, (shlex.join(environment.cmake), os.environ.get("CMAKE_ARGS"))))
    variables = {**os.environ, "CMAKE_ARGS": cmake} if environment.cmake else None
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode != 0:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in said if "error" in line.lower()] or said
        raise ExportError(
            f"{environment.name}: its environment cannot be made: {' | '.join(errors[-3:]) or 'no output'}. "
            f"It needs {environment.needs}; nothing was kept"
        )
