"""Finding recipes, and checking them and data files before anything runs; nothing of torch unless a recipe needs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_kit.errors import InputError, Problem, RecipeError
from rlhf_kit.process import prepare_torch

if TYPE_CHECKING:
    from rlhf_kit.files import Checked
    from rlhf_kit.recipe import Recipe

__all__ = ["Verdict", "check_recipe", "find_recipe", "validate"]

_KIND_OF_FIELD = {
    "demonstrations": "demonstration",
    "rankings": "ranking",
    "rankings_heldout": "ranking",
    "prompts": "prompt",
    "prompts_heldout": "prompt",
    "text": "text",
}


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the bare name of one that comes with the package.

    Raises:
        RecipeError: a bare name that neither is a file nor belongs to a packaged recipe.
    """
    path = Path(name)
    if path.is_file() or path.suffix or path.name != name:  # a folder beside it may have the same name
        return path
    packaged = _packaged_recipes()
    if name in packaged:
        return packaged[name]
    raise RecipeError(
        [Problem(name, "", f"no such file, and no packaged recipe; there are: {', '.join(packaged) or 'none'}")]
    )


def _packaged_recipes() -> dict[str, Path]:
    """Recipes inside an installed wheel, else those of the checkout that the package stands in."""
    package = Path(__file__).parent
    folders = (package / "_recipes", package.parent / "recipes")
    folder = next((f for f in folders if f.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def check_recipe(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What only shows outside the recipe: files that are not there, and wrong `trainer` arguments."""
    rubric, colon, _ = (recipe.data.rubric or "").rpartition(":")
    if colon and rubric.endswith(".py") and not Path(rubric).is_file():
        yield "data.rubric", f"no such file: {rubric}"
    template = recipe.model.chat_template
    if template and not Path(template).is_file():
        yield "model.chat_template", f"no such file: {template}"
    if any(section.trainer for section in (recipe.sft, recipe.reward, recipe.ppo)):  # else torch is not needed
        prepare_torch()
        from rlhf_kit.pipeline import check

        yield from check(recipe)


@dataclass(frozen=True)
class Verdict:
    """What one recipe or data source holds, and all that is wrong with it."""

    name: str
    summary: str
    problems: list[Problem] = field(default_factory=list)

    def __str__(self) -> str:
        wrong = f"; {_number(len(self.problems), 'problem')}" if self.problems else ""
        return f"{self.name}: {self.summary}{wrong}"


def validate(names: Iterable[str], kind: str | None = None) -> Iterator[Verdict]:
    """Checks recipes with all the data they name, and data sources; each source once.

    Args:
        names: files; a recipe ends in .yaml or .yml, or is the bare name of a packaged one.
        kind: of the data sources; guessed from each one's first row otherwise.
    """
    seen: set[tuple[str, str]] = set()
    for name in names:
        if Path(name).suffix in (".yaml", ".yml") or (name in _packaged_recipes() and not Path(name).exists()):
            verdict, sources = _validate_recipe(str(find_recipe(name)))
            yield verdict
            for source, its_kind in sources:
                yield from _validate_data(source, its_kind, seen)
        else:
            yield from _validate_data(name, kind, seen)


def _validate_recipe(path: str) -> tuple[Verdict, list[tuple[str, str]]]:
    from rlhf_kit.recipe import load_recipe

    usable: list[Recipe] = []

    def check(recipe: Recipe) -> Iterator[tuple[str, str]]:
        usable.append(recipe)  # also where the recipe has mistakes: the data that it names are checked all the same
        return check_recipe(recipe)

    problems: list[Problem] = []
    try:
        load_recipe(path, check=check)
    except RecipeError as error:
        problems += error.problems
    data = usable[0].data.model_dump(include=set(_KIND_OF_FIELD), exclude_none=True) if usable else {}
    sources = [(source, _KIND_OF_FIELD[name]) for name, source in data.items()]
    return Verdict(path, f"recipe, {_number(len(sources), 'data source')}", problems), sources


def _validate_data(source: str, kind: str | None, seen: set[tuple[str, str]]) -> Iterator[Verdict]:
    from rlhf_kit.files import check, guess_kind

    try:
        kind = kind or guess_kind(source)
    except InputError as error:
        yield Verdict(source, "of no known kind", list(error.problems))
        return
    if (source, kind) not in seen:
        seen.add((source, kind))
        checked = check(source, kind)
        yield Verdict(source, _summary(checked, kind), checked.problems)


def _summary(checked: Checked, kind: str) -> str:
    counts = [_number(len(checked.records), kind)]
    if kind == "ranking":
        rankings: Iterable[Any] = checked.records
        sizes = [(len(r.responses), len(r.pairs)) for r in rankings]
        pairs = sum(found for _, found in sizes)
        counts += [_number(pairs, "pair"), _number(sum(k * (k - 1) // 2 for k, _ in sizes) - pairs, "tied pair")]
    return ", ".join(counts)


def _number(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
