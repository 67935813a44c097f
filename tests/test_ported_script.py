"""A PPO script written for TRL 1.12 runs when its import line is changed, and only that."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from backbones import tiny_directory
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

SCRIPT = Path(__file__).with_name("ported_trl_ppo.py")
THEIRS = "from trl.experimental.ppo import PPOConfig, PPOTrainer"
OURS = "from rlhf_kit import PPOConfig, PPOTrainer"
UPDATES = 4


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with its one line changed."""
    text = SCRIPT.read_text(encoding="utf-8")
    assert text.splitlines().count(THEIRS) == 1 and text.count("trl.") == 1
    (tmp_path / "ported.py").write_text(text.replace(THEIRS, OURS), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("ported", tmp_path / "ported.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ported", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A reward model and prompts, of which one is too long for the script's filter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        reward = AutoModelForSequenceClassification.from_pretrained(tiny_directory(), num_labels=1)
    reward.save_pretrained(tmp_path / "reward")
    rows = [{"prompt": f"Name {n} colours." + " red" * (40 * (n == 5))} for n in range(24)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def options(desk: Path, lora: bool) -> list[str]:
    said = f"""--sft_model_path {tiny_directory()} --reward_model_path {desk / "reward"} --output_dir {desk / "out"}
        --prompts {desk / "prompts.jsonl"} --use_lora {lora} --use_cpu True --report_to none --save_strategy no
        --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --num_mini_batches 2 --num_ppo_epochs 2
        --total_episodes {8 * UPDATES} --response_length 6 --stop_token eos --missing_eos_penalty 1.0
        --learning_rate 1e-2 --logging_steps 1 --num_sample_generations 2 --eval_strategy steps"""
    return said.split()


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "whole"])
def test_it_runs_to_the_end_and_the_policy_alone_has_moved(
    script: ModuleType, desk: Path, capsys: pytest.CaptureFixture[str], lora: bool
) -> None:
    before = state(AutoModelForCausalLM.from_pretrained(tiny_directory()))
    trainer, callback = script.main(options(desk, lora))

    assert (callback.begun, callback.steps, callback.ended) == (1, UPDATES, 1)
    updates = [entry for entry in callback.logged if "kl" in entry]
    assert len(updates) == UPDATES and all("score" in entry and "policy_loss" in entry for entry in updates)
    # Twice while it trains, and once in generate_completions.
    assert sum("eval_score" in entry for entry in callback.logged) == 3
    table = capsys.readouterr().out
    assert "Name 20 colours." in table and "reference" in table

    assert len(trainer.prompts) == 19, "the script's filter"
    assert all("lengths" in row.columns for row in trainer.prompts)
    reference = trainer.roles.reference
    assert reference.adapter is None
    left = {name.replace(".base_layer", ""): tensor for name, tensor in state(reference.backbone.base).items()}
    for name, tensor in before.items():
        torch.testing.assert_close(left[name], tensor, rtol=0, atol=0, msg=name)

    saved = desk / "out"
    assert len(AutoTokenizer.from_pretrained(saved)) == 1 + len(AutoTokenizer.from_pretrained(tiny_directory()))
    base = AutoModelForCausalLM.from_pretrained(tiny_directory() if lora else saved)
    loaded = PeftModel.from_pretrained(base, saved) if lora else base
    ids = torch.arange(3, 11)[None]
    with torch.no_grad(), trainer.roles.policy.playing():
        theirs, trained = loaded.eval()(input_ids=ids).logits, trainer.roles.policy.backbone.base(input_ids=ids).logits
        plain = AutoModelForCausalLM.from_pretrained(tiny_directory()).eval()(input_ids=ids).logits
    torch.testing.assert_close(theirs, trained, atol=1e-5, rtol=1e-5)
    assert (theirs - plain).abs().max() > 1e-3


def test_the_value_model_learns_and_the_reward_model_does_not(script: ModuleType, desk: Path) -> None:
    trainer, _ = script.main(options(desk, lora=True))
    frozen = load_file(desk / "reward" / "model.safetensors")
    (source,) = trainer.experience.rewards.sources
    for name, tensor in source.model.state_dict().items():
        if name in frozen:
            torch.testing.assert_close(tensor, frozen[name], rtol=0, atol=0, msg=name)
    value = state(trainer.roles.value.backbone.base)
    assert any(not torch.equal(tensor, frozen[name]) for name, tensor in value.items() if name in frozen)
    assert not torch.equal(trainer.roles.head.linear.weight, frozen["score.weight"])


def test_an_optimiser_of_the_callers_trains_the_value_head_too(desk: Path) -> None:
    """One group, as a TRL script makes it; it cannot hold the head, which the trainer makes."""
    from rlhf_kit import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_directory())
    policy = AutoModelForCausalLM.from_pretrained(tiny_directory())
    value = AutoModelForSequenceClassification.from_pretrained(desk / "reward", num_labels=1)
    optimizer = torch.optim.SGD([*policy.parameters(), *value.model.parameters()], lr=0.1)
    trainer = PPOTrainer(
        model=policy,
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        value_model=value,
        args=PPOConfig(
            output_dir=str(desk / "out"),
            total_episodes=16,
            per_device_train_batch_size=8,
            response_length=4,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=[{"prompt": "Name three trees."}],
        processing_class=tokenizer,
        optimizers=(optimizer, None),
    )
    before = state(trainer.roles)
    trainer.train()
    moved = {name for name, tensor in state(trainer.roles).items() if not torch.equal(tensor, before[name])}
    assert any("heads.value" in name for name in moved) and any("layers" in name for name in moved)
    assert all("policy_grad_norm" in entry for entry in trainer.state.log_history if "kl" in entry)
