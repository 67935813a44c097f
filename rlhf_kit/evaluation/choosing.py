"""From what a person has typed to an evaluation: what is left out is as in the first run's recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_kit import rewards
from rlhf_kit.checkpoint import MANIFEST, read_manifest
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.evaluation.cost import Cost
from rlhf_kit.evaluation.evaluated import REWARD, RUBRIC
from rlhf_kit.evaluation.evaluating import Wish
from rlhf_kit.evaluation.judges.base import Judge
from rlhf_kit.evaluation.judges.choose import judges_named
from rlhf_kit.evaluation.judges.endpoint import EndpointSettings
from rlhf_kit.evaluation.policies import PPO, SFT, last_recipe, named
from rlhf_kit.evaluation.stage import own_judges
from rlhf_kit.recipe import Recipe
from rlhf_kit.recipe_rollout import RolloutSection
from rlhf_kit.sampling.drawing import Settings, settings_of
from rlhf_kit.sampling.prompts import read_prompts
from rlhf_kit.sampling.served import server_at

__all__ = ["Options", "home", "plain_settings", "wish_for"]

_PLAIN = Settings(k=1, temperature=1.0, max_new_tokens=256, seed=0)
"""Where no run is named whose recipe says it."""


@dataclass(frozen=True)
class Options:
    """What may be said beside the policies; None is as in the recipe.

    Attributes:
        limit: the first so many prompts only.
        judges: `[NAME=]JUDGE` each; empty are the run's own.
        endpoint: how one is asked; None is the defaults.
        steps: of PPO's checkpoints; empty are all that are kept, None is none.
        cost: what the policies are measured on beside their answers.
        vllm: the URL of a vLLM server that draws the answers, and a directory that it sees too.
    """

    prompts: str | None = None
    limit: int | None = None
    k: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    seed: int | None = None
    judges: tuple[str, ...] = ()
    endpoint: EndpointSettings | None = None
    steps: tuple[int, ...] | None = None
    resamples: int | None = None
    confidence: float | None = None
    cost: Cost = field(default_factory=Cost)
    vllm: str | None = None
    vllm_adapters: Path | None = None


def wish_for(places: Sequence[str], options: Options) -> Wish:
    """The evaluation that was asked for.

    Raises:
        RlhfKitError: policies, prompts or judges that there are not, or none at all.
    """
    policies = named(places, steps=options.steps)
    run = home(places)
    recipe = last_recipe(run) if run is not None else None
    source = options.prompts or (recipe.data.prompts_heldout if recipe else None)
    if source is None:
        raise RlhfKitError(
            "evaluate policy: no prompts: name a file with --prompts"
            + (f"; the recipe of {run} has no data.prompts_heldout" if run else "")
        )
    prompts, _ = read_prompts(source)
    given = {name: getattr(options, name) for name in ("k", "temperature", "top_k", "top_p", "max_new_tokens", "seed")}
    section = recipe.evaluate if recipe else None
    return Wish(
        tuple(policies),
        prompts[: options.limit],
        Path(source).name,
        settings_of(recipe, **given) if recipe else plain_settings(given),
        _judges(options, recipe, run),
        options.resamples or (section.bootstrap if section else 2000),
        options.confidence or (section.confidence if section else 0.95),
        options.cost,
        None if options.vllm is None else server_at(options.vllm, options.vllm_adapters, _rollout(recipe)),
    )


def _rollout(recipe: Recipe | None) -> RolloutSection | None:
    return None if recipe is None else recipe.ppo.rollout


def home(places: Sequence[str]) -> Path | None:
    """The directory of the first run among the places, whose prompts, settings and judges are taken."""
    for place in places:
        run = Path(place) if Path(place).exists() else Path(place.partition("=")[2])
        if run.name and any((run / stage / MANIFEST).is_file() for stage in (SFT, REWARD, PPO)):
            return run
        if (run / MANIFEST).is_file() and read_manifest(run).stage in (SFT, PPO):
            return run.resolve().parent
    return None


def plain_settings(given: Mapping[str, float | int | None]) -> Settings:
    """The settings given; those that are None as where no recipe says them."""
    values = {name: value for name, value in given.items() if value is not None}
    return Settings(**{**vars(_PLAIN), **values})


def _judges(options: Options, recipe: Recipe | None, run: Path | None) -> list[Judge]:
    stage = None if run is None else rewards.stage_of(run)
    own = own_judges(recipe, stage) if recipe else []
    if not options.judges:
        if not own:
            raise RlhfKitError(
                "evaluate policy: nobody to judge: name somebody with --judge "
                f"({REWARD}, {RUBRIC}, file.py:function, a reward model, a file of rankings, http://HOST/v1#MODEL)"
            )
        return own
    return judges_named(options.judges, {judge.name: judge for judge in own}, options.endpoint)
