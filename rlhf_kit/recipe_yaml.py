"""A YAML file as plain data, with the line of every key.

YAML 1.1 as PyYAML reads it, but `1e-5` is a number, a date is a text, and a key that stands twice is a mistake.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from .errors import Problem

__all__ = ["Document", "read_document"]


_FLOAT, _DATE = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with numbers as everybody writes them."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's own class attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


# PyYAML takes 1e-5 for a text: YAML 1.1 wants a dot and a sign.
_Loader.add_implicit_resolver(_FLOAT, re.compile(r"^[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


class Document:
    """What a YAML file says: its `data` (None where unusable), the place of each key, and the problems so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] | None = None
        self.problems: list[Problem] = []
        self._places: dict[str, str] = {}

    def where(self, field: str) -> str:
        """The place of a dotted field, or of the innermost section around it that the file has."""
        while field and field not in self._places:
            field = field.rpartition(".")[0]
        return self._places.get(field, str(self.path))

    def overridden(self, field: str) -> bool:
        """Whether the value of a field comes from an override."""
        return self.where(field).startswith("override ")

    def override(self, text: str) -> None:
        """Puts `section.key=value` over what the file says."""
        place = f"override {text}"
        field, equals, value = text.partition("=")
        keys = field.strip().split(".")
        if not equals or not all(keys):
            self.problems.append(Problem(place, "", "must look like section.key=value"))
            return
        section = self.data = self.data or {}
        for depth, key in enumerate(keys[:-1], 1):
            name = ".".join(keys[:depth])
            if section.get(key) is None:  # not there, or an empty section
                section[key] = {}
                self._places[name] = place
            if not isinstance(section[key], dict):
                reason = "is a value, not a section with keys of its own"
                self.problems.append(Problem(place, name, reason))
                return
            section[key] = dict(section[key])  # an alias elsewhere in the file keeps what it has
            section = section[key]
        name = ".".join(keys)
        try:
            section[keys[-1]] = yaml.load(value, Loader=_Loader)
        except (yaml.YAMLError, ValueError) as error:
            self.problems.append(Problem(place, name, f"not YAML: {_said(error)}"))
            return
        self._places = {k: v for k, v in self._places.items() if not k.startswith(f"{name}.")} | {name: place}

    def line(self, problem: Problem) -> float:
        """Where a problem stands in the file, to sort by; overrides come after the file."""
        line = problem.where.rpartition(":")[2]
        if problem.where.startswith("override "):
            return math.inf
        return int(line) if line.isdecimal() else 0

    def note(self, node: yaml.Node, field: str = "", inside: tuple[int, ...] = ()) -> None:
        """Remembers the lines of all keys in `node`, and notes those that stand twice."""
        self._places[field] = f"{self.path}:{node.start_mark.line + 1}"
        if id(node) in inside:  # an alias of what it stands in
            return
        inside = (*inside, id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.note(item, _join(field, str(index)), inside)
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                place = f"{self.path}:{line}"
                if name in lines:
                    reason = f"stands twice; the first is on line {lines[name]}"
                    self.problems.append(Problem(place, _join(field, name), reason))
                lines.setdefault(name, line)
                self.note(value, _join(field, name), inside)
                self._places[_join(field, name)] = place  # the key's line, where its value may start on the next one


def read_document(path: Path) -> Document:
    """Reads a YAML file whose top is a mapping; what is wrong with it stands in the document's `problems`."""
    document = Document(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        document.problems.append(Problem(f"{path}:{line}", "", "not UTF-8; save the file in that encoding"))
        return document
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        document.problems.append(Problem(str(path), "", reason))
        return document
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            document.note(node)
        document.data = _mapping(document, yaml.load(text, Loader=_Loader))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reason = f"not YAML: the character U+{error.character:04X} is not allowed"
        document.problems.append(Problem(f"{path}:{line}", "", reason))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        column = f" at column {mark.column + 1}" if mark else ""
        document.problems.append(Problem(place, "", f"not YAML{column}: {_said(error)}"))
    except ValueError as error:
        document.problems.append(Problem(str(path), "", f"not YAML: {error}"))
    return document


def _mapping(document: Document, data: Any) -> dict[str, Any] | None:
    if isinstance(data, dict):
        return data
    found = {type(None): "is empty", list: "is a list"}.get(type(data), "is a single value")
    reason = f"{found}; a recipe is a mapping of sections and needs at least model.name_or_path"
    document.problems.append(Problem(str(document.path), "", reason))
    return None


def _said(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        return " ".join(part for part in (error.context, error.problem) if part)
    return str(error).splitlines()[0]


def _join(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name
