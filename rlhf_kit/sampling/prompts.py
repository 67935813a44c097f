"""What is asked: the prompts of a file, each once."""

from __future__ import annotations

from collections.abc import Hashable

from rlhf_kit import files
from rlhf_kit.errors import DataError, Problem
from rlhf_kit.records import Prompt, Record, Text, prompt_name


def read_prompts(source: str) -> tuple[list[Prompt], int]:
    """The prompts of a file of prompts, demonstrations, rankings or ratings, each once; and how many stood there again.

    Of records that are more than prompts, what was said of the answers (labeler, meta) is left behind.

    Raises:
        DataError: every row that cannot be used, or rows without prompts.
    """
    kind = files.guess_kind(source)
    if kind == "text":
        raise DataError([Problem(source, "", "holds text rows, which ask nothing; give prompts")])
    first: dict[Hashable, Prompt] = {}
    records = files.load(source, kind)
    for record in records:
        prompt = _prompt_alone(record)
        first.setdefault(prompt_name(prompt.prompt), prompt)
    return list(first.values()), len(records) - len(first)


def _prompt_alone(record: Record) -> Prompt:
    if isinstance(record, Prompt):
        return record
    if isinstance(record, Text):
        raise TypeError("a text has no prompt")
    kept = {"prompt", "category", "kind", "origin", "user_id", "id"} & set(type(record).model_fields)
    return Prompt(**{name: getattr(record, name) for name in kept})
