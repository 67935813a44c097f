"""Records what TRL 1.12's `PPOTrainer` computes, for `tests/test_trl_golden.py`.

    .venv-trl-ppo/bin/python benchmarks/record_trl_ppo.py      (writes tests/fixtures/trl_ppo/)

It runs in TRL's environment and does not import the kit. A tiny Llama of random weights, in float32 and with another
one as its reference, is trained for one update of two epochs and two minibatches. `PPOTrainer.train` keeps all it
computes in local variables, so `Accelerator.backward`, which it calls once a micro-batch, is wrapped and reads them
from the frame of its caller, with the gradients of the loss to the new log-probabilities and values.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedModel
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "trl_ppo"
sys.path.insert(0, str(ROOT / "tests"))

from tiny import make_tiny_tokenizer  # noqa: E402

VOCABULARY, BATCH, MINIBATCHES, PROMPT, RESPONSE = 100, 16, 2, 6, 10
USUAL: dict[str, Any] = {
    "kl_estimator": "k1",
    "whiten_rewards": False,
    "stop_token": "eos",
    "missing_eos_penalty": 1.0,
    "kl_coef": 0.05,
    "gamma": 1.0,
    "lam": 0.95,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
}
CASES: dict[str, dict[str, Any]] = {
    "k1": {},
    "k3": {"kl_estimator": "k3"},
    "whitened": {"whiten_rewards": True},
    "whitened_k3": {"whiten_rewards": True, "kl_estimator": "k3", "gamma": 0.97, "lam": 0.9},
    "full_length": {"stop_token": None, "missing_eos_penalty": None},
    "full_length_whitened": {"stop_token": None, "whiten_rewards": True, "gamma": 0.97, "lam": 0.9},
}
UPDATE = (
    "responses",
    "contain_eos_token",
    "sequence_lengths",
    "padding_mask",
    "padding_mask_p1",
    "scores",
    "logprobs",
    "ref_logprobs",
    "values",
    "kl",
    "rewards",
    "advantages",
    "returns",
)
MICRO_BATCH = (
    "micro_batch_inds",  # the micro-batch's rows of the tensors above
    "new_logprobs",
    "vpred",
    "pg_losses",
    "pg_losses2",
    "pg_loss",
    "vf_loss",
    "vf_clipfrac",
    "loss",
)


def model(kind: type[PreTrainedModel], tokenizer: Any, seed: int) -> PreTrainedModel:
    """A Llama of random weights. The first of its hidden units is nearly constant, so that its weight in the head is
    a bias: pad is never sampled (TRL would take it for the end), EOS in about one of ten tokens."""
    torch.manual_seed(seed)
    found = kind(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            initializer_range=0.3,
            tie_word_embeddings=False,
            num_labels=1,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )
    with torch.no_grad():
        found.get_input_embeddings().weight[:, 0] = 4.0
        if kind is LlamaForCausalLM:
            found.get_output_embeddings().weight[:, 0] = 0.0
            found.get_output_embeddings().weight[tokenizer.pad_token_id, 0] = -10.0
            found.get_output_embeddings().weight[tokenizer.eos_token_id, 0] = 0.9
    return found


def trainer_for(case: dict[str, Any], folder: str) -> PPOTrainer:
    """TRL's trainer, its models all different."""
    tokenizer = make_tiny_tokenizer()
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(tokenizer.eos_token_id + 1, VOCABULARY, (BATCH, PROMPT), generator=generator).tolist()
    data = Dataset.from_dict({"input_ids": prompts})
    return PPOTrainer(
        args=PPOConfig(
            **case,
            output_dir=folder,
            total_episodes=BATCH,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=1,
            num_mini_batches=MINIBATCHES,
            num_ppo_epochs=2,
            response_length=RESPONSE,
            learning_rate=1e-2,  # large, so that ratios and values reach their clip ranges
            num_sample_generations=0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            seed=0,
        ),
        processing_class=tokenizer,
        model=model(LlamaForCausalLM, tokenizer, 1),
        ref_model=model(LlamaForCausalLM, tokenizer, 2),
        reward_model=model(LlamaForSequenceClassification, tokenizer, 3),
        value_model=model(LlamaForSequenceClassification, tokenizer, 4),
        train_dataset=data,
        eval_dataset=data,
    )


def record(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of one update: those of the rollout by their names in TRL, those of micro-batch i as `i.name`, and
    `raw_scores` before the penalty for a missing EOS."""
    kept: dict[str, torch.Tensor] = {}

    def keep(prefix: str, names: tuple[str, ...], found: dict[str, Any]) -> None:
        for name in names:
            kept[prefix + name] = torch.as_tensor(found[name]).detach().clone().contiguous()

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_for(case, folder)
        transformers.set_seed(0)  # TRL draws its minibatches with numpy's generator, which it leaves unseeded
        backward, get_reward = trainer.accelerator.backward, ppo_trainer.get_reward

        def recording_backward(loss: torch.Tensor, **named: Any) -> None:
            found = sys._getframe(1).f_locals
            if not kept.keys() & set(UPDATE):
                keep("", UPDATE, found)
            prefix = f"{sum(name.endswith('.loss') for name in kept)}."
            keep(prefix, MICRO_BATCH, found)
            wanted = [found["new_logprobs"], found["vpred"]]
            gradients = torch.autograd.grad(loss, wanted, retain_graph=True)
            kept[f"{prefix}new_logprobs_grad"], kept[f"{prefix}vpred_grad"] = gradients
            backward(loss, **named)

        def recording_reward(scorer: Any, *given: Any) -> Any:
            found = get_reward(scorer, *given)
            if scorer is trainer.reward_model:
                kept["raw_scores"] = found[1].clone()
            return found

        trainer.accelerator.backward, ppo_trainer.get_reward = recording_backward, recording_reward
        try:
            trainer.train()
        finally:
            ppo_trainer.get_reward = get_reward
    return kept


def check(name: str, case: dict[str, Any], found: dict[str, torch.Tensor]) -> None:
    """Stops where a recording would not show what it is for."""
    lengths = found["sequence_lengths"] + 1
    if case["stop_token"] is None and int(lengths.min()) < RESPONSE:
        raise SystemExit(f"{name}: a response ended although nothing stops it")
    if case["stop_token"] == "eos" and not (int(lengths.min()) < RESPONSE - 1 and int(lengths.max()) == RESPONSE):
        raise SystemExit(f"{name}: responses of {sorted(set(lengths.tolist()))} tokens; some must end early, some not")
    clipped = sum(int((found[f"{i}.pg_losses2"] > found[f"{i}.pg_losses"]).sum()) for i in range(4))
    if not clipped or not any(float(found[f"{i}.vf_clipfrac"]) > 0 for i in range(4)):
        raise SystemExit(f"{name}: nothing was clipped")
    print(f"{name}: lengths {sorted(lengths.tolist())}, {clipped} tokens clipped, KL {found['kl'].sum(1).mean():.2f}")


def main() -> None:
    """Writes one file of tensors a case, and their settings."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    FIXTURES.mkdir(parents=True, exist_ok=True)
    settings = {name: {**USUAL, **changes} for name, changes in CASES.items()}
    for name, case in settings.items():
        found = record(case)
        check(name, case, found)
        save_file(found, FIXTURES / f"{name}.safetensors")
    about = {
        "recorded_by": "benchmarks/record_trl_ppo.py",
        "versions": {
            "python": platform.python_version(),
            **{package.__name__: package.__version__ for package in (trl, transformers, accelerate, torch)},
        },
        "micro_batches": 4,
        "cases": settings,
    }
    (FIXTURES / "settings.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
