"""From records to token ids: the one place where text becomes numbers, so that every stage sees the same ones.

A prompt is rendered with the model's chat template (or taken as it is where the model has none). A response is
tokenised by itself and ends with EOS: exactly what the model can produce after the prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_kit.batches import Sequences
from rlhf_kit.errors import DataError, Problem
from rlhf_kit.packing import PackedRows, RankedBatch
from rlhf_kit.records import Conversation, Demonstration, Message, Prompt, Ranking, Rating, prompt_name

log = logging.getLogger(__name__)

_MOST_RESPONSES = 64


WHOLE = "overall"
"""The axis of a response's rank as a whole."""


@dataclass(frozen=True)
class RankedIds:
    """One prompt with its K responses, as token ids, and what was said of them.

    Attributes:
        ranks: 1 = best, equal = tie; empty where the responses were not ranked.
        axes: ranks on single axes, a list of K each; None where a response has none.
        ratings: on each axis, from 0 (the lowest that could be given) to 1; None where a response has none.
        weight: what the prompt counts beside the others.
        margin: what the scores of a pair should differ by at least.
        name: of the record, for messages.
    """

    prompt: list[int]
    responses: list[list[int]]
    ranks: list[int]
    axes: dict[str, list[int | None]] = field(default_factory=dict)
    ratings: dict[str, list[float | None]] = field(default_factory=dict)
    weight: float = 1.0
    margin: float = 0.0
    name: str = ""

    def ranks_on(self, axis: str) -> list[int | None]:
        """The ranks of one axis, a list of K."""
        if axis == WHOLE and self.ranks:
            return list(self.ranks)
        return self.axes.get(axis) or [None] * len(self.responses)


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

    def prompt(self, prompt: Conversation, *, room: int | None = None) -> list[int]:
        """Token ids of a prompt, the generation prompt of the chat template included.

        Args:
            room: the most tokens that it may have, where that is less than `max_prompt_length`.
        """
        limit = self.max_prompt_length if room is None else min(self.max_prompt_length, room)
        turns = (Message(role="user", content=prompt),) if isinstance(prompt, str) else tuple(prompt)
        ids = self._render(prompt, turns)
        if len(ids) <= limit:
            return ids
        self.shortened_prompts += 1
        system = turns[:1] if turns[0].role == "system" else ()
        rest = turns[len(system) :]
        while len(rest) > 1 and len(ids) > limit:
            # Turns go in pairs, so that the conversation still begins with the user.
            rest = rest[2:] if len(rest) > 2 else rest[-1:]
            ids = self._render(prompt, (*system, *rest))
        return ids[-limit:]

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

    def _room(self, texts: Sequence[str]) -> int | None:
        """What the longest of these responses leaves for the prompt; at least half of all there is."""
        if self.max_length is None:
            return None
        if self.max_length >= 2 * self.max_prompt_length:
            return None  # half is more than any prompt has
        longest = max(len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts) + 1
        return self.max_length - min(longest, self.max_length // 2)

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
        prompt = self.prompt(record.prompt, room=self._room([r.text for r in record.responses]))
        texts = [self.response(r.text, len(prompt), ended=r.ended) for r in record.responses]
        names = sorted({axis for response in record.responses for axis in response.axes or {}})
        return RankedIds(
            prompt,
            texts,
            [r.rank for r in record.responses],
            axes={axis: [(r.axes or {}).get(axis) for r in record.responses] for axis in names},
            weight=1.0 if record.weight is None else record.weight,
            margin=record.margin or 0.0,
            name=beginning(record.prompt),
        )

    def ratings(self, records: Sequence[Rating], values: Sequence[float]) -> RankedIds:
        """Rated answers to one prompt, `values` between 0 and 1."""
        prompt = self.prompt(records[0].prompt, room=self._room([r.response for r in records]))
        responses = [self.response(record.response, len(prompt)) for record in records]
        on: dict[str, list[float | None]] = {}
        for place, (record, value) in enumerate(zip(records, values, strict=True)):
            on.setdefault(record.axis or WHOLE, [None] * len(records))[place] = value
        return RankedIds(prompt, responses, [], ratings=on, name=beginning(records[0].prompt))

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
    """Makes a `RankedBatch` of ranked prompts; a `data_collator` for transformers' Trainer.

    Args:
        pad_token_id: of the tokenizer.
        axes: the outputs of the head, in their order.
        packed: the responses to a prompt behind one copy of it; else one row a response.
    """

    pad_token_id: int
    axes: tuple[str, ...] = (WHOLE,)
    packed: bool = True

    def __call__(self, items: Sequence[RankedIds]) -> dict[str, RankedBatch]:
        """One batch of whole prompts: the comparisons of a prompt never stand in two batches."""
        each = [item for item in items for _ in item.responses]
        rank = [list(column) for item in items for column in zip(*map(item.ranks_on, self.axes), strict=True)]
        rating = [list(column) for item in items for column in zip(*self._ratings(item), strict=True)]
        batch = RankedBatch(
            responses=self.rows(items),
            group=torch.tensor([g for g, item in enumerate(items) for _ in item.responses]),
            rank=torch.tensor([[value or 0 for value in row] for row in rank]),
            ranked=torch.tensor([[value is not None for value in row] for row in rank]),
            rating=torch.tensor([[value or 0.0 for value in row] for row in rating], dtype=torch.float32),
            rated=torch.tensor([[value is not None for value in row] for row in rating]),
            weight=torch.tensor([item.weight for item in each], dtype=torch.float32),
            margin=torch.tensor([item.margin for item in each], dtype=torch.float32),
            names=tuple(item.name for item in items),
        )
        return {"batch": batch}

    def rows(self, items: Sequence[RankedIds]) -> Sequences | PackedRows:
        """The responses of the items with their prompts, as this collator lays them out."""
        if self.packed:
            return PackedRows.collate(
                [item.prompt for item in items], [item.responses for item in items], self.pad_token_id
            )
        prompts = [item.prompt for item in items for _ in item.responses]
        return Sequences.collate(prompts, [r for item in items for r in item.responses], self.pad_token_id)

    def _ratings(self, item: RankedIds) -> list[list[float | None]]:
        return [item.ratings.get(axis) or [None] * len(item.responses) for axis in self.axes]


def rated_items(encoder: Encoder, records: Sequence[Rating]) -> list[RankedIds]:
    """Rated answers, those to one prompt together, as many as a ranking may hold.

    Raises:
        DataError: scores without a scale that are all the same, so that nothing says what is high.
    """
    shares = rating_shares(records)
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault(str(prompt_name(record.prompt)), []).append(i)
    parts = [
        group[at : at + _MOST_RESPONSES] for group in groups.values() for at in range(0, len(group), _MOST_RESPONSES)
    ]
    return [encoder.ratings([records[i] for i in part], [shares[i] for i in part]) for part in parts]


def rating_shares(records: Sequence[Rating]) -> list[float]:
    """Each rating as the share of the way from the lowest that could be given (0) to the highest (1); a thumb is 0
    or 1. Without a scale, lowest and highest are those of the same axis in the data.

    Raises:
        DataError: as `rated_items`.
    """
    free: dict[str | None, list[float]] = {}
    for record in records:
        if record.score is not None and record.scale is None:
            free.setdefault(record.axis, []).append(record.score)
    if flat := [axis for axis, scores in free.items() if min(scores) == max(scores)]:
        where = ", ".join(axis or "the whole" for axis in flat)
        raise DataError(
            [
                Problem(
                    "data.ratings",
                    "scale",
                    f"missing, and all scores of {where} are equal; give the lowest and the highest",
                )
            ]
        )
    shares = []
    for record in records:
        if record.score is None:
            shares.append(float(bool(record.thumb)))
            continue
        low, high = record.scale or (min(free[record.axis]), max(free[record.axis]))
        shares.append((record.score - low) / (high - low))
    return shares


def split_by_prompt(records: Sequence[Ranking], fraction: float, seed: int) -> tuple[list[Ranking], list[Ranking]]:
    """Training and held-out rankings; all rankings of one prompt fall on the same side.

    Raises:
        DataError: there are too few prompts for both sides.
    """
    prompts = sorted({str(prompt_name(r.prompt)) for r in records})
    held_count = round(fraction * len(prompts))
    if held_count == 0:
        return list(records), []
    if held_count >= len(prompts):
        raise DataError(
            [Problem("data.rankings", "", f"{len(prompts)} prompts are too few to hold out {fraction:.0%} of them")]
        )
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    held = {prompts[i] for i in order[:held_count]}
    names = [str(prompt_name(r.prompt)) for r in records]
    training = [r for r, name in zip(records, names, strict=True) if name not in held]
    return training, [r for r, name in zip(records, names, strict=True) if name in held]


def prompt_texts(prompts: Sequence[Prompt]) -> list[str]:
    """Each prompt as one string: for pages, rubrics and logs."""
    return [
        p.prompt if isinstance(p.prompt, str) else "\n".join(f"{m.role}: {m.content}" for m in p.prompt)
        for p in prompts
    ]


def columns_of(record: Prompt) -> dict[str, Any]:
    """What functions are told of a prompt beside it: its other fields by their names, and what stands in `meta`."""
    return {**(record.meta or {}), **record.model_dump(exclude={"prompt", "meta"}, exclude_none=True)}


def beginning(prompt: Conversation) -> str:
    """The first words of a prompt's last turn on one line, for messages."""
    return one_line(prompt if isinstance(prompt, str) else prompt[-1].content)


def one_line(text: str, most: int = 60) -> str:
    """A text as a part of a message: on one line, cut at so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."
