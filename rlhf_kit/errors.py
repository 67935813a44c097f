"""Errors that a person can mend: what the command line prints without a traceback, with exit code 2.

Anything else that is raised is a bug of this package and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "CheckpointError",
    "DataError",
    "EngineError",
    "ExportError",
    "InputError",
    "ModelError",
    "Problem",
    "RecipeError",
    "RlhfKitError",
]


class RlhfKitError(Exception):
    """Something the user can mend; the message says where, what, and what to do."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in what the user wrote, printed as `where: field: reason`."""

    where: str
    """The file with its line (`recipe.yaml:6`) or element (`rankings.parquet#12`), or the override that is wrong."""
    field: str
    """The dotted path of the field (`responses.2.rank`); empty when the whole row or file is wrong."""
    reason: str
    """What is wrong and what to do."""
    code: str = ""
    """For findings in data: one of `codes.CODES`, which says how much it matters."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.field, self.reason) if part)


class InputError(RlhfKitError):
    """All the mistakes found in one input, one line each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)  # the only argument, so that the error survives pickling

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class RecipeError(InputError):
    """The recipe, or an override of it, has mistakes."""


class DataError(InputError):
    """A data file is missing, unreadable, or has rows that cannot be used."""


class ModelError(RlhfKitError):
    """The model cannot be found, fetched, read, or used for what the recipe asks."""


class CheckpointError(RlhfKitError):
    """A run directory is incomplete, damaged, or belongs to another run."""


class ExportError(RlhfKitError):
    """An exported adapter does not do what the trained one did."""


class EngineError(RlhfKitError):
    """The server that samples, or the people who score, do not answer, or cannot do what the run needs of them."""
