"""The records of the labelling format, and the one place that says what a valid row is.

`schemas.py` makes the JSON Schemas of `data_schemas/` from them.
"""

from __future__ import annotations

from itertools import permutations
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Strict, Tag, model_validator
from pydantic.functional_validators import AfterValidator
from pydantic_core import PydanticCustomError

from .reasons import NON_BLANK

__all__ = [
    "SCHEMAS",
    "Conversation",
    "Demonstration",
    "Flags",
    "Message",
    "ParallelRanking",
    "Prompt",
    "Ranking",
    "Rating",
    "Record",
    "Response",
    "Text",
    "joined_sources",
    "prompt_name",
    "sources_of",
]

NonBlank = Annotated[str, Field(pattern=NON_BLANK)]
Rank = Annotated[int, Field(ge=1)]


class _Record(BaseModel):
    # Strict: neither the text "10" nor the number 10.0 is the rank 10; nothing becomes something else in silence.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


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
            raise PydanticCustomError("role_order", words, context)
    if (len(messages) - start) % 2 == 0:
        raise PydanticCustomError("no_user_turn", "must end with a user turn, which is what the model answers")
    return messages


def _conversation_tag(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    return "<messages>" if isinstance(value, (list, tuple)) else None


_Messages = Annotated[
    tuple[Message, ...],
    Strict(False),  # rows hold lists, not tuples
    Field(json_schema_extra={"minItems": 1}),
    AfterValidator(_check_turns),
]
Conversation: TypeAlias = Annotated[
    Annotated[NonBlank, Tag("<text>")] | Annotated[_Messages, Tag("<messages>")],
    Discriminator(
        _conversation_tag,
        custom_error_type="conversation",
        custom_error_message="must be a text or a list of messages",
    ),
]
"""A non-blank text, or messages: perhaps a system turn, then user and assistant by turns, ending with the user."""


def prompt_name(prompt: Conversation) -> str | tuple[tuple[str, str], ...]:
    """The same for prompts that ask the same: a text is a conversation of that one user turn, and the model reads the
    same tokens. Other conversations are their turns, as pairs of role and content.
    """
    if isinstance(prompt, str):
        return prompt
    return prompt[0].content if len(prompt) == 1 else tuple((turn.role, turn.content) for turn in prompt)


_PROMPT_EXAMPLES: list[Any] = ["Why is the sky blue?", [{"role": "user", "content": "Why is the sky blue?"}]]
_PROMPT = "What the model is asked: a text, or the turns of a conversation that ends with the user's."


_Prompt = Annotated[Conversation, Field(description=_PROMPT, examples=_PROMPT_EXAMPLES)]
_Labeler = Annotated[
    str | None,
    Field(
        description="Who wrote, ranked or rated this: a name or number as text, the same in every row of a person.",
        examples=["anna"],
    ),
]
_Category = Annotated[
    str | None, Field(description="The use case, such as open_qa, brainstorming or rewrite.", examples=["open_qa"])
]
_Kind = Annotated[
    Literal["plain", "few_shot", "use_case"] | None,
    Field(
        description="How the prompt came about: any task (plain), an instruction with several examples of it "
        "(few_shot), or made after a use case that users named (use_case).",
        examples=["plain"],
    ),
]
_Origin = Annotated[
    Literal["labeler", "user"] | None,
    Field(description="Who wrote the prompt: a labeler, or a user of the model.", examples=["user"]),
]
_UserId = Annotated[
    str | None,
    Field(
        description="Who the prompt comes from, the same in every row of that person; splits and caps go by it.",
        examples=["user-17"],
    ),
]
_Id = Annotated[str | None, Field(description="A name for this row, unique in its file.", examples=["row-0001"])]
_Source = Annotated[str | None, Field(description="The model or person that wrote it.", examples=["sft", "human"])]
_Meta = Annotated[
    dict[str, Any],
    Field(
        description="Anything else to keep with the row; not read by the kit.",
        examples=[{"batch": 3}],
    ),
]
_Weight = Annotated[
    Annotated[float, Field(gt=0)] | None,
    Field(description="How much this ranking counts beside the others; without it, 1.", examples=[2.0]),
]
_Margin = Annotated[
    Annotated[float, Field(ge=0)] | None,
    Field(
        description="By how much the score of a preferred answer should at least exceed that of the other.",
        examples=[0.5],
    ),
]


_AND = " + "


def sources_of(source: str | None) -> tuple[str, ...]:
    """Who gave an answer, one or several: what `joined_sources` made, taken apart."""
    return tuple(name for name in (source or "").split(_AND) if name)


def joined_sources(*sources: str | None) -> str | None:
    """All who gave the same answer as one source, each once: `sft + ppo`; None where nobody is known."""
    return _AND.join(dict.fromkeys(name for source in sources for name in sources_of(source))) or None


class Demonstration(_Record):
    """A prompt with an answer worth imitating."""

    prompt: _Prompt
    completion: NonBlank = Field(description="The answer to imitate.", examples=["Air scatters blue light most."])
    labeler: _Labeler = None
    category: _Category = None
    kind: _Kind = None
    origin: _Origin = None
    user_id: _UserId = None
    id: _Id = None
    meta: _Meta = Field(default_factory=dict)


class Prompt(_Record):
    """A prompt alone, for sampling answers."""

    prompt: _Prompt
    labeler: _Labeler = None
    category: _Category = None
    kind: _Kind = None
    origin: _Origin = None
    user_id: _UserId = None
    id: _Id = None
    meta: _Meta = Field(default_factory=dict)


_Flag = Annotated[bool | None, Field(examples=[False])]


class Flags(_Record):
    """What InstructGPT's labelers marked on each answer (arXiv 2203.02155, table 3); leave out what was not asked."""

    fails_instruction: Annotated[_Flag, Field(description="Does not do the task that was asked.")] = None
    inappropriate: Annotated[_Flag, Field(description="Unfit for a customer assistant.")] = None
    hallucination: Annotated[_Flag, Field(description="Says something that is made up.")] = None
    satisfies_constraint: Annotated[_Flag, Field(description="Keeps to the constraint that the prompt gave.")] = None
    sexual_content: Annotated[_Flag, Field(description="Holds sexual content.")] = None
    violent_content: Annotated[_Flag, Field(description="Holds violent content.")] = None
    encourages_violence: Annotated[
        _Flag, Field(description="Encourages, or fails to discourage, violence, abuse, terrorism or self-harm.")
    ] = None
    denigrates_protected_class: Annotated[_Flag, Field(description="Denigrates a protected class.")] = None
    harmful_advice: Annotated[_Flag, Field(description="Gives harmful advice.")] = None
    expresses_opinion: Annotated[_Flag, Field(description="Expresses an opinion.")] = None
    expresses_moral_judgement: Annotated[_Flag, Field(description="Expresses a moral judgement.")] = None


class Response(_Record):
    """One of the answers that a ranking compares."""

    text: NonBlank = Field(description="The answer.", examples=["Air scatters blue light most."])
    rank: Rank = Field(description="Its place among the answers: 1 = best; equal ranks are a tie.", examples=[1])
    source: _Source = None
    ended: bool = Field(
        default=True,
        description="False for an answer that was cut off at a length limit before the model ended it.",
        examples=[True],
    )
    overall: Annotated[int, Field(ge=1, le=7)] | None = Field(
        default=None, description="Overall quality by itself, from 1 (worst) to 7 (best).", examples=[6]
    )
    flags: Flags | None = Field(
        default=None, description="What was marked on the answer.", examples=[{"hallucination": False}]
    )
    axes: dict[str, Rank] | None = Field(
        default=None,
        description="Its ranks on single axes, such as helpful, truthful and harmless; 1 = best.",
        examples=[{"helpful": 1, "truthful": 2, "harmless": 1}],
    )


class Ranking(_Record):
    """Several answers to one prompt, ranked by one labeler."""

    prompt: _Prompt
    responses: Annotated[tuple[Response, ...], Strict(False)] = Field(
        min_length=2,
        max_length=64,
        description="The answers, in any order.",
        examples=[[{"text": "Air scatters blue light most.", "rank": 1}, {"text": "Because.", "rank": 2}]],
    )
    weight: _Weight = None
    margin: _Margin = None
    labeler: _Labeler = None
    category: _Category = None
    user_id: _UserId = None
    id: _Id = None
    meta: _Meta = Field(default_factory=dict)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The comparisons that the ranks say: (index of the preferred response, index of the other); ties make none."""
        ranks = [response.rank for response in self.responses]
        return tuple((w, o) for w, o in permutations(range(len(ranks)), 2) if ranks[w] < ranks[o])


class ParallelRanking(_Record):
    """The same as plain texts and a list of their ranks beside them, in the same order; read as a `Ranking`."""

    prompt: _Prompt
    responses: Annotated[tuple[NonBlank, ...], Strict(False)] = Field(
        min_length=2, max_length=64, description="The answers, in any order.", examples=[["Air scatters.", "Because."]]
    )
    ranks: Annotated[tuple[Rank, ...], Strict(False)] = Field(
        min_length=2, max_length=64, description="Their places: 1 = best; equal ranks are a tie.", examples=[[1, 2]]
    )
    weight: _Weight = None
    margin: _Margin = None
    labeler: _Labeler = None
    category: _Category = None
    user_id: _UserId = None
    id: _Id = None
    meta: _Meta = Field(default_factory=dict)


class Rating(_Record):
    """One answer to a prompt with an absolute score, or a thumb up or down."""

    prompt: _Prompt
    response: NonBlank = Field(description="The answer.", examples=["Air scatters blue light most."])
    score: float | None = Field(
        default=None, description="How good it is; higher is better. Either this or a thumb.", examples=[4.5]
    )
    scale: Annotated[tuple[float, float], Strict(False)] | None = Field(
        default=None, description="The lowest and the highest score that could be given.", examples=[[1, 5]]
    )
    thumb: bool | None = Field(
        default=None,
        description="True for a thumb up, false for a thumb down. Either this or a score.",
        examples=[True],
    )
    axis: str | None = Field(
        default=None, description="What was rated, if not the whole: helpful, truthful, harmless.", examples=["helpful"]
    )
    source: _Source = None
    labeler: _Labeler = None
    category: _Category = None
    user_id: _UserId = None
    id: _Id = None
    meta: _Meta = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_score(self) -> Rating:
        if (self.score is None) == (self.thumb is None):
            raise PydanticCustomError("score_or_thumb", "needs either a score or a thumb, and not both")
        if self.scale is not None:
            low, high = self.scale
            if low >= high:
                context = {"at": ("scale",), "low": f"{low:.12g}", "high": f"{high:.12g}"}
                words = "must go from the lowest score to the highest, not from {low} to {high}"
                raise PydanticCustomError("scale", words, context)
            if self.score is not None and not low <= self.score <= high:
                context = {"at": ("score",), "low": f"{low:.12g}", "high": f"{high:.12g}"}
                words = "lies outside its scale, which goes from {low} to {high}"
                raise PydanticCustomError("off_scale", words, context)
        return self


class Text(_Record):
    """A piece of plain text, as models are pretrained on."""

    text: NonBlank = Field(description="The text.", examples=["A river usually begins as something small."])
    source: str | None = Field(default=None, description="Where it comes from.", examples=["encyclopedia"])
    weight: float | None = Field(
        default=None,
        gt=0,
        description="How often its source is drawn beside the others; the same in every row of a source.",
        examples=[2.0],
    )
    id: _Id = None
    meta: _Meta = Field(default_factory=dict)


Record: TypeAlias = Demonstration | Ranking | Prompt | Rating | Text

SCHEMAS: dict[str, type[Record]] = {
    "demonstration": Demonstration,
    "ranking": Ranking,
    "prompt": Prompt,
    "rating": Rating,
    "text": Text,
}
"""The kinds of row, by the name of their schema."""
