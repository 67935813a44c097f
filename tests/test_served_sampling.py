"""Answers and scores by a vLLM server: the same answers as here where nothing is random, no base in memory for them,
kept apart, and a server with something else found out. The server is a stand-in that speaks as vLLM does."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from vllm_double import VllmDouble
from whole_run import write_adapter, write_base

from rlhf_kit.checkpoint import INPUTS
from rlhf_kit.cli import main
from rlhf_kit.errors import EngineError, RlhfKitError
from rlhf_kit.evaluation import answering
from rlhf_kit.evaluation.answering import answer, crews
from rlhf_kit.evaluation.policies import named
from rlhf_kit.records import Prompt
from rlhf_kit.sampling import server_at
from rlhf_kit.sampling.drawing import Settings

pytest_plugins = ["whole_run"]  # the fixtures place and run

PROMPTS = [Prompt(prompt=text) for text in ("Say hello.", "Count to five.", "Why is the sky blue?")]
GREEDY = Settings(k=1, temperature=0.0, max_new_tokens=6, seed=3, batch_size=2)
DRAWN = Settings(k=2, temperature=1.0, max_new_tokens=6, seed=3, batch_size=4)
TYPED = ("--k", "1", "--temperature", "0", "--max-new-tokens", "6")


@pytest.fixture
def double(place: Path) -> Any:
    with VllmDouble(place / "base") as server:
        yield server


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": one.prompt}) + "\n" for one in PROMPTS))
    return file


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def forbidden(*_: object) -> None:
    raise AssertionError("the base was loaded")


def said(policies: Any, kept: Path, settings: Settings, double: VllmDouble | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    server = None if double is None else server_at(double.url, None)
    for crew in crews(policies, server, kept / "adapters"):
        found |= answer(crew, PROMPTS, settings, kept)
    return found


# -------------------------------------------------------------------- sample


@pytest.mark.parametrize("who", ["base", "sft", "ppo"])
def test_the_likeliest_answers_are_those_that_are_drawn_here_and_no_base_is_loaded_for_them(
    run: Path, prompts: Path, tmp_path: Path, double: VllmDouble, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    common = ("sample", str(run), "--prompts", str(prompts), "--policy", who, *TYPED)
    assert main([*common, "--out", str(tmp_path / "here.jsonl")]) == 0
    monkeypatch.setattr(answering, "load_backbone", forbidden)
    assert main([*common, "--out", str(tmp_path / "there.jsonl"), "--vllm", double.url]) == 0
    assert rows_of(tmp_path / "there.jsonl") == rows_of(tmp_path / "here.jsonl")
    assert len(double.completions) >= len(PROMPTS) and not double.adapters, "what was loaded is taken away again"
    assert not list(tmp_path.glob(".there*")), "nothing is left of the work"


def test_what_befalls_the_server_costs_no_answer(run: Path, prompts: Path, tmp_path: Path, double: VllmDouble) -> None:
    common = ("sample", str(run), "--prompts", str(prompts), "--max-new-tokens", "6", "--k", "3", "--vllm", double.url)
    assert main([*common, "--out", str(tmp_path / "calm.jsonl")]) == 0
    # The first two requests for a response are the handshake's.
    double.script = [None, None, "restart", "cut", "500", "short", "other model", "no json"]
    assert main([*common, "--out", str(tmp_path / "rough.jsonl")]) == 0
    assert double.restarts == 1 and not double.script
    assert rows_of(tmp_path / "rough.jsonl") == rows_of(tmp_path / "calm.jsonl")


def test_each_answer_has_a_seed_of_its_own_and_another_seed_other_ones(run: Path, tmp_path: Path, place: Path) -> None:
    policy = named([str(run)])[-1:]
    seen = []
    for seed in (3, 4):
        with VllmDouble(place / "base") as double:
            said(policy, tmp_path / str(seed), Settings(2, 1.0, 6, seed, batch_size=4), double)
            seen.append({body["seed"] for body in double.completions if body["max_tokens"] == 6})
    assert [len(seeds) for seeds in seen] == [6, 6] and not seen[0] & seen[1]
    assert all(0 <= value < 2**63 for seeds in seen for value in seeds)


def test_checkpoints_are_compared_by_what_the_server_draws_with_each(
    run: Path, place: Path, tmp_path: Path, prompts: Path, double: VllmDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step, seed in ((4, 1), (8, 7)):
        write_adapter(run / "sft" / "checkpoints" / f"checkpoint-{step}" / "sft", place / "base", seed, r=4)
    words = ["sample", str(run), "--checkpoints", "--prompts", str(prompts), *TYPED, "--out"]
    assert main([*words, str(tmp_path / "here.json")]) == 0
    monkeypatch.setattr(answering, "load_backbone", forbidden)
    assert main([*words, str(tmp_path / "there.json"), "--vllm", double.url]) == 0
    here, there = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("here", "there"))
    assert there["comparison"] == here["comparison"] and len(here["comparison"]["standings"]) == 2
    assert there[INPUTS]["engine"] == "vllm" and "engine" not in here[INPUTS]


# -------------------------------------------------------------------- evaluate


def test_answers_and_kl_of_an_evaluation_are_those_of_one_that_draws_here(
    run: Path, tmp_path: Path, double: VllmDouble
) -> None:
    policies = named([str(run)])
    here, there = (said(policies, tmp_path / name, GREEDY, by) for name, by in (("here", None), ("there", double)))
    for name in ("base", "sft", "ppo"):
        for ours, theirs in zip(chain(*here[name]), chain(*there[name]), strict=True):
            assert (ours.text, ours.ended, ours.ids) == (theirs.text, theirs.ended, theirs.ids)
            assert theirs.log_prob is not None and ours.log_prob is None
            assert (ours.kl is None) == (name != "ppo")
            assert ours.kl is None or theirs.kl == pytest.approx(ours.kl, abs=1e-5)


def test_the_base_is_loaded_for_the_kl_alone(
    run: Path, tmp_path: Path, double: VllmDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "load_backbone", forbidden)
    base, sft, ppo = named([str(run)])
    assert len(said([base, sft], tmp_path, DRAWN, double)["sft"]) == len(PROMPTS)
    with pytest.raises(AssertionError, match="was loaded"):
        said([ppo], tmp_path, DRAWN, double)


def test_what_the_server_drew_is_kept_apart_and_not_asked_for_again(
    run: Path, tmp_path: Path, double: VllmDouble
) -> None:
    policies = named([str(run)])[:2]
    first = said(policies, tmp_path, DRAWN, double)
    there = set(tmp_path.glob("*.json"))
    asked = len(double.completions)
    assert said(policies, tmp_path, DRAWN, double) == first and len(double.completions) == asked
    assert said(policies, tmp_path, DRAWN) != first, "the same seeds draw others here"
    assert len(set(tmp_path.glob("*.json")) - there) == len(there) == 4


def test_a_server_with_another_adapter_is_found_out_by_its_log_probabilities(
    run: Path, place: Path, tmp_path: Path, double: VllmDouble
) -> None:
    double.wrong_weights = run / "sft"
    ppo = named([str(run)])[-1:]
    with pytest.raises(EngineError, match=r"as ppo are \d\.\d\d nats a token .* not these adapters"):
        said(ppo, tmp_path, DRAWN, double)


def test_one_server_has_one_base(run: Path, tmp_path: Path, double: VllmDouble) -> None:
    other = write_base(tmp_path / "other")
    with pytest.raises(RlhfKitError, match="have 2 bases"):
        said(named([str(run), str(other)]), tmp_path, DRAWN, double)


def test_the_command_evaluates_with_a_server(
    run: Path, prompts: Path, tmp_path: Path, double: VllmDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judge.py").write_text(
        "def length(completions, **rest):\n    return [float(len(c)) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "policy", str(run), "--prompts", str(prompts), "--judge", "judge.py:length", *TYPED]
    shared = tmp_path / "shared"
    assert main([*words, "--resamples", "50", "--vllm", double.url, "--vllm-adapters", str(shared)]) == 0
    found = json.loads((run / "policies" / "evaluation.json").read_text())
    assert found["engine"] == "vllm" and found["kl"]["ppo"]["value"] is not None
    paths = [asked.body["lora_path"] for asked in double.asked if asked.route == "/v1/load_lora_adapter"]
    assert len(paths) > 2 and all(Path(path).parent == shared for path in paths)
    assert not list(shared.iterdir()), "nothing is left of the adapters"


# -------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--vllm", "nobody"], "--vllm nobody: must look like http://HOST:PORT"),
        (["--vllm", "http://127.0.0.1:1/v1"], "must end before /v1"),
        (["--vllm-adapters", "there"], "--vllm-adapters goes with --vllm URL"),
    ],
)
@pytest.mark.parametrize("command", [["sample"], ["evaluate", "policy"]])
def test_mistakes_end_with_two_in_a_line(
    run: Path, prompts: Path, capsys: pytest.CaptureFixture[str], command: list[str], words: list[str], line: str
) -> None:
    assert main([*command, str(run), "--prompts", str(prompts), *words]) == 2
    err = capsys.readouterr().err
    assert line in err and "Traceback" not in err
