"""From records to token ids: the one place where text becomes numbers, so that every stage sees the same ones.

A prompt is rendered with the model's chat template (or taken as it is where the model has none). A response is
tokenised by itself and ends with EOS: exactly what the model can produce after the prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_kit.batches import RankedBatch, Sequences
from rlhf_kit.errors import DataError, Problem
from rlhf_kit.records import Conversation, Demonstration, Message, Prompt, Ranking

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankedIds:
    """One prompt with its K ranked responses, as token ids."""

    prompt: list[int]
    responses: list[list[int]]
    ranks: list[int]


class Encoder:
    """Tokenises prompts and responses by one rule, and counts what it had to cut.

    Args:
        tokenizer: with a pad token that is not EOS.
        max_prompt_length: tokens; a longer conversation loses its oldest whole turns (never a system message), and
            only if its last turn alone is still too long, the oldest tokens of the rendered text.
        max_length: tokens of prompt and response together; a response that goes beyond loses its end, and with it EOS.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_prompt_length: int, max_length: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.max_prompt_length = max_prompt_length
        self.max_length = max_length
        self.shortened_prompts = 0
        self.cut_responses = 0

    def prompt(self, prompt: Conversation) -> list[int]:
        """Token ids of a prompt, the generation prompt of the chat template included."""
        turns = (Message(role="user", content=prompt),) if isinstance(prompt, str) else tuple(prompt)
        ids = self._render(prompt, turns)
        if len(ids) <= self.max_prompt_length:
            return ids
        self.shortened_prompts += 1
        system = turns[:1] if turns[0].role == "system" else ()
        rest = turns[len(system) :]
        while len(rest) > 1 and len(ids) > self.max_prompt_length:
            # Turns go in pairs, so that the conversation still begins with the user.
            rest = rest[2:] if len(rest) > 2 else rest[-1:]
            ids = self._render(prompt, (*system, *rest))
        return ids[-self.max_prompt_length :]

    def _render(self, prompt: Conversation, turns: Sequence[Message]) -> list[int]:
        if self.tokenizer.chat_template is None:
            text = prompt if isinstance(prompt, str) else "\n\n".join(turn.content for turn in turns)
            return list(self.tokenizer(text)["input_ids"])
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def response(self, text: str, prompt_length: int, *, ended: bool = True) -> list[int]:
        """Token ids of a response, with EOS at its end unless it was cut off before it ended."""
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if ended:
            ids.append(self.tokenizer.eos_token_id)
        room = len(ids) if self.max_length is None else self.max_length - prompt_length
        if len(ids) > room:
            self.cut_responses += 1
        return ids[: max(room, 1)]

    def text(self, ids: Sequence[int]) -> str:
        """The text of response tokens, without EOS and padding."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def demonstration(self, record: Demonstration) -> dict[str, list[int]]:
        """`input_ids` and `labels` (-100 on the prompt) as TRL's SFTTrainer takes them."""
        prompt = self.prompt(record.prompt)
        response = self.response(record.completion, len(prompt))
        return {"input_ids": prompt + response, "labels": [-100] * len(prompt) + response}

    def ranking(self, record: Ranking) -> RankedIds:
        """A ranking's prompt once and its responses."""
        prompt = self.prompt(record.prompt)
        texts = [self.response(r.text, len(prompt), ended=r.ended) for r in record.responses]
        return RankedIds(prompt, texts, [r.rank for r in record.responses])

    def report(self, what: str) -> None:
        """Says what was cut, if anything was."""
        if self.shortened_prompts:
            log.warning(
                "%s: %d prompts were longer than %d tokens and lost their oldest turns",
                what,
                self.shortened_prompts,
                self.max_prompt_length,
            )
        if self.cut_responses:
            log.warning(
                "%s: %d responses went beyond %s tokens and lost their end", what, self.cut_responses, self.max_length
            )


@dataclass(frozen=True)
class RankedCollator:
    """Makes a `RankedBatch` of ranked prompts; a `data_collator` for transformers' Trainer."""

    pad_token_id: int

    def __call__(self, items: Sequence[RankedIds]) -> dict[str, RankedBatch]:
        """One row a response."""
        prompts = [item.prompt for item in items for _ in item.responses]
        responses = [response for item in items for response in item.responses]
        group = torch.tensor([g for g, item in enumerate(items) for _ in item.responses])
        rank = torch.tensor([r for item in items for r in item.ranks])
        return {"batch": RankedBatch(Sequences.collate(prompts, responses, self.pad_token_id), group, rank)}


def split_by_prompt(records: Sequence[Ranking], fraction: float, seed: int) -> tuple[list[Ranking], list[Ranking]]:
    """Training and held-out rankings; all rankings of one prompt fall on the same side.

    Raises:
        DataError: there are too few prompts for both sides.
    """
    prompts = sorted({_name_of(r.prompt) for r in records})
    held_count = round(fraction * len(prompts))
    if held_count == 0:
        return list(records), []
    if held_count >= len(prompts):
        raise DataError(
            [Problem("data.rankings", "", f"{len(prompts)} prompts are too few to hold out {fraction:.0%} of them")]
        )
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    held = {prompts[i] for i in order[:held_count]}
    names = [_name_of(r.prompt) for r in records]
    training = [r for r, name in zip(records, names, strict=True) if name not in held]
    return training, [r for r, name in zip(records, names, strict=True) if name in held]


def _name_of(prompt: Conversation) -> str:
    """The same for a text and for a conversation of that one user turn: the model reads the same tokens."""
    if isinstance(prompt, str):
        return prompt
    return prompt[0].content if len(prompt) == 1 else str(prompt)


def prompt_texts(prompts: Sequence[Prompt]) -> list[str]:
    """Each prompt as one string: for pages, rubrics and logs."""
    return [
        p.prompt if isinstance(p.prompt, str) else "\n".join(f"{m.role}: {m.content}" for m in p.prompt)
        for p in prompts
    ]
