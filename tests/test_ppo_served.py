"""PPO on a server's answers: the server is a double that speaks as vLLM's does and really generates, with faults."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import stir, tiny_base, tiny_directory
from peft import LoraConfig
from ppo_trainers import PROMPTS, ROWS, config, episodes_of, tiny_roles
from safetensors.torch import load_file
from test_ppo_learns import PROMPTS as TEXTS
from test_ppo_learns import share_of_even
from tiny_recipe import make_capable_model
from transformers import AutoTokenizer
from vllm_double import VllmDouble

from rlhf_kit import ModelError, PPOConfig, PPOTrainer, RlhfKitError, rl
from rlhf_kit.errors import EngineError
from rlhf_kit.ppo.checkpoints import last_whole
from rlhf_kit.ppo.sampler import ADAPTERS
from rlhf_kit.rollout import versions


@pytest.fixture
def server() -> Iterator[VllmDouble]:
    with VllmDouble(tiny_directory()) as double:
        yield double


def drawn(server: VllmDouble) -> list[dict[str, Any]]:
    """What was asked of an adapter, and answered."""
    return [asked.body for asked in server.answered if asked.body["model"].startswith("rlhf-kit-")]


def served(url: str, **fields: Any) -> dict[str, Any]:
    return {"rollout": {"engine": "vllm", "base_url": url, "timeout": 60, **fields}}


def trainer(directory: Path, url: str, engine: dict[str, Any] | None = None, **fields: Any) -> PPOTrainer:
    """As `ppo_trainers.trainer`, but that the server samples."""
    made = config(directory, **served(url, **(engine or {})), **fields)
    return PPOTrainer(model=tiny_roles(made.value == "shared"), reward_funcs="reward", args=made, train_dataset=ROWS)


# ---------------------------------------------------------------- one update


def test_episodes_are_the_trainers_and_the_server_drew_by_the_same_probabilities(
    tmp_path: Path, server: VllmDouble
) -> None:
    made = trainer(tmp_path, server.url)
    episodes, figures = made.experience.collect(made.prompts[:8], torch.Generator().manual_seed(1), 0.05)
    mask = episodes.sequences.response_mask
    assert len(drawn(server)) == 8 and episodes.importance is not None
    assert figures["engine_mismatch"] < 1e-4 and figures["importance_capped"] == 0
    torch.testing.assert_close(episodes.importance, torch.ones_like(episodes.importance), atol=1e-4, rtol=0)
    # Their own log-probabilities, as those of the kit's loop are: the first ratio is 1.
    again = made.experience.judge(episodes.sequences)
    assert torch.equal(again.log_probs[mask], episodes.log_probs[mask])
    prompts = sorted(tuple(body["prompt"]) for body in drawn(server))
    assert prompts == sorted(map(tuple, PROMPTS[:8]))


def test_the_same_generator_draws_the_same_answers(tmp_path: Path, server: VllmDouble) -> None:
    made = trainer(tmp_path, server.url)
    first, second = episodes_of(made), episodes_of(made)
    assert torch.equal(first.sequences.input_ids, second.sequences.input_ids)
    other, _ = made.experience.collect(made.prompts[:8], torch.Generator().manual_seed(9), 0.05)
    assert not torch.equal(first.sequences.responses, other.sequences.responses)


def test_what_is_drawn_by_other_probabilities_counts_by_their_ratio_up_to_the_cap(
    tmp_path: Path, server: VllmDouble
) -> None:
    # An adapter that is near the policy, under the policy's name: what rounding does, many times enlarged.
    near = tiny_roles()
    stir(near, "policy", 1, 0.13)
    near.save_adapter("policy", tmp_path / "near")
    server.wrong_weights = tmp_path / "near"
    made = trainer(tmp_path, server.url, {"importance_cap": 1.05, "max_mismatch": 10})
    episodes, figures = made.experience.collect(made.prompts[:8], torch.Generator().manual_seed(1), 0.05)
    answers = {tuple(body["prompt"]): body for body in drawn(server)}
    assert len(answers) == 8 and episodes.importance is not None
    with near.role("policy"):
        states = near(episodes.sequences.input_ids, episodes.sequences.attention_mask)
        theirs, _ = near.log_probs(
            episodes.sequences.before_response(states), episodes.sequences.responses, temperature=0.8
        )
    apart, ratios = [], []
    for row in range(8):
        for t in range(int(episodes.sequences.response_mask[row].sum())):
            p, q = float(episodes.log_probs[row, t]), float(theirs[row, t])
            apart.append(abs(p - q))
            ratios.append(min(math.exp(p - q), 1.05))
            assert float(episodes.importance[row, t]) == pytest.approx(ratios[-1], rel=1e-3)
    assert figures["engine_mismatch"] == pytest.approx(sum(apart) / len(apart), rel=1e-2) and sum(apart) > 0.1
    assert figures["engine_mismatch_max"] == pytest.approx(max(apart), rel=1e-2)
    assert figures["importance"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-3)
    assert 0 < figures["importance_capped"] < 1
    # And the loss of a token is times its weight.
    made.learner.minibatch(episodes, 0)
    weighted = [p.grad.clone() for p in made.roles.policy.parameters()]
    made.roles.zero_grad()
    scaled = replace(episodes, advantages=episodes.advantages * episodes.importance, importance=None)
    made.learner.minibatch(scaled, 0)
    for found, parameter in zip(weighted, made.roles.policy.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, atol=1e-6, rtol=1e-4)


def test_importance_weights_by_hand() -> None:
    mask = torch.tensor([[True, True, True, False]])
    weights = rl.truncated_importance(
        torch.log(torch.tensor([[0.5, 0.2, 0.9, 0.1]])), torch.log(torch.tensor([[0.25, 0.4, 0.1, 1e-9]])), mask, 3.0
    )
    assert weights.tolist() == [[pytest.approx(2.0), pytest.approx(0.5), 3.0, 1.0]]
    loss, clipped = rl.policy_loss(
        torch.zeros(1, 4), torch.zeros(1, 4), torch.ones(1, 4), mask, cliprange=0.2, importance=weights
    )
    assert loss.tolist() == [[pytest.approx(-2.0), pytest.approx(-0.5), -3.0, 0.0]] and not clipped.any()


# ---------------------------------------------------------------- the right adapter


def test_each_update_samples_from_the_adapter_as_it_then_is(tmp_path: Path, server: VllmDouble) -> None:
    made, seen = trainer(tmp_path, server.url, total_episodes=24), []
    step = made.training_step

    def kept(model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        made.roles.policy.save(tmp_path / f"policy-{inputs['update']}")
        seen.append(versions.version_of(tmp_path / f"policy-{inputs['update']}"))
        return step(model, inputs, *rest)

    made.training_step = kept
    made.train()
    assert len(set(seen)) == 3
    assert [body["model"] for body in drawn(server)] == [name for name in seen for _ in range(8)]
    # Nothing is left on the server or on the disk.
    assert not server.adapters and not (tmp_path / ADAPTERS).exists()


def test_held_out_answers_of_the_reference_are_the_servers_too(tmp_path: Path, server: VllmDouble) -> None:
    made = PPOTrainer(
        model=tiny_roles(),
        reward_funcs="reward",
        args=config(tmp_path, **served(server.url)),
        train_dataset=ROWS,
        eval_dataset=ROWS[:3],
    )
    made.evaluate()
    names = [body["model"] for body in drawn(server)]
    for role, part in ((made.roles.reference, names[:3]), (made.roles.policy, names[3:])):
        role.save(tmp_path / "who")
        assert part == [versions.version_of(tmp_path / "who")] * 3


def test_wrong_weights_under_the_right_name_stop_the_run_with_what_it_has_learned(
    tmp_path: Path, server: VllmDouble
) -> None:
    other = tiny_roles()
    stir(other, "policy", 77, 0.5)
    other.save_adapter("policy", tmp_path / "other")
    made = trainer(tmp_path, server.url, total_episodes=32)
    step = made.training_step

    def later(model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        server.wrong_weights = tmp_path / "other" if inputs["update"] == 2 else None
        return step(model, inputs, *rest)

    made.training_step = later
    with pytest.raises(EngineError, match=r"stopped, 2 of 4 updates are saved.*nats a token.*max_mismatch") as stopped:
        made.train()
    assert "\n" not in str(stopped.value) and server.url in str(stopped.value)
    assert last_whole(tmp_path).name == "checkpoint-2"


def test_a_policy_that_is_no_adapter_is_refused(tmp_path: Path, server: VllmDouble) -> None:
    model = tiny_base()
    with pytest.raises(ModelError, match="is given adapters"):
        PPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config(tmp_path, value="shared", **served(server.url)),
            train_dataset=ROWS,
            processing_class=AutoTokenizer.from_pretrained(tiny_directory()),
        )


# ---------------------------------------------------------------- a server that dies


def log_of(made: PPOTrainer) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in made.state.log_history if "kl" in row]


def test_a_server_that_is_started_again_in_between_changes_nothing(tmp_path: Path, server: VllmDouble) -> None:
    plain = trainer(tmp_path / "plain", server.url, total_episodes=32)
    plain.train()
    asked = {(body["model"], body["seed"]) for body in drawn(server)}
    server.answered.clear()
    # In the second update three requests fall into a restart, which also loses the adapter.
    server.script = [None] * 10 + ["restart", "cut", "few log-probs"]
    broken = trainer(tmp_path / "broken", server.url, total_episodes=32)
    broken.train()
    assert not server.script and server.restarts == 1
    assert {(body["model"], body["seed"]) for body in drawn(server)} == asked and len(asked) == 32
    for found, expected in zip(log_of(broken), log_of(plain), strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_server_that_stays_away_stops_the_run_and_the_same_call_goes_on(tmp_path: Path, server: VllmDouble) -> None:
    plain = trainer(tmp_path / "plain", server.url, total_episodes=40)
    plain.train()
    fields = {"engine": {"timeout": 4}, "total_episodes": 40, "save_strategy": "steps", "save_steps": 100}
    made = trainer(tmp_path / "run", server.url, **fields)
    step = made.training_step

    def dies(model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        if inputs["update"] == 3:
            server.stop()
        return step(model, inputs, *rest)

    made.training_step = dies
    with pytest.raises(RlhfKitError, match=r"stopped, 3 of 5 updates are saved.*no answer of use"):
        made.train()
    with pytest.raises(EngineError, match="no answer of use"):  # it says so before anything is loaded or learned
        trainer(tmp_path / "run", server.url, **fields).train(resume_from_checkpoint=True)
    server.start()
    resumed = trainer(tmp_path / "run", server.url, **fields)
    resumed.train(resume_from_checkpoint=True)
    state = json.loads((last_whole(tmp_path / "run") / "trainer_state.json").read_text())
    assert not (tmp_path / "run" / ADAPTERS).exists()  # nor what the run that stopped had left there
    assert resumed.state.global_step == 5 and len(state["log_history"]) >= 5
    for found, expected in zip(log_of(resumed), log_of(plain), strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    weights = [load_file(last_whole(tmp_path / "run") / "adapter_model.safetensors")]
    plain.roles.policy.save(tmp_path / "policy")
    weights.append(load_file(tmp_path / "policy" / "adapter_model.safetensors"))
    for name, expected in weights[1].items():
        torch.testing.assert_close(weights[0][name], expected, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- it learns


def test_the_checkable_task_is_learned_as_by_the_own_loop(tmp_path: Path) -> None:
    model = str(make_capable_model(tmp_path / "model"))
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    scores = {}
    with VllmDouble(Path(model), max_lora_rank=8) as server:
        for name, rollout in (("hf", {}), ("vllm", served(server.url))):
            made = PPOTrainer(
                model=model,
                reward_funcs=share_of_even,
                args=PPOConfig(
                    output_dir=str(tmp_path / name),
                    total_episodes=960,
                    batch_size=32,
                    per_device_train_batch_size=16,
                    num_mini_batches=2,
                    num_ppo_epochs=2,
                    response_length=6,
                    missing_eos_penalty=None,
                    learning_rate=5e-3,
                    warmup_steps=1,
                    use_cpu=True,
                    disable_tqdm=True,
                    save_strategy="no",
                    logging_steps=1,
                    **rollout,
                ),
                train_dataset=TEXTS,
                peft_config=lora,
            )
            made.train()
            scores[name] = [row["score"] for row in made.state.log_history if "score" in row]
    assert abs(scores["hf"][0] - 0.5) < 0.1 and abs(scores["vllm"][0] - 0.5) < 0.1
    last = {name: sum(found[-3:]) / 3 for name, found in scores.items()}
    assert min(last.values()) > 0.8 and abs(last["hf"] - last["vllm"]) < 0.1
