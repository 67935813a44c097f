"""Finding recipes, and checking them and data files before anything runs; nothing of torch unless a recipe needs it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_kit.checks.ledger import Ledger
from rlhf_kit.checks.row import SPECIAL_TOKENS
from rlhf_kit.errors import Problem, RecipeError
from rlhf_kit.examination import Examined, examine
from rlhf_kit.files import HELDOUT, KIND_OF_FIELD
from rlhf_kit.guessing import Guess, foreign, joined_by, kind_of_joined
from rlhf_kit.process import prepare_torch
from rlhf_kit.recipe_ppo import mistakes

if TYPE_CHECKING:
    from rlhf_kit.formats.base import Format
    from rlhf_kit.recipe import Recipe

__all__ = ["Checks", "Verdict", "check_recipe", "find_recipe", "validate"]


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
    """What only shows outside the recipe or between its sections: files that are not there, settings of
    PPO that need others, and wrong `trainer` arguments."""
    rubric, colon, _ = (recipe.data.rubric or "").rpartition(":")
    if colon and rubric.endswith(".py") and not Path(rubric).is_file():
        yield "data.rubric", f"no such file: {rubric}"
    for section, model in (("model", recipe.model), ("reward.model", recipe.reward.model)):
        if model and model.chat_template and not Path(model.chat_template).is_file():
            yield f"{section}.chat_template", f"no such file: {model.chat_template}"
    yield from _check_ppo(recipe)
    if any(section.trainer for section in (recipe.sft, recipe.reward, recipe.ppo)):  # else torch is not needed
        prepare_torch()
        from rlhf_kit.pipeline import check

        yield from check(recipe)


def _check_ppo(recipe: Recipe) -> Iterator[tuple[str, str]]:
    ppo, data = recipe.ppo, recipe.data
    for name, reason in mistakes(ppo):
        yield f"ppo.{name}", reason
    for number, source in enumerate(ppo.reward_funcs):
        path, colon, _ = source.rpartition(":")
        if colon and path.endswith(".py") and not Path(path).is_file():
            yield f"ppo.reward_funcs.{number}", f"no such file: {path}"
    if ppo.ptx_coef and getattr(data, ppo.ptx_data) is None:
        yield "ppo.ptx_coef", f"needs data.{ppo.ptx_data}, or ppo.ptx_data for other text"
    if ppo.eval_steps and data.prompts_heldout is None:
        yield "ppo.eval_steps", "needs data.prompts_heldout"


@dataclass(frozen=True)
class Verdict:
    """What one recipe or data source holds, and how much is wrong with it."""

    name: str
    summary: str
    codes: Counter[str]
    """Findings by code; those of recipes have the empty code."""
    examined: Examined | None = None
    """For a data source."""


@dataclass(frozen=True)
class Checks:
    """What is asked of the data files."""

    kind: str | None = None
    """Of the sources; guessed from each one's first rows otherwise."""
    format: Format | None = None
    heldout: tuple[str, ...] = ()
    """Sources that none of the others may share a prompt with."""
    tokens: re.Pattern[str] = field(default=SPECIAL_TOKENS)
    ignored: frozenset[str] = frozenset()
    progress: Callable[[str, int], None] | None = None
    """Is told the source and how many of its rows have passed."""


def validate(names: Iterable[str], checks: Checks = Checks()) -> Iterator[Problem | Verdict]:  # frozen
    """Checks recipes with all the data they name, and data sources, each once: findings, then each one's verdict.

    Args:
        names: files; a recipe ends in .yaml or .yml, or is the bare name of a packaged one.
        checks: what is asked of the data.
    """
    keep, training = bool(checks.heldout), list[Ledger]()
    joined: dict[str, tuple[Guess, list[str]]] = {}
    for name in dict.fromkeys(name for name in names if name not in checks.heldout):
        if Path(name).suffix in (".yaml", ".yml") or (name in _packaged_recipes() and not Path(name).exists()):
            yield from _validate_recipe(str(find_recipe(name)), checks)
        elif (guessed := joined_by(name, checks.format)) and guessed.format:
            joined.setdefault(guessed.format.name, (guessed, []))[1].append(name)
        else:
            found = Examined(name, checks.kind or "", checks.format, ledger=Ledger(keep))
            training.append((yield from _validate_data(found, checks, [])))
    for guessed, parts in joined.values():
        assert guessed.format is not None
        kind = checks.kind or kind_of_joined(parts, guessed.format)
        found = Examined(_together(parts), kind, guessed.format, guessed.why, Ledger(keep), parts=tuple(parts))
        training.append((yield from _validate_data(found, checks, [])))
    for name in dict.fromkeys(checks.heldout):
        found = Examined(name, checks.kind or "", checks.format, ledger=Ledger(keep))
        yield from _validate_data(found, checks, training)


def _together(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {_number(len(names) - 1, 'file')} more"


def _validate_recipe(path: str, checks: Checks) -> Iterator[Problem | Verdict]:
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
    yield from problems
    data = usable[0].data.model_dump(include=set(KIND_OF_FIELD), exclude_none=True) if usable else {}
    sources = {name: (source, KIND_OF_FIELD[name]) for name, source in data.items()}
    sources |= {name: (source, "ranking") for name, source in (usable[0].phases if usable else {}).items()}
    yield Verdict(path, f"recipe, {_number(len(sources), 'data source')}", Counter({"": len(problems)}))
    ledgers: dict[tuple[str, str], Ledger] = {}
    trained = [pair for name, pair in sources.items() if name not in HELDOUT]
    for source, kind in dict.fromkeys([*trained, *sources.values()]):
        known = [ledgers[pair] for pair in ledgers if pair in trained] if (source, kind) not in trained else []
        if problem := foreign(source, kind):  # a stage reads the kit's own shapes only
            yield problem
            yield Verdict(source, "not of the kit's own shape", Counter({problem.code: 1}))
            continue
        found = Examined(source, kind, why="the recipe says so", ledger=Ledger(keep_prompts=True))
        ledgers[source, kind] = yield from _validate_data(found, checks, known)


def _validate_data(
    found: Examined, checks: Checks, training: list[Ledger]
) -> Generator[Problem | Verdict, None, Ledger]:
    """Examines one source; its generator returns the ledger of its rows."""
    told = checks.progress
    progress = None if told is None else lambda rows: told(found.name, rows)
    yield from examine(found, trained=training, tokens=checks.tokens, ignored=checks.ignored, progress=progress)
    yield Verdict(found.name, _summary(found), found.codes, found)
    return found.ledger


def _summary(found: Examined) -> str:
    if not found.kind:
        return "of no known kind"
    counts = [_number(found.records, found.kind)]
    if found.kind == "ranking":
        counts += [_number(found.ledger.wins.pairs, "pair"), _number(found.ledger.wins.ties, "tied pair")]
    if found.format is not None:
        counts.append(f"from {_number(found.rows, 'row')} of {found.format.name} ({found.why})")
    return ", ".join(counts)


def _number(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
