"""SFT and PPO on 4- and 8-bit bases, with AdamW and with the optimisers of bitsandbytes."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import add_head, lora, stir
from peft import PeftModel
from quantized_base import model, quantization, recipe_for
from safetensors.torch import load_file

from rlhf_kit import Demonstration, PPOConfig, PPOTrainer, load_backbone
from rlhf_kit.models import load_base
from rlhf_kit.models.adapters import WEIGHTS_FILE
from rlhf_kit.models.backbone import Backbone
from rlhf_kit.stages import sft

__all__ = ["model", "quantization"]  # fixtures

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.slow

DEMONSTRATIONS = [
    Demonstration(prompt="Why is the sky blue?", completion="Air scatters blue light more than red light."),
    Demonstration(prompt="Is a whale a fish?", completion="No, a whale is a mammal."),
    Demonstration(prompt="Name three colours.", completion="Red, green and blue."),
    Demonstration(prompt="Say hello.", completion="Hello!"),
]
PROMPTS = [{"input_ids": list(range(5 + 7 * n, 10 + 10 * n))} for n in range(4)]


def test_one_sft_step_and_a_reload_on_a_fresh_base(
    model: Path, quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(model, quantization)
    trained: list[Backbone] = []

    def kept(section: object) -> Backbone:
        trained.append(load_backbone(section))  # type: ignore[arg-type]
        return trained[-1]

    monkeypatch.setattr(sft, "load_backbone", kept)
    figures = sft.train(recipe, DEMONSTRATIONS, tmp_path)
    assert figures["processes"] == 1 and figures["loss_first"] > 0
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "loss" in entry] == [1]
    assert {p.dtype for p in trained[0].adapter_parameters("sft")} == {torch.float32}

    ids = torch.arange(5, 30)[None]
    base = load_base(recipe.model).eval()
    with torch.no_grad():
        with trained[0].eval().role("sft"):
            expected = trained[0].base(input_ids=ids).logits.float()
        before = base(input_ids=ids).logits.float()
        after = PeftModel.from_pretrained(base, str(tmp_path)).eval()(input_ids=ids).logits.float()
    effect = (before - expected).abs().mean()
    assert effect > 0.01, "one step changes something"
    assert (after - expected).abs().mean() < 0.02 * effect


# -------------------------------------------------------------------- PPO


@pytest.fixture
def said_by_bitsandbytes(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    with caplog.at_level(logging.WARNING, "bitsandbytes"):
        yield caplog.messages


def ppo_on(model: Path, quantization: str, directory: Path, shape: dict[str, int], **settings: Any) -> PPOTrainer:
    """Three updates of eight answers with four adapters on a quantised base."""
    backbone = load_backbone(recipe_for(model, quantization).model)
    for seed, role in enumerate(("sft", "policy", "reward", "value")):
        backbone.add_adapter(role, lora(**shape))
        stir(backbone, role, seed, size=0.05)
    for role in ("reward", "value"):
        add_head(backbone, role)
    arguments = {
        "output_dir": str(directory),
        "total_episodes": 24,
        "batch_size": 8,
        "mini_batch_size": 8,
        "per_device_train_batch_size": 2,
        "num_ppo_epochs": 1,
        "response_length": 10,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
    }
    config = PPOConfig(**{**arguments, **settings})
    return PPOTrainer(model=backbone, reward_funcs="reward", args=config, train_dataset=PROMPTS)


def test_ppo_learns_with_four_roles_on_one_base_and_first_ratios_of_exactly_one(
    model: Path, quantization: str, tmp_path: Path, said_by_bitsandbytes: list[str]
) -> None:
    """One optimiser step an update, in micro-batches: the policy has not moved since it was sampled from."""
    trainer = ppo_on(model, quantization, tmp_path, {})
    backbone = trainer.roles.policy.backbone
    packed = [p for p in trainer.roles.parameters() if p.dtype in (torch.int8, torch.uint8)]
    assert len(packed) == 14, "no role has a base of its own"
    before, rest = [p.clone() for p in packed], [p.detach().clone() for p in backbone.adapter_parameters("policy")]
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "approx_kl" in entry]
    assert len(entries) == 3
    for entry in entries:
        assert entry["approx_kl"] == 0.0 and entry["clip_fraction"] == 0.0 and entry["policy_grad_norm"] > 0
    learned = [*backbone.adapter_parameters("policy"), *backbone.adapter_parameters("value")]
    assert {p.dtype for p in [*learned, *backbone.heads.parameters()]} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in learned)
    assert not any(torch.equal(p, old) for p, old in zip(backbone.adapter_parameters("policy"), rest, strict=True))
    assert all(torch.equal(p, old) for p, old in zip(packed, before, strict=True)), "the base stays as it was"
    assert not said_by_bitsandbytes


# -------------------------------------------------------------------- optimisers


# Of a matrix with fewer elements bitsandbytes keeps the state in 32 bits.
_WIDE = {"r": 64, "lora_alpha": 128}


def trained_by(optim: str, model: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[float, set[Any]]:
    """The last loss of twelve steps of SFT on a 4-bit base, and the dtypes of the optimiser's states."""
    trainers: list[Any] = []
    real = sft.fit
    monkeypatch.setattr(sft, "fit", lambda trainer, *rest: trainers.append(trainer) or real(trainer, *rest))
    recipe = recipe_for(model, optim=optim, max_steps=12, logging_steps=1, save_steps=6)
    recipe = recipe.model_copy(update={"lora": recipe.lora.model_copy(update=_WIDE)})
    directory.mkdir(exist_ok=True)
    figures = sft.train(recipe, DEMONSTRATIONS, directory)
    states = trainers[0].optimizer.state.values()
    return figures["loss_last"], {
        state[name].dtype for state in states for name in ("state1", "exp_avg") if name in state
    }


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_an_optimiser_of_bitsandbytes_learns_as_adamw_and_goes_on_with_the_same_bits(
    model: Path, tmp_path: Path, optim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = trained_by("adamw_torch", model, tmp_path / "plain", monkeypatch)
    found, kept = trained_by(optim, model, tmp_path / "whole", monkeypatch)
    assert found < 3 and found == pytest.approx(plain, rel=0.15 if "8bit" in optim else 0.02)
    assert kept == {torch.uint8 if "8bit" in optim else torch.float32}
    shutil.copytree(tmp_path / "whole/checkpoints/checkpoint-6", tmp_path / "cut/checkpoints/checkpoint-6")
    again, _ = trained_by(optim, model, tmp_path / "cut", monkeypatch)
    assert again == found
    whole, cut = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("whole", "cut"))
    assert all(torch.equal(cut[key], tensor) for key, tensor in whole.items())


def test_ppo_by_an_eight_bit_optimiser_goes_on_with_the_same_bits(model: Path, tmp_path: Path) -> None:
    ends = []
    for name, start in (("whole", None), ("cut", "checkpoint-1")):
        if start is not None:
            shutil.copytree(tmp_path / "whole" / start, tmp_path / name / start)
        saved = {"optim": "adamw_bnb_8bit", "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
        trainer = ppo_on(model, "4bit", tmp_path / name, _WIDE, **saved)
        trainer.train(resume_from_checkpoint=start is not None)
        assert trainer.state.global_step == 3 and len(trainer.optimizer.param_groups) == 2
        ends.append([p.detach() for group in trainer.optimizer.param_groups for p in group["params"]])
        assert torch.uint8 in {state["state1"].dtype for state in trainer.optimizer.state.values()}
    assert all(torch.equal(whole, cut) for whole, cut in zip(*ends, strict=True))
