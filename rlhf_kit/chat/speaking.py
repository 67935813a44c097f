"""One policy in a conversation: what fits into its context, and how it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from unicodedata import category

import torch
from jinja2 import TemplateError

from rlhf_kit.data import Encoder
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.models import Backbone
from rlhf_kit.records import Message
from rlhf_kit.rewards import autocast
from rlhf_kit.rollout import beam_search, sample

__all__ = ["Answer", "Manner", "Speaker", "printable"]


@dataclass(frozen=True)
class Manner:
    """How an answer is drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: draws from the likeliest tokens that make up this share; 1 is all.
        top_k: draws from the likeliest tokens only; 0 is all.
        beams: of beam search, which draws nothing; 1 is none.
        max_new_tokens: where an answer is cut off.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    beams: int = 1
    max_new_tokens: int = 256

    def __str__(self) -> str:
        if self.beams > 1:
            how = f"beam search with {self.beams} beams"
        elif self.temperature == 0:
            how = "greedy"
        else:
            how = f"temperature {self.temperature:g}"
            how += f", top-p {self.top_p:g}" if self.top_p < 1 else ""
            how += f", top-k {self.top_k}" if self.top_k else ""
        return f"{how}, at most {self.max_new_tokens} tokens"


@dataclass(frozen=True)
class Answer:
    """What a policy said.

    Attributes:
        ended: whether it ended by itself.
        dropped: turns of the conversation that no longer fitted into its context.
    """

    text: str
    ended: bool
    dropped: int = 0

    @property
    def is_kept(self) -> bool:
        """Not an empty one: no conversation could go on from it."""
        return bool(self.text.strip())


@dataclass
class Speaker:
    """One policy with its conversation so far.

    Attributes:
        name: for people.
        role: the adapter in the backbone; None is the base.
        turns: all of them, also those that no longer fit into the context.
    """

    name: str
    role: str | None
    backbone: Backbone
    turns: list[Message] = field(default_factory=list)

    def reply(
        self,
        text: str,
        manner: Manner,
        *,
        generator: torch.Generator | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answers the next turn of the user; an answer that `is_kept` is then part of the conversation, with it.

        Args:
            on_text: is called with each piece of the answer as it comes; with beam search nothing comes before the end.

        Raises:
            RlhfKitError: the turn alone does not fit into the model's context, or the chat template refuses the
                conversation; nothing has changed.
        """
        question = Message(role="user", content=text)
        prompt, dropped = self._fitting((*self.turns, question), manner.max_new_tokens)
        stream = TextStream(self.backbone, on_text or (lambda piece: None))
        with self.backbone.role(self.role), autocast(self.backbone):
            if manner.beams > 1:
                ids = beam_search(self.backbone, prompt, beams=manner.beams, max_new_tokens=manner.max_new_tokens)
            else:
                (ids,) = sample(
                    self.backbone,
                    [prompt],
                    max_new_tokens=manner.max_new_tokens,
                    temperature=manner.temperature,
                    top_k=manner.top_k,
                    top_p=manner.top_p,
                    generator=generator,
                    on_token=stream.feed if on_text else None,
                )
        answer = Answer(stream.end(ids), ids[-1] == self.backbone.tokenizer.eos_token_id, dropped)
        if answer.is_kept:
            self.turns += [question, Message(role="assistant", content=answer.text)]
        return answer

    def _fitting(self, turns: Sequence[Message], answer: int) -> tuple[list[int], int]:
        """Token ids of the conversation without its oldest turns, as far as they must go, and how many have gone.

        Turns go whole and in pairs, so that it still begins with the user; a system message stays.
        """
        context = self.backbone.context_length
        encoder = Encoder(self.backbone.tokenizer, max_prompt_length=1 << 40)  # nothing is cut without a word
        system = tuple(turns[:1]) if turns[0].role == "system" else ()
        rest, dropped = tuple(turns[len(system) :]), 0
        while True:
            try:
                ids = encoder.prompt((*system, *rest))
            except TemplateError as failure:
                advice = "; /system without a text leaves the instructions out" if system else ""
                raise RlhfKitError(f"the chat template refuses this conversation: {failure}{advice}") from failure
            if len(ids) + answer <= context:
                return ids, dropped
            if len(rest) == 1:
                words = f"{len(ids)} tokens and an answer of {answer} do not fit into the context of {context}"
                raise RlhfKitError(f"{words}: shorten what you ask, or take fewer with /max-new-tokens")
            rest, dropped = rest[2:], dropped + 2


class TextStream:
    """Hands on the text of tokens as they come; a character of several tokens waits until it is whole."""

    def __init__(self, backbone: Backbone, on_text: Callable[[str], None]) -> None:
        self.encoder = Encoder(backbone.tokenizer, max_prompt_length=1)
        self.on_text = on_text
        self.ids: list[int] = []
        self.shown = ""
        """What has been handed on."""

    def feed(self, token: int) -> None:
        """One more token."""
        self.ids.append(token)
        text = printable(self.encoder.text(self.ids))
        if not text.endswith("\ufffd"):
            self._show(text)

    def end(self, ids: Sequence[int]) -> str:
        """All tokens: hands on what still waits, and returns the whole text."""
        text = printable(self.encoder.text(ids))
        if not text.startswith(self.shown):  # a tokenizer that tidies spaces up has changed its mind
            self.on_text("\n")
            self.shown = ""
        self._show(text)
        return text

    def _show(self, text: str) -> None:
        if text.startswith(self.shown) and text != self.shown:
            self.on_text(text[len(self.shown) :])
            self.shown = text


_STEERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Embeddings, overrides and isolates of the writing direction, which show a line in another order than it has."""


def printable(text: str) -> str:
    """Without what would steer the terminal; spaces, joiners and marks of all scripts stay, because they are text."""
    return "".join(c for c in text if c in "\n\t" or not (category(c) in ("Cc", "Cs") or c in _STEERING))
