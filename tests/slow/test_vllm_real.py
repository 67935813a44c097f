"""Rollouts by a real vLLM server: the kit's log-probabilities, versions, learning, and a server that is killed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import stir
from test_ppo_kill import figures, finish, has_reached, log_of, start, wait_until
from test_ppo_learns import run as learn
from tiny_recipe import write_recipe
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from vllm_server import VllmServer, adapter_of_tiny, lora_options, saved

from rlhf_kit import Backbone, load_backbone, load_recipe
from rlhf_kit.batches import Sequences
from rlhf_kit.errors import EngineError
from rlhf_kit.models import lora_config
from rlhf_kit.models.sources import resolve
from rlhf_kit.recipe_rollout import RolloutSection
from rlhf_kit.rollout.vllm import Drawn, VllmEngine

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.usefixtures("one_thread")]

ROOT = Path(__file__).parents[2]
TEMPERATURE = 0.7
UPDATES = 14
REWARD = """
def share_of_even(prompts, completions, completion_ids, **columns):
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]
"""


# -------------------------------------------------------------------- SmolLM2


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """SmolLM2-135M in float32, with two adapters that answer otherwise than it and than each other."""
    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml", ["model.dtype=float32"])
    made = load_backbone(recipe.model)
    for seed, name in enumerate(("policy", "later"), 1):
        made.add_adapter(name, lora_config(recipe.lora))
        stir(made, name, seed, size=0.04)
    return made.eval()


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    model = load_recipe(ROOT / "recipes" / "quickstart.yaml").model
    log = tmp_path_factory.mktemp("smol") / "vllm.log"
    with VllmServer(Path(resolve(model.name_or_path, model.sha256)), log, lora_options()) as server:
        yield server


def engine_of(server: VllmServer, tokenizer: PreTrainedTokenizerBase, adapters: Path) -> VllmEngine:
    return VllmEngine(RolloutSection(engine="vllm", base_url=server.url, timeout=120), tokenizer, adapters)


def prompts_of(backbone: Backbone) -> list[list[int]]:
    """Of different lengths, one of them twice."""
    texts = ("Name the planets.", "Why do leaves fall in autumn, and not in spring?", "Hello.", "Hello.")
    template = backbone.tokenizer.apply_chat_template
    return [
        template([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False) for text in texts
    ]


def draw(engine: VllmEngine, prompts: Sequence[Sequence[int]], version: str | None, **options: Any) -> list[Drawn]:
    options = {"max_new_tokens": 24, "temperature": TEMPERATURE, **options}
    return engine.sample(prompts, version=version, seeds=[*range(len(prompts))], **options)


def check_same(drawn: list[Drawn], expected: list[Drawn]) -> None:
    """The same answers; which of them share a pass is chance, and moves their log-probabilities by rounding."""
    assert [one.ids for one in drawn] == [one.ids for one in expected]
    for one, other in zip(drawn, expected, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-3)


@torch.no_grad()
def log_probs(backbone: Backbone, role: str | None, prompts: list[list[int]], drawn: list[Drawn]) -> Tensor:
    """Those of the tokens that were drawn, all in one row, as the kit computes them."""
    s = Sequences.collate(prompts, [one.ids for one in drawn], backbone.padding_id)
    with backbone.role(role):
        states = s.before_response(backbone(s.input_ids, s.attention_mask))
        found, _ = backbone.log_probs(states, s.responses, temperature=TEMPERATURE)
    return found[s.response_mask]


def difference(backbone: Backbone, role: str | None, prompts: list[list[int]], drawn: list[Drawn]) -> float:
    """The mean of |log p_kit - log p_server| a token."""
    theirs = torch.tensor([value for one in drawn for value in one.log_probs])
    return float((log_probs(backbone, role, prompts, drawn) - theirs).abs().mean())


def test_log_probabilities_are_those_of_the_adapter_that_was_published_last(
    smol: VllmServer, backbone: Backbone, tmp_path: Path
) -> None:
    engine, prompts = engine_of(smol, backbone.tokenizer, tmp_path / "adapters"), prompts_of(backbone)
    engine.connect(temperature=TEMPERATURE, rank=16)
    policy, later = (engine.publish(saved(backbone, name, tmp_path / name)) for name in ("policy", "later"))
    assert policy != later and engine.publish(tmp_path / "later") == later
    drawn = draw(engine, prompts, later)
    assert difference(backbone, "later", prompts, drawn) < 1e-4
    assert all(difference(backbone, other, prompts, drawn) > 0.1 for other in ("policy", None))
    # The one before is published again, and the base itself can be asked.
    assert engine.publish(tmp_path / "policy") == policy
    for role, version in (("policy", policy), (None, None)):
        assert difference(backbone, role, prompts, draw(engine, prompts, version)) < 1e-4, role


def test_answers_depend_on_seeds_and_end_as_they_do_here(smol: VllmServer, backbone: Backbone, tmp_path: Path) -> None:
    engine, prompts = engine_of(smol, backbone.tokenizer, tmp_path), prompts_of(backbone)
    engine.connect(temperature=TEMPERATURE, rank=16)
    answers = draw(engine, prompts, None, max_new_tokens=48)
    check_same(draw(engine, prompts, None, max_new_tokens=48), answers)
    assert answers[2] != answers[3], "the same prompt with another seed"
    assert all(len(one.ids) == len(one.log_probs) <= 48 for one in answers)
    eos = backbone.tokenizer.eos_token_id
    assert all((eos in one.ids) == (one.ids[-1] == eos) for one in answers)
    assert any(one.ids[-1] == eos for one in answers) and any(len(one.ids) == 48 for one in answers)
    (first,) = {one.ids[0] for one in draw(engine, prompts[:1], None)}
    (stopped,) = draw(engine, prompts[:1], None, stop_token_ids=[first])
    assert stopped.ids == (first,) and stopped.log_probs[0] < 0


def test_a_higher_rank_than_the_server_takes_is_refused(smol: VllmServer, backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"--max-lora-rank 32"):
        engine_of(smol, backbone.tokenizer, tmp_path).connect(temperature=1.0, rank=17)


# -------------------------------------------------------------------- a model that learns in seconds


def test_ppo_learns_as_it_does_without_the_server(server: VllmServer, model: Path, tmp_path: Path) -> None:
    common = {"total_episodes": 32 * 24, "kl_coef": 0.0, "model_init_kwargs": {"dtype": "float32"}}
    rollout = {"engine": "vllm", "base_url": server.url, "timeout": 120}
    logs = {
        name: learn(str(model), tmp_path / name, **common, **options)
        for name, options in {"hf": {}, "vllm": {"rollout": rollout}}.items()
    }
    for name, log in logs.items():
        shares = [entry["rewards/share_of_even"] for entry in log]
        assert shares[0] < 0.6 and sum(shares[-3:]) / 3 >= 0.9, (name, shares)
    mismatches = [entry["engine_mismatch"] for entry in logs["vllm"]]
    # Rounding alone, as long as each update's answers are of its own adapter.
    assert len(mismatches) == 24 and max(mismatches) < 1e-3, mismatches


# -------------------------------------------------------------------- a server that is killed


def test_a_kill_in_the_middle_of_sampling_loses_no_answer(server: VllmServer, model: Path, tmp_path: Path) -> None:
    """The server comes back without the adapter."""
    backbone = adapter_of_tiny(model)
    engine = engine_of(server, backbone.tokenizer, tmp_path / "adapters")
    engine.connect(temperature=TEMPERATURE, rank=8)
    version = engine.publish(saved(backbone, "policy", tmp_path / "policy"))
    prompts = [[5, 6 + number, 7] for number in range(48)]
    long = {"max_new_tokens": 300, "min_new_tokens": 300}
    expected = draw(engine, prompts, version, **long)
    came: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(draw, engine, prompts, version, progress=came.append, **long)
        time.sleep(0.5)
        assert not again.done() and not came
        server.kill()
        server.start()
        check_same(again.result(timeout=120), expected)
    assert sum(came) == len(prompts)


@pytest.fixture
def place(server: VllmServer, model: Path, tmp_path: Path) -> Path:
    """A recipe whose PPO needs nothing but the base, a function and the server."""
    write_recipe(
        tmp_path,
        lora={"r": 8, "lora_alpha": 16},
        data={"demonstrations": None, "rankings": None, "prompts_heldout": None, "rubric": None},
        ppo={
            "total_episodes": 16 * UPDATES,
            "batch_size": 16,
            "per_device_train_batch_size": 8,
            "mini_batch_size": 8,
            "reward_funcs": ["even.py:share_of_even"],
            "save_steps": 1,
            "logging_steps": 1,
            "rollout": {"engine": "vllm", "base_url": server.url, "timeout": 240},
        },
    )
    (tmp_path / "even.py").write_text(REWARD)
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(model, tmp_path / "model")
    return tmp_path


def check_finished(place: Path, output: str) -> None:
    """Every update once, on as many answers as it should have, all of the adapter that was to answer."""
    entries = [entry for entry in figures(place / output / "ppo") if "score" in entry]
    assert [entry["step"] for entry in entries] == list(range(1, UPDATES + 1))
    assert max(entry["engine_mismatch"] for entry in entries) < 1e-3


def test_a_server_that_is_killed_and_started_again_is_waited_for(server: VllmServer, place: Path) -> None:
    process = start(place, "through")
    assert wait_until(process, lambda: has_reached(place / "through" / ".ppo.partial", 3))
    server.kill()
    time.sleep(2)
    assert process.poll() is None, log_of(place, "through").read_text()[-2000:]
    server.start()
    finish(process, place, "through")
    check_finished(place, "through")


def test_a_server_that_stays_away_stops_the_run_and_the_same_command_goes_on(server: VllmServer, place: Path) -> None:
    options = ("ppo.rollout.timeout=15",)
    process = start(place, "stopped", *options)
    assert wait_until(process, lambda: has_reached(place / "stopped" / ".ppo.partial", 3))
    server.kill()
    finish(process, place, "stopped", code=2)
    said = log_of(place, "stopped").read_text()
    last = said.splitlines()[-1]
    assert "Traceback" not in said and server.url in last and "goes on" in last, last
    server.start()
    finish(start(place, "stopped", *options), place, "stopped")
    assert "ppo: goes on after update" in log_of(place, "stopped").read_text()
    check_finished(place, "stopped")
