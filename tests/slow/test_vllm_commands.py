"""`sample` and `score` with real vLLM servers say what they say without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import write_data
from vllm_server import VllmServer
from whole_run import write_run

from rlhf_kit.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the model that the server has, and data."""
    directory = tmp_path_factory.mktemp("commands")
    write_run(directory, base=model)
    write_data(directory)
    return directory


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("policy", ["base", "sft", "ppo"])
def test_the_likeliest_answers_are_the_same(server: VllmServer, place: Path, tmp_path: Path, policy: str) -> None:
    common = ["sample", str(place / "run"), "--prompts", str(place / "heldout.jsonl"), "--policy", policy]
    common += ["--k", "1", "--temperature", "0", "--max-new-tokens", "12"]
    assert main([*common, "--out", str(tmp_path / "here.jsonl")]) == 0
    assert main([*common, "--out", str(tmp_path / "there.jsonl"), "--vllm", server.url]) == 0
    here, there = (rows(tmp_path / f"{name}.jsonl") for name in ("here", "there"))
    assert len(here) == 16 and here == there


def test_scores_of_a_served_reward_model_are_the_same(place: Path, tmp_path: Path) -> None:
    served, rankings = tmp_path / "reward", str(place / "rankings.jsonl")
    export = ["export", str(place / "run"), "--to", "reward", "--merged", "--dtype", "float32", "--out", str(served)]
    assert main(export) == 0
    options = ("--runner", "pooling", "--dtype", "float32")
    assert main(["score", rankings, "--reward", str(place / "run"), "--out", str(tmp_path / "here.jsonl")]) == 0
    with VllmServer(served, tmp_path / "vllm.log", options) as server:
        there = ["--out", str(tmp_path / "there.jsonl"), "--vllm", server.url]
        assert main(["score", rankings, "--reward", str(served), *there]) == 0
    scores = {
        name: [score for row in rows(tmp_path / f"{name}.jsonl") for score in row["meta"]["scores"]]
        for name in ("here", "there")
    }
    assert len(scores["here"]) == 48 * 5 and max(scores["here"]) - min(scores["here"]) > 0.5
    assert scores["there"] == pytest.approx(scores["here"], abs=1e-4)
