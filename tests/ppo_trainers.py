"""PPO trainers on the tiny model, for the tests of everything that PPO does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from backbones import add_head, stir, tiny_backbone, tiny_base
from peft import PeftModel

from rlhf_kit import PPOConfig, PPOTrainer
from rlhf_kit.batches import Episodes
from rlhf_kit.models import Backbone

_GENERATOR = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(3, 500, (2 + n % 5,), generator=_GENERATOR).tolist() for n in range(10)]
ROWS = [{"input_ids": ids} for ids in PROMPTS]


def config(directory: Path, **fields: Any) -> PPOConfig:
    """Eight answers of six tokens an update, in one mini-batch."""
    few = {
        "output_dir": str(directory),
        "total_episodes": 16,
        "per_device_train_batch_size": 8,
        "num_mini_batches": 1,
        "response_length": 6,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "temperature": 0.8,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "seed": 3,
    }
    return PPOConfig(**{**few, **fields})


def tiny_roles(shared: bool = False) -> Backbone:
    """Adapters that all differ, the policy near its reference and the value model near its reward model, as they are
    after a few updates."""
    backbone = tiny_backbone("sft", "policy", "reward", *(() if shared else ("value",)))
    for seed, name in enumerate(("reward", "value")):
        add_head(backbone, name, seed)
    for name, seed in (("policy", 1), ("value", 3)):
        if name in backbone.adapters:
            stir(backbone, name, seed)
            for parameter in backbone.adapter_parameters(name):
                parameter.data += 0.01
    return backbone


def trainer(directory: Path, rows: Any = ROWS, reward_funcs: Any = "reward", **fields: Any) -> PPOTrainer:
    """A trainer on `tiny_roles`, rewarded by the kit's adapter."""
    made = config(directory, **fields)
    return PPOTrainer(
        model=tiny_roles(made.value == "shared"), reward_funcs=reward_funcs, args=made, train_dataset=rows
    )


def episodes_of(made: PPOTrainer) -> Episodes:
    """Those of the first eight prompts."""
    return made.experience.collect(made.prompts[:8], torch.Generator().manual_seed(1), made.kl.coef)[0]


def moved(episodes: Episodes) -> Episodes:
    """The same episodes as if the policy had moved since: ratios other than 1, some beyond the clip."""
    noise = torch.randn(episodes.log_probs.shape, generator=torch.Generator().manual_seed(2)) * 0.3
    episodes.log_probs.add_(noise)
    episodes.values.add_(noise)
    return episodes


def gradients(
    made: PPOTrainer, episodes: Episodes, micro: int | None = None, **options: Any
) -> dict[str, torch.Tensor]:
    """Those of one mini-batch, by the names of the parameters."""
    made.roles.zero_grad()
    made.roles.train()
    if micro is not None:
        made.experience.sizes = type(made.experience.sizes)(len(episodes), len(episodes), micro)
    made.learner.minibatch(episodes, 0, **options)
    return {n: p.grad.clone() for n, p in made.roles.named_parameters() if p.grad is not None}


def separate(made: PPOTrainer, directory: Path, name: str) -> PeftModel:
    """One role as a model of its own, in plain PEFT."""
    made.roles.policy.backbone.save_adapter(name, directory / name)
    return PeftModel.from_pretrained(tiny_base(), directory / name, is_trainable=True).eval()


def rows_of(episodes: Episodes) -> Any:
    """Each episode without padding: its row, its tokens (1, T), where its response begins, and its length."""
    s = episodes.sequences
    for row in range(len(episodes)):
        n = int(s.response_mask[row].sum())
        ids = s.input_ids[row][s.attention_mask[row]]
        yield row, ids[None], ids.numel() - n, n
