"""PPO learns what can be checked, in seconds: the best possible reward is known, and so is the KL that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig
from tiny_recipe import make_capable_model

from rlhf_kit import PPOConfig, PPOTrainer

PROMPTS = [{"prompt": text} for text in ("red", "blue sky", "a cat", "one two three", "tell me", "why", "city", "book")]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_capable_model(tmp_path_factory.mktemp("model")))


def share_of_even(
    prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: object
) -> list[float]:
    """The share of tokens with an even id; the best possible is 1, and half of all tokens have one."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def run(model: str, directory: Path, **fields: object) -> list[dict[str, float]]:
    settings = {
        "output_dir": str(directory),
        "batch_size": 32,
        "per_device_train_batch_size": 16,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "response_length": 6,
        "missing_eos_penalty": None,
        "learning_rate": 5e-3,
        "warmup_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    trainer = PPOTrainer(
        model=model,
        reward_funcs=share_of_even,
        args=PPOConfig(**{**settings, **fields}),
        train_dataset=PROMPTS,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "score" in entry]


@pytest.mark.parametrize(
    "options",
    [
        {"value": "adapter"},
        {"value": "shared"},
        {"algorithm": "a2c", "num_ppo_epochs": 1, "num_mini_batches": 1, "per_device_train_batch_size": 32},
        {"dual_clip": 3.0, "scale_rewards": "running", "critic_warmup_steps": 2, "target_kl": 0.1},
    ],
    ids=["adapter", "shared", "a2c", "options"],
)
def test_a_checkable_reward_reaches_nine_tenths_of_the_best(
    model: str, tmp_path: Path, options: dict[str, object]
) -> None:
    log = run(model, tmp_path, total_episodes=32 * 30, kl_coef=0.0, **options)
    shares = [entry["rewards/share_of_even"] for entry in log]
    assert shares[0] < 0.6
    assert sum(shares[-3:]) / 3 >= 0.9


def test_the_adaptive_controller_holds_its_target(model: str, tmp_path: Path) -> None:
    """With the horizon set to the run's length; the coefficient that it starts from misses the target by itself."""
    updates, target = 48, 1.6
    common = {
        "total_episodes": 64 * updates,
        "batch_size": 64,
        "per_device_train_batch_size": 32,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "kl_coef": 0.15,
        "kl_target": target,
    }

    def late(**options: object) -> float:
        """The mean KL over the last third of a run, relative to the target."""
        tail = run(model, tmp_path, **common, **options)[-updates // 3 :]
        return sum(entry["kl"] for entry in tail) / len(tail) / target

    assert late(kl_controller="adaptive", kl_horizon=64 * updates) == pytest.approx(1, abs=0.25)
    assert late(kl_controller="fixed") < 0.75
