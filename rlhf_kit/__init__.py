"""SFT, a reward model on ranked answers, and PPO with LoRA adapters, on today's transformers, TRL and PEFT.

What is named in `__all__` is the public API. Names are imported when they are first used, so that `import rlhf_kit`
costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_kit.errors import CheckpointError, DataError, ExportError, ModelError, RecipeError, RlhfKitError
    from rlhf_kit.files import load
    from rlhf_kit.models import Backbone, ScalarHead, load_backbone
    from rlhf_kit.pipeline import export_run, run, run_step
    from rlhf_kit.ppo.config import PPOConfig
    from rlhf_kit.ppo.trainer import PPOTrainer
    from rlhf_kit.recipe import Recipe, load_recipe
    from rlhf_kit.records import Demonstration, Flags, Message, Prompt, Ranking, Rating, Response, Text
    from rlhf_kit.reward_model import RewardModel
    from rlhf_kit.stages.reward import RewardTrainer

__version__ = "0.1.0"

_HOME = {
    "errors": ("CheckpointError", "DataError", "ExportError", "ModelError", "RecipeError", "RlhfKitError"),
    "files": ("load",),
    "models": ("Backbone", "ScalarHead", "load_backbone"),
    "pipeline": ("export_run", "run", "run_step"),
    "ppo.config": ("PPOConfig",),
    "ppo.trainer": ("PPOTrainer",),
    "recipe": ("Recipe", "load_recipe"),
    "records": ("Demonstration", "Flags", "Message", "Prompt", "Ranking", "Rating", "Response", "Text"),
    "reward_model": ("RewardModel",),
    "stages.reward": ("RewardTrainer",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Backbone",
    "CheckpointError",
    "DataError",
    "Demonstration",
    "ExportError",
    "Flags",
    "Message",
    "ModelError",
    "PPOConfig",
    "PPOTrainer",
    "Prompt",
    "Ranking",
    "Rating",
    "Recipe",
    "RecipeError",
    "Response",
    "RewardModel",
    "RewardTrainer",
    "RlhfKitError",
    "ScalarHead",
    "Text",
    "export_run",
    "load",
    "load_backbone",
    "load_recipe",
    "run",
    "run_step",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'rlhf_kit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rlhf_kit.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
