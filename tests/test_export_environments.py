"""Environments that a command makes for itself, with a tiny package from the disk in the place of an index."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlhf_kit.errors import ExportError
from rlhf_kit.export import environments
from rlhf_kit.export.environments import Environment, python_of


def wheel(folder: Path, name: str, text: str) -> str:
    """A wheel of one module, as zip files are; returns its path."""
    import zipfile

    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", text)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLHF_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "cache" / "environments"


def said(python: Path, code: str) -> str:
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_it_sees_ours_behind_its_own(tmp_path: Path, cache: Path) -> None:
    """`yaml` is of this environment too: the one that it brings comes first, and ours stays as it is."""
    brought = wheel(tmp_path, "yaml", "MINE = 'its own'")
    python = python_of(Environment("overwriter", (brought,), sees_ours=True, words="a moment"))
    assert said(python, "import yaml; print(yaml.MINE)") == "its own"
    assert said(python, "import numpy; print(numpy.__file__)") == said(
        Path(sys.executable), "import numpy; print(numpy.__file__)"
    )
    assert said(Path(sys.executable), "import yaml; print(hasattr(yaml, 'MINE'))") == "False"
    (made,) = filter(Path.is_dir, cache.iterdir())
    assert made.name.startswith("overwriter-") and python.is_relative_to(made)


def test_without_ours_it_is_alone(tmp_path: Path) -> None:
    python = python_of(Environment("alone", (wheel(tmp_path, "apart", "X = 1"),), sees_ours=False, words="a moment"))
    assert said(python, "import apart; print(apart.X)") == "1"
    assert said(python, "import importlib.util as u; print(u.find_spec('numpy'))") == "None"


def test_it_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Environment("once", (wheel(tmp_path, "apart", "X = 1"),), sees_ours=False, words="a moment")
    first = python_of(environment)
    monkeypatch.setattr(environments, "_make", lambda *_: pytest.fail("made again"))
    assert python_of(environment) == first


def test_other_requirements_are_another_environment(tmp_path: Path) -> None:
    one = Environment("e", ("a==1",), sees_ours=False, words="")
    assert one.directory != Environment("e", ("a==2",), sees_ours=False, words="").directory
    assert one.directory != Environment("e", ("a==1",), sees_ours=True, words="").directory
    assert one.directory == Environment("e", ("a==1",), sees_ours=False, words="other").directory


BACKEND = """
import os, pathlib, shutil

def build_wheel(directory, config_settings=None, metadata_directory=None):
    made = pathlib.Path(os.environ["READY"])
    shutil.copy(made, directory)
    pathlib.Path(os.environ["HEARD"]).write_text(os.environ.get("CMAKE_ARGS", "nothing"))
    return made.name
"""


@pytest.mark.parametrize(
    ("own", "heard"),
    [(None, "-DA=OFF '-DB=a folder/b'"), ("-DA=ON", "-DA=OFF '-DB=a folder/b' -DA=ON")],
    ids=["alone", "with the user's"],
)
def test_what_is_compiled_is_told_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None, heard: str
) -> None:
    """The user's own words come last, where CMake lets them win."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "backend.py").write_text(BACKEND)
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (source / "pyproject.toml").write_text(f'{build}[project]\nname = "apart"\nversion = "1.0"\n')
    monkeypatch.setenv("READY", wheel(tmp_path, "apart", "X = 1"))
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    if own:
        monkeypatch.setenv("CMAKE_ARGS", own)
    python_of(Environment("made", (str(source),), False, "a moment", cmake=("-DA=OFF", "-DB=a folder/b")))
    assert (tmp_path / "heard").read_text() == heard


def test_a_failing_install_leaves_nothing_and_says_why(cache: Path) -> None:
    environment = Environment("failing", ("no-such-package-of-anybody==1",), sees_ours=False, words="a moment")
    with pytest.raises(ExportError, match="no-such-package-of-anybody") as caught:
        python_of(environment)
    assert "\n" not in str(caught.value) and "It needs the package index; nothing was kept" in str(caught.value)
    assert not any(one.is_dir() for one in cache.iterdir())


def test_two_at_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Environment("twice", (wheel(tmp_path, "apart", "X = 1"),), sees_ours=False, words="a moment")
    make, made = environments._make, list[Path]()

    def counted(environment: Environment, directory: Path) -> None:
        made.append(directory)
        make(environment, directory)

    monkeypatch.setattr(environments, "_make", counted)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(python_of, [environment, environment])
    assert first == second and said(first, "import apart; print(apart.X)") == "1"
    assert len(made) == 1 == sum(one.is_dir() for one in cache.iterdir()), "the second waited for the first"
