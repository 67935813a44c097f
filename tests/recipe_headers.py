"""What stands above a recipe: its commands, its figures; and the data that the commands make, from rows for tests."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_datasets import serve

from rlhf_kit import cli

RECIPES = Path(__file__).parents[1] / "recipes"
PATHS = sorted(RECIPES.glob("*.yaml"))
OWN = ("quickstart", "rounds")
"""Recipes of the quickstart's base and layers, whose memory is said as what the machine has."""
OF_DATA = ("validate", "convert", "curate")
"""Commands of a header that make the recipe's data."""


def header(path: Path) -> str:
    """The comment at the head of a recipe, without its marks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line[1:].removeprefix(" ") for line in lines[:end])


def commands(path: Path) -> list[list[str]]:
    """The indented lines of a header, each a command, as the shell would divide it."""
    joined = re.sub(r"\\\n\s*", "", header(path))
    return [shlex.split(line) for line in joined.splitlines() if line.startswith("  ")]


@dataclass(frozen=True)
class Memory:
    """What a header says of memory: the command that says so, and GiB of one device by stage."""

    command: list[str]
    stages: dict[str, float]


def memory(path: Path) -> Memory:
    """The line `Memory by `rlhf-kit plan ...`: sft 1.2, reward 3.4, ppo 5.6 GiB a device.` of a header."""
    text = " ".join(header(path).split())
    found = re.search(r"Memory by `(rlhf-kit plan [^`]+)`: ((?:\w+ [\d.]+(?:, )?)+) GiB a device\.", text)
    assert found is not None, f"{path.name}: its header has no line about memory"
    stages = dict(stage.split() for stage in found[2].split(", "))
    return Memory(shlex.split(found[1]), {name: float(size) for name, size in stages.items()})


def hardware(path: Path) -> str:
    """The sentence on hardware of a header, without its full stop."""
    found = re.search(r"Hardware: (.+?)\. ", " ".join(header(path).split()) + " ")
    assert found is not None, f"{path.name}: its header names no hardware"
    return found[1]


def launch_file(path: Path) -> dict[str, Any]:
    """accelerate's settings of the command that runs a recipe; empty where no launcher starts it."""
    run = commands(path)[-1]
    if run[0] == "rlhf-kit":
        return {}
    file = RECIPES.parent / run[run.index("--config_file") + 1]
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    if "--num_processes" in run:
        found["num_processes"] = int(run[run.index("--num_processes") + 1])
    return found


def processes(path: Path) -> int:
    """How many processes the command of a header starts, on all machines."""
    return int(launch_file(path).get("num_processes", 1))


PAGE = RECIPES / "README.md"
_COLUMNS = ("recipe", "what it does", "hardware", "GiB a device by plan: SFT, reward, PPO", "run here")


def table() -> str:
    """The table of recipes/README.md, from the headers: `python tests/recipe_headers.py` writes it anew."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    for path in PATHS:
        title = header(path).partition("\n")[0].rstrip(".")
        sizes = "" if path.stem in OWN else ", ".join(f"{size:.1f}" for size in memory(path).stages.values())
        ran = "no" if "Not run here" in header(path) else "yes"
        lines.append(f"| [{path.stem}]({path.name}) | {title} | {hardware(path)} | {sizes} | {ran} |")
    return "\n".join(lines)


def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Runs in `folder` the commands of all headers that make data, on the stand-ins for the Hub's datasets."""
    serve(patch)
    patch.chdir(folder)
    for path in PATHS:
        for program, *arguments in commands(path):
            if program == "rlhf-kit" and arguments[0] in OF_DATA:
                # `validate --clean` ends with 2 where it left rows out, and the stand-ins have some.
                assert cli.main(arguments) == (2 if arguments[0] == "validate" else 0), arguments


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        re.sub(r"^\|.*\|$(\n^\|.*\|$)*", lambda _: table(), page, count=1, flags=re.MULTILINE), encoding="utf-8"
    )
