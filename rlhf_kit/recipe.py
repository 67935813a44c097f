"""The recipe: one YAML file that says everything about a run.

Reading one needs neither torch nor a trainer: what a stage passes through in `trainer` is checked by whoever calls
`load_recipe` with a `check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from .errors import Problem, RecipeError
from .reasons import field_of, findings, reason_of
from .recipe_live import LIVE
from .recipe_ppo import PpoSection
from .recipe_round import RoundSection
from .recipe_sections import (
    DataSection,
    EvaluateSection,
    ExportSection,
    LoraSection,
    ModelSection,
    Name,
    RewardPhase,
    RewardSection,
    Section,
    SftSection,
)
from .recipe_yaml import Document, read_document

__all__ = [
    "DataSection",
    "EvaluateSection",
    "ExportSection",
    "LoraSection",
    "ModelSection",
    "PpoSection",
    "Recipe",
    "RewardPhase",
    "RewardSection",
    "RoundSection",
    "SftSection",
    "lacks_for_rounds",
    "load_recipe",
]

Check = Callable[["Recipe"], Iterable[tuple[str, str]]]
"""Looks at a recipe and names what is wrong: (dotted field, reason)."""

_HINTS = {"model": "name the model in model.name_or_path", "name_or_path": "name a Hub id, a directory or a .gguf file"}


class Recipe(Section):
    """Everything about a run."""

    model: ModelSection = Field(description="The base model.")
    lora: LoraSection = Field(default=LoraSection(), description="The shape of every adapter.")
    data: DataSection = Field(default=DataSection(), description="Where the data are.")
    sft: SftSection = Field(default=SftSection(), description="Supervised fine-tuning.")
    reward: RewardSection = Field(default=RewardSection(), description="The reward model.")
    ppo: PpoSection = Field(default=PpoSection(), description="Proximal policy optimisation.")
    evaluate: EvaluateSection = Field(default=EvaluateSection(), description="The comparison on held-out prompts.")
    export: ExportSection = Field(default=ExportSection(), description="The verification of what is exported.")
    round: RoundSection = Field(default=RoundSection(), description="Steps 2 and 3 again and again.")
    output_dir: Name = Field(default="runs/rlhf", description="Where the run directories go.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of everything random.")

    @property
    def reward_model(self) -> ModelSection:
        """The base of the reward model."""
        return self.reward.model or self.model

    @property
    def phases(self) -> dict[str, str]:
        """The sources of the reward model's phases, by the field that names them."""
        return {f"reward.phases.{n}.rankings": phase.rankings for n, phase in enumerate(self.reward.phases)}


def load_recipe(path: str | Path, overrides: Sequence[str] = (), check: Check | None = None) -> Recipe:
    """Reads a recipe; raises `RecipeError` with all its mistakes.

    Paths in the recipe are taken from the recipe's folder where something stands there, else from the current
    directory; paths in an override the other way round. `output_dir` is always taken from the current directory.

    Args:
        path: the YAML file.
        overrides: `section.key=value`, values as YAML writes them.
        check: further findings about the recipe, reported in the same list. It sees the defaults where the recipe has
            mistakes, and a model called "unknown" where its section cannot be used.
    """
    document = read_document(Path(path))
    if document.data is None:
        raise RecipeError(document.problems)
    for override in overrides:
        document.override(override)
    data = {k: {} if v is None and k in _SECTIONS else v for k, v in document.data.items()}  # an empty section
    problems = list(document.problems)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        mistakes = findings(error)
        for mistake in mistakes:
            field = field_of(mistake)
            problems.append(Problem(document.where(field), field, reason_of(mistake, Recipe, _HINTS)))
        recipe = _usable_part(data, [mistake["loc"] for mistake in mistakes])
    recipe = _with_paths(recipe, document)
    for field, reason in check(recipe) if check else ():
        problems.append(Problem(document.where(field), field, reason))
    if problems:
        raise RecipeError(sorted(dict.fromkeys(problems), key=document.line))
    return recipe


