"""How many rows a stage's data have and how long they are in tokens: read where they are here, else said by others."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_kit import files
from rlhf_kit.data import Encoder
from rlhf_kit.errors import ModelError
from rlhf_kit.models.loading import load_tokenizer
from rlhf_kit.planning.architectures import whereabouts
from rlhf_kit.recipe import ModelSection, Recipe

__all__ = ["Lengths", "lengths_of"]

_MOST = 2000
"""Rows that are tokenised of a source, evenly spread: enough for means; only the very longest may be missed."""
_CHARACTERS = 4.0
"""Characters of a token where there is no tokenizer: 4 is OpenAI's rule of thumb for English; other text has fewer."""
_TEMPLATE = 12
"""Tokens that a chat template lays around a prompt, where there is no tokenizer."""
_ANSWERS = 4

Item = tuple[int, ...]
"""Tokens of a prompt, and of each of its answers."""


@dataclass(frozen=True)
class Lengths:
    """Of one source.

    Attributes:
        rows: None where nobody says.
        items: lengths of some of them.
        source: how they are known, for people.
    """

    rows: int | None
    items: tuple[Item, ...]
    source: str


def lengths_of(recipe: Recipe, field: str, model: ModelSection, limit: int | None, rows: Mapping[str, int]) -> Lengths:
    """Those of a field of the recipe's `data`.

    Args:
        model: whose tokenizer is used.
        limit: tokens of prompt and answer together; None for prompts alone.
        rows: what the caller says of sources that are not here.
    """
    source = str(getattr(recipe.data, field))
    known = next((entry for name, entry in _datasets().items() if name in source.lower()), {})
    longest = recipe.data.max_prompt_length
    if not _is_here(source):
        answers = 1 if field != "rankings" else known.get("answers", _ANSWERS)
        item = (longest,) if limit is None else (min(longest, limit - 1), *[max(1, limit - longest)] * answers)
        words = "not here: each row as long as the recipe allows"
        if field not in rows and known:
            words += f"; rows of {known['source']}"
        return Lengths(rows.get(field, known.get("rows")), (item,), words)
    records = files.load(source, files.kind_of_field(field))
    tokenizer = _tokenizer(model)
    step = max(1, len(records) // _MOST)
    some = records[::step]
    if tokenizer is None:
        items = [_estimated(record, longest, limit) for record in some]
        words = f"{_CHARACTERS:.0f} characters a token (the tokenizer is not here)"
    else:
        encoder = Encoder(tokenizer, max_prompt_length=longest, max_length=limit)
        items = [_encoded(record, encoder) for record in some]
        words = "tokenised"
    words += f", every {step}th row" if step > 1 else ""
    return Lengths(rows.get(field, len(records)), tuple(items), words)


@functools.cache
def _datasets() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "datasets.json").read_text(encoding="utf-8"))
    return found


def _is_here(source: str) -> bool:
    return Path(source).exists() or (":" in source and Path(source.rpartition(":")[0]).exists())


def _tokenizer(model: ModelSection) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer where it can be had without a network, by the kit's own rules."""
    try:
        if whereabouts(model) is None:
            AutoTokenizer.from_pretrained(model.name_or_path, revision=model.revision, local_files_only=True)
        return load_tokenizer(model)
    except (OSError, ValueError, KeyError, ModelError):
        return None


def _texts(record: Any) -> list[str]:
    """The answers of a record."""
    if "completion" in type(record).model_fields:
        return [record.completion]
    if "responses" in type(record).model_fields:
        return [response.text for response in record.responses]
    return []


def _encoded(record: Any, encoder: Encoder) -> Item:
    texts = _texts(record)
    if len(texts) > 1:
        ids = encoder.ranking(record)
        return (len(ids.prompt), *map(len, ids.responses))
    prompt = len(encoder.prompt(record.prompt))
    return (prompt, *(len(encoder.response(text, prompt)) for text in texts))


def _estimated(record: Any, longest: int, limit: int | None) -> Item:
    turns = [record.prompt] if isinstance(record.prompt, str) else [turn.content for turn in record.prompt]
    prompt = min(longest, _TEMPLATE * len(turns) + _tokens(turns))
    room = None if limit is None else limit - prompt
    answers = [_tokens([text]) + 1 for text in _texts(record)]
    return (prompt, *(answer if room is None else max(1, min(room, answer)) for answer in answers))


def _tokens(texts: Sequence[str]) -> int:
    return int(sum(map(len, texts)) / _CHARACTERS) + 1
