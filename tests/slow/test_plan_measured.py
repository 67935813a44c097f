"""The plan of a small model beside the memory that its three stages really take, each in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


def test_three_stages_are_planned_within_a_fifth(tmp_path: Path) -> None:
    import bench_plan

    recipe = bench_plan.write_recipe(tmp_path / "llama", "llama")
    plans = bench_plan.planned(recipe)
    for stage in bench_plan.STAGES:
        found, (expected, phase) = bench_plan.measured(stage, recipe), plans[stage]
        assert expected / found == pytest.approx(1, abs=bench_plan.WANTED), f"{stage}, {phase}: {expected}, {found}"
