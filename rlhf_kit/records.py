"""The records of the labelling format, and the one place that says what a valid row is.

`data_schemas/` is generated from here: `python -m rlhf_kit.records data_schemas`.
"""

from __future__ import annotations

import json
import sys
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Strict, Tag, ValidationError
from pydantic.functional_validators import AfterValidator
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticCustomError

from .errors import DataError, Problem
from .reasons import NON_BLANK, field_of, findings, reason_of
from .shapes import ShapeError, adapted

__all__ = [
    "SCHEMAS",
    "Conversation",
    "Demonstration",
    "Message",
    "Prompt",
    "Ranking",
    "Record",
    "Response",
    "Text",
    "adapt",
    "json_schema",
    "parse",
]

NonBlank = Annotated[str, Field(pattern=NON_BLANK)]

_LABELER = "Who wrote or ranked this: a name or number, the same in every row of that person."
_CATEGORY = "The use case, such as open_qa, brainstorming or rewrite."
_ID = "A name for this row, unique in its file."


class _Record(BaseModel):
    # Strict: neither the text "10" nor the number 10.0 is the rank 10; nothing becomes something else in silence.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Message(_Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"] = Field(description="Who speaks.", examples=["user"])
    content: NonBlank = Field(description="What is said.", examples=["Why is the sky blue?"])


def _check_turns(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    start = 1 if messages and messages[0].role == "system" else 0
    for index, message in enumerate(messages[start:], start):
        expected = "user" if (index - start) % 2 == 0 else "assistant"
        if message.role != expected:
            words = (
                "must be '{expected}', not '{role}': a system turn may come first, then user and assistant take turns"
            )
            context = {"expected": expected, "role": message.role, "at": (index, "role")}
            raise PydanticCustomError("turns", words, context)
    if (len(messages) - start) % 2 == 0:
        raise PydanticCustomError("turns", "must end with a user turn, which is what the model answers")
    return messages


def _conversation_tag(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    return "<messages>" if isinstance(value, (list, tuple)) else None


_Messages = Annotated[tuple[Message, ...], Strict(False), AfterValidator(_check_turns)]  # rows hold lists, not tuples
Conversation: TypeAlias = Annotated[
    Annotated[NonBlank, Tag("<text>")] | Annotated[_Messages, Tag("<messages>")],
    Discriminator(
        _conversation_tag,
        custom_error_type="conversation",
        custom_error_message="must be a text or a list of messages",
    ),
]
"""A non-blank text, or messages: perhaps a system turn, then user and assistant by turns, ending with the user."""

_PROMPT_EXAMPLES: list[Any] = ["Why is the sky blue?", [{"role": "user", "content": "Why is the sky blue?"}]]
_PROMPT = "What the model is asked: a text, or the turns of a conversation that ends with the user's."


class Demonstration(_Record):
    """A prompt with an answer worth imitating."""

    prompt: Conversation = Field(description=_PROMPT, examples=_PROMPT_EXAMPLES)
    completion: NonBlank = Field(description="The answer to imitate.", examples=["Air scatters blue light most."])
    labeler: str | None = Field(default=None, description=_LABELER, examples=["anna"])
    category: str | None = Field(default=None, description=_CATEGORY, examples=["open_qa"])
    id: str | None = Field(default=None, description=_ID, examples=["demo-0001"])


class Response(_Record):
    """One of several answers to a prompt, with its place among them."""

    text: NonBlank = Field(description="The answer.", examples=["Air scatters blue light most."])
    rank: int = Field(ge=1, description="Its place among the answers: 1 = best; equal ranks are a tie.", examples=[1])
    source: str | None = Field(
        default=None, description="The model or person that wrote it.", examples=["sft", "human"]
    )
    ended: bool = Field(
        default=True,
        description="False for an answer that was cut off at a length limit before the model ended it.",
        examples=[True],
    )


class Ranking(_Record):
    """Several answers to one prompt, ranked by one labeler."""

    prompt: Conversation = Field(description=_PROMPT, examples=_PROMPT_EXAMPLES)
    responses: Annotated[tuple[Response, ...], Strict(False)] = Field(
        min_length=2,
        max_length=64,
        description="The answers, in any order.",
        examples=[[{"text": "Air scatters blue light most.", "rank": 1}, {"text": "Because.", "rank": 2}]],
    )
    labeler: str | None = Field(default=None, description=_LABELER, examples=["anna"])
    category: str | None = Field(default=None, description=_CATEGORY, examples=["open_qa"])
    id: str | None = Field(default=None, description=_ID, examples=["rank-0001"])
    meta: dict[str, Any] = Field(
        default_factory=dict,
        description="Anything else to keep with the row; not read by the kit.",
        examples=[{"batch": 3}],
    )

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The comparisons that the ranks say: (index of the preferred response, index of the other); ties make none."""
        ranks = [response.rank for response in self.responses]
        return tuple((w, o) for w, o in permutations(range(len(ranks)), 2) if ranks[w] < ranks[o])


class Prompt(_Record):
    """A prompt alone, for sampling answers."""

    prompt: Conversation = Field(description=_PROMPT, examples=_PROMPT_EXAMPLES)
    category: str | None = Field(default=None, description=_CATEGORY, examples=["open_qa"])
    id: str | None = Field(default=None, description=_ID, examples=["prompt-0001"])


class Text(_Record):
    """A piece of plain text, as models are pretrained on."""

    text: NonBlank = Field(description="The text.", examples=["A river usually begins as something small."])
    source: str | None = Field(default=None, description="Where it comes from.", examples=["encyclopedia"])


Record: TypeAlias = Demonstration | Ranking | Prompt | Text

SCHEMAS: dict[str, type[Record]] = {"demonstration": Demonstration, "ranking": Ranking, "prompt": Prompt, "text": Text}
"""The kinds of row, by the name of their schema."""

_HINTS = {
    "rank": "give each response a rank, 1 = best",
    "responses": "a ranking compares 2 to 64 answers",
    "prompt": "every row needs its prompt",
    "completion": "a demonstration needs the answer to imitate",
}


def adapt(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """The row in the kit's own shape, where it comes in one of TRL's; raises `ShapeError` where that cannot be done."""
    return adapted(row, kind).row


def parse(row: dict[str, Any], kind: str, where: str = "") -> Record:
    """The record that a row holds, in the kit's own shape or one of TRL's; raises `DataError` with all its problems.

    Problems name the fields as the row has them: `chosen`, not the response that it becomes.
    """
    try:
        shape = adapted(row, kind)
    except ShapeError as error:
        raise DataError([Problem(where, error.field, error.reason)]) from None
    model = SCHEMAS[kind]
    try:
        return model.model_validate(shape.row)
    except ValidationError as error:
        found = findings(error)
    raise DataError(Problem(where, shape.name_of(field_of(e)), reason_of(e, model, _HINTS)) for e in found)


class _Schema(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # "Labeler" above every `labeler` tells nobody anything


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one kind of row."""
    head = {
        "$schema": GenerateJsonSchema.schema_dialect,
        "$id": f"https://rlhf-kit.dev/schemas/1/{kind}.schema.json",
    }
    return head | SCHEMAS[kind].model_json_schema(schema_generator=_Schema)


def _write_schemas(folder: Path) -> None:
    for kind in SCHEMAS:
        text = json.dumps(json_schema(kind), indent=2, ensure_ascii=False)
        (folder / f"{kind}.schema.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        raise SystemExit("usage: python -m rlhf_kit.records FOLDER")
    _write_schemas(Path(sys.argv[1]))
