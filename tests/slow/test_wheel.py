"""The built wheel, installed in an environment of its own, works outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of a new environment that holds the wheel and borrows its dependencies from this one."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", place, ROOT, cwd=place)
    (wheel,) = place.glob("rlhf_kit-*.whl")
    environment = place / "venv"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    # The folder behind a .pth line comes after the new environment's own, and the .pth files inside it (the editable
    # install of the checkout is one) are not read: only the wheel can give rlhf_kit.
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=place)
    return environment / "bin"


def test_the_package_comes_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    origin = run(installed / "python", "-c", "import rlhf_kit; print(rlhf_kit.__file__)", cwd=tmp_path).strip()
    assert Path(origin).is_relative_to(installed.parent)


def test_help_names_the_commands(installed: Path, tmp_path: Path) -> None:
    text = run(installed / "rlhf-kit", "--help", cwd=tmp_path)
    for command in ("run", "sft", "reward", "ppo", "validate", "export", "chat", "doctor"):
        assert command in text


def test_packaged_quickstart_is_valid(installed: Path, tmp_path: Path) -> None:
    where = "import pathlib, rlhf_kit; print(pathlib.Path(rlhf_kit.__file__).parent / '_recipes' / 'quickstart.yaml')"
    recipe = run(installed / "python", "-c", where, cwd=tmp_path).strip()
    run(installed / "rlhf-kit", "validate", recipe, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == [], "validating writes nothing"
