"""A recipe's plan: every stage that it has data for, whether it fits, and what would make it fit."""

from __future__ import annotations

from dataclasses import replace

from rlhf_kit.errors import Problem, RecipeError, RlhfKitError
from rlhf_kit.planning.architectures import architecture_of
from rlhf_kit.planning.changes import cheapest
from rlhf_kit.planning.ppo_plan import plan_ppo
from rlhf_kit.planning.results import Plan, StagePlan
from rlhf_kit.planning.stage_plans import plan_reward, plan_sft
from rlhf_kit.planning.stages import dtype_of
from rlhf_kit.planning.wishes import Wishes
from rlhf_kit.recipe import Recipe

__all__ = ["plan", "plan_stages"]

_STAGES = {"sft": "demonstrations", "reward": "rankings", "ppo": "prompts"}
_PLANNERS = {"sft": plan_sft, "reward": plan_reward, "ppo": plan_ppo}


def plan(recipe: Recipe, wishes: Wishes) -> Plan:
    """What a recipe needs on these devices; where it does not fit, or only just, also what would help.

    Raises:
        RecipeError: the recipe names no data.
        ModelError: the model's architecture is not to be had.
        DataError: data that are here cannot be used.
        RlhfKitError: a quantised base is to be shared out, which training refuses.
    """
    quantised = recipe.model.quantization or recipe.reward_model.quantization
    if wishes.shards_base and quantised is not None:
        raise RlhfKitError(
            f"model.quantization {quantised} cannot be shared out by {wishes.mode}; plan with --mode "
            "ddp or zero2, where each device has the whole quantised base"
        )
    architecture = architecture_of(recipe.model)
    stages = plan_stages(recipe, wishes)
    if not stages:
        words = "names no data, so there is nothing to plan; give at least data.demonstrations"
        raise RecipeError([Problem("recipe", "data", words)])
    found = Plan(
        model=architecture.name,
        source=architecture.source,
        dtype=str(dtype_of(recipe.model, wishes)).removeprefix("torch."),
        quantization=recipe.model.quantization,
        machine="gpu" if wishes.gpu else "cpu",
        devices=wishes.devices,
        mode=wishes.mode if wishes.devices > 1 else "single",
        device=wishes.device,
        stages=stages,
    )
    if wishes.device is None:
        return found
    return replace(found, changes=cheapest(recipe, wishes, found.stages, plan_stages))


def plan_stages(recipe: Recipe, wishes: Wishes) -> tuple[StagePlan, ...]:
    """Those that the recipe has data for."""
    return tuple(
        _PLANNERS[name](recipe, wishes) for name, field in _STAGES.items() if getattr(recipe.data, field) is not None
    )
