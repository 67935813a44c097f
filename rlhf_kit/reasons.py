"""pydantic's findings, said in plain words: which field, what is wrong with it, what to do.

Shared by recipes and data records, so that a mistake reads the same wherever it is made.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["NON_BLANK", "field_of", "findings", "keys_at", "reason_of", "unknown_key"]

NON_BLANK = r"\S"
"""The pattern of a text that says something; its mismatch is reported as an empty text."""

_WANTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def findings(error: ValidationError) -> list[ErrorDetails]:
    """All that pydantic found, without the lists it calls too short because it did not count their invalid items."""
    found = error.errors(include_url=False)
    return [e for e in found if not (e["type"] == "too_short" and len(e["input"]) >= e["ctx"]["min_length"])]


def field_of(error: ErrorDetails) -> str:
    """The dotted path of the field that `error` is about.

    Tags of unions are written `<tag>` and left out; a validator of a whole list names the culprit inside it as `at` in
    its error's context.
    """
    inner = error.get("ctx", {}).get("at", ())
    return ".".join(str(part) for part in (*error["loc"], *inner) if str(part)[:1] not in ("<", "["))


def reason_of(error: ErrorDetails, model: type[BaseModel], hints: Mapping[str, str] | None = None) -> str:
    """What is wrong and what to do; `hints` add advice to a field that is missing or null, by the field's name."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    hint = (hints or {}).get(str(error["loc"][-1]) if error["loc"] else "", "")
    advice = f"; {hint}" if hint else ""
    if kind == "missing":
        return f"missing{advice}"
    if kind == "extra_forbidden":
        return unknown_key(str(error["loc"][-1]), keys_at(model, error["loc"][:-1]))
    if kind == "invalid_key":
        return "must be a text, as every key; put it in quotes"
    if kind in _WANTED:
        return f"null{advice or f'; {_WANTED[kind]} is needed'}" if value is None else _wrong_type(_WANTED[kind], value)
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"must be {words} {context[name]:.12g}, not {_shown(value)}"
    if kind == "too_short":
        return f"{len(value)} given, at least {context['min_length']} needed{advice}"
    if kind == "too_long":
        return f"{len(value)} given, at most {context['max_length']} allowed{advice}"
    if kind == "string_pattern_mismatch" and context["pattern"] == NON_BLANK:
        return "empty; a text is needed"
    if kind == "string_unicode":
        return "holds half of a surrogate pair, which no text can; write the character itself"
    if kind == "literal_error":
        return f"must be {context['expected']}, not {_shown(value)}"
    if kind == "finite_number":
        return f"must be a finite number, not {_shown(value)}"
    return error["msg"].removeprefix("Value error, ")


def unknown_key(key: str, known: Collection[str]) -> str:
    """The reason for a key that is not one of `known`, with the likeliest of them."""
    if close := difflib.get_close_matches(key, known, n=1):
        return f"unknown key; did you mean '{close[0]}'?"
    return f"unknown key; known are {', '.join(known)}" if 0 < len(known) <= 12 else "unknown key"


def keys_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The field names of the model that stands at `loc` inside `model`."""
    models = [model]
    for part in loc:
        fields = [inner.model_fields[part] for inner in models if isinstance(part, str) and part in inner.model_fields]
        if fields:  # list indices and tags of unions stay inside the field that has been entered
            models = [found for field in fields for found in _models_in(field.annotation)]
    return [name for inner in models for name in inner.model_fields]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _wrong_type(wanted: str, value: object) -> str:
    advice = ""
    if wanted == "a text" and not isinstance(value, (dict, list, tuple)):
        advice = "; put it in quotes"
    elif isinstance(value, str) and _is_number(value) and "number" in wanted:
        advice = "; write it without quotes"
    return f"must be {wanted}, not {_shown(value)}{advice}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(value: object) -> str:
    """The value as JSON and YAML write it, cut to what a person takes in at a glance."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
