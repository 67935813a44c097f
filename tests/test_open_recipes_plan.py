"""Each recipe is planned: it fits the hardware in its header, and the header's figures are what the plan says now."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from recipe_headers import OWN, PATHS, commands, hardware, launch_file, memory, processes

from rlhf_kit.planning import Plan, Wishes, plan
from rlhf_kit.planning.wishes import bytes_of
from rlhf_kit.recipe import load_recipe
from rlhf_kit.recipe_ppo import mistakes
from rlhf_kit.validation import check_recipe

OPEN = [path for path in PATHS if path.stem not in OWN]


@pytest.fixture(scope="module", autouse=True)
def nothing_fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """As on a machine that has neither models nor datasets yet: lengths are then estimated, and the same everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


def asked(path: Path) -> argparse.Namespace:
    """The command of the header's line on memory."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--device", required=True)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--mode", default="ddp")
    program, name, *rest = memory(path).command
    assert (program, name) == ("rlhf-kit", "plan")
    return parser.parse_args(rest)


def size_of(path: Path) -> int:
    """Bytes of a device, or of the machine where there is none, by the sentence on hardware."""
    found = re.search(r"(\d+) GB", hardware(path))
    assert found is not None
    return int(found[1]) * 10**9


def planned(path: Path) -> Plan:
    said = asked(path)
    recipe = load_recipe(path, said.overrides, check=check_recipe)
    return plan(recipe, Wishes(size_of(path), said.device != "cpu", said.devices, said.mode))


@pytest.mark.parametrize("path", OPEN, ids=lambda path: path.stem)
def test_a_recipe_fits_and_its_header_says_what_the_plan_says(path: Path) -> None:
    found = planned(path)
    assert found.source.startswith("shipped"), "CI has no network"
    assert found.fits, {stage.stage: stage.peak.total / 2**30 for stage in found.stages}
    now = {stage.stage: stage.peak.total / 2**30 for stage in found.stages}
    assert memory(path).stages == pytest.approx(now, rel=0.03, abs=0.06), f"{path.name}: say so in its header"
    assert all(stage.work.steps for stage in found.stages), "how long it takes is known too"


@pytest.mark.parametrize("path", OPEN, ids=lambda path: path.stem)
def test_the_plan_is_of_the_devices_that_the_command_starts(path: Path) -> None:
    said, run = asked(path), commands(path)[-1]
    assert said.recipe == run[-1] == f"recipes/{path.name}"
    assert ("no GPU" in hardware(path)) == (said.device == "cpu")
    assert said.device == "cpu" or bytes_of(said.device) == size_of(path)
    launch = launch_file(path)
    assert said.devices == processes(path) == launch.get("num_processes", 1)
    assert not list(mistakes(load_recipe(path).ppo, processes(path))), "an update divides among the devices"
    assert said.mode == (f"zero{launch['deepspeed_config']['zero_stage']}" if launch else "ddp")