def lacks_for_rounds(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What a recipe lacks for rounds: (dotted field, reason)."""
    if recipe.round.prompts is None and recipe.data.prompts is None:
        yield "round.prompts", "missing; name prompts there, or in data.prompts"
    if recipe.data.prompts is None:
        yield "data.prompts", "missing; PPO needs prompts"
    if recipe.data.prompts_heldout is None:
        yield "data.prompts_heldout", "missing; rounds are compared on prompts that nothing was trained on"
    if recipe.ppo.init != "sft":
        yield "ppo.init", "says what PPO starts from, and so does round.start; leave it out"


_SECTIONS = [name for name, field in Recipe.model_fields.items() if field.annotation not in (str, int)]
_PATHS = {
    "model": ("name_or_path", "chat_template"),
    "data": (
        "demonstrations",
        "rankings",
        "rankings_heldout",
        "ratings",
        "prompts",
        "prompts_heldout",
        "text",
        "rubric",
    ),
}


def _usable_part(data: dict[str, Any], mistakes: list[tuple[int | str, ...]]) -> Recipe:
    """The recipe without its mistakes, so that what else is wrong can be found in the same go."""
    rest: dict[Any, Any] = _with_text_keys(data)
    for loc in mistakes:
        section = rest
        for part in loc[:-1]:
            if not isinstance(section.get(part), dict):
                section.pop(part, None)  # the mistake is inside a list: do without the whole list
                break
            section = section[part]
        else:
            section.pop(loc[-1], None)
    try:
        return Recipe.model_validate(rest)
    except ValidationError as error:  # what is left of a section is incomplete, or contradicts its defaults
        for name in {str(mistake["loc"][0]) for mistake in error.errors()}:
            kept = {key: value for key, value in rest.get(name, {}).items() if key == "trainer"}
            rest[name] = {"name_or_path": "unknown"} if name == "model" else kept
    return Recipe.model_validate(rest)


def _with_text_keys(section: dict[Any, Any], depth: int = 3) -> dict[str, Any]:
    """A copy of the recipe's mappings, down to what stands in a `trainer`, without keys that are no texts."""
    return {
        key: _with_text_keys(value, depth - 1) if depth > 1 and isinstance(value, dict) else value
        for key, value in section.items()
        if isinstance(key, str)
    }


def _with_paths(recipe: Recipe, document: Document) -> Recipe:
    sections = {}
    for section, names in _PATHS.items():
        old: BaseModel = getattr(recipe, section)
        values = {name: getattr(old, name) for name in names}
        found = {
            name: _beside(value, document.path.parent)
            for name, value in values.items()
            if value and not (document.overridden(f"{section}.{name}") and _exists(Path(), value))
        }
        sections[section] = old.model_copy(update=found)
    sections["reward"] = _with_reward_paths(recipe.reward, document.path.parent)
    folder = document.path.parent
    beside = [s if s in ("reward", LIVE) else _beside(s, folder) for s in recipe.ppo.reward_funcs]
    init = recipe.ppo.init if recipe.ppo.init in ("sft", "base") else _beside(recipe.ppo.init, folder)
    sections["ppo"] = recipe.ppo.model_copy(update={"reward_funcs": beside, "init": init})
    sections["round"] = _with_round_paths(recipe.round, folder)
    return recipe.model_copy(update=sections)


def _with_round_paths(section: RoundSection, folder: Path) -> RoundSection:
    labels = section.labels
    found: dict[str, Any] = {
        "labels": _beside(labels, folder) if isinstance(labels, str) else [_beside(one, folder) for one in labels]
    }
    for name in ("prompts", "guidelines"):
        if (value := getattr(section, name)) is not None:
            found[name] = _beside(value, folder)
    return section.model_copy(update=found)


def _with_reward_paths(reward: RewardSection, folder: Path) -> RewardSection:
    found: dict[str, Any] = {
        "phases": [p.model_copy(update={"rankings": _beside(p.rankings, folder)}) for p in reward.phases]
    }
    if reward.init not in ("sft", "base"):
        found["init"] = _beside(reward.init, folder)
    if reward.model is not None:
        values = {name: getattr(reward.model, name) for name in _PATHS["model"]}
        beside = {name: _beside(value, folder) for name, value in values.items() if value}
        found["model"] = reward.model.model_copy(update=beside)
    return reward.model_copy(update=found)


def _beside(value: str, folder: Path) -> str:
    return str(folder / value) if _exists(folder, value) else value


def _exists(folder: Path, value: str) -> bool:
    """Whether the file is there; `path:split` and `path.py:function` name a part of one."""
    return (folder / value).exists() or (":" in value and (folder / value.rpartition(":")[0]).exists())
