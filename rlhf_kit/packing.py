"""The responses to a prompt behind one copy of it: each sees the prompt and itself only.

A row holds a prompt, then all its responses one after another, then perhaps the next prompt with its own. A mask of
(T, T) a row keeps them apart, and positions start again behind the prompt for each response, so that every response
gets the hidden states that it would get alone, and the prompt goes through the model once instead of K times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_kit.batches import Sequences, expect

Ids = Sequence[int]


@dataclass(frozen=True)
class PackedRows:
    """Prompts with all their responses, packed.

    Attributes:
        input_ids: (B, T) token ids, padded on the right.
        position_ids: (B, T); those of a response go on from its prompt.
        prompt_of: (B, T) the number of the prompt that a token belongs to, from 1; 0 is padding.
        response_of: (B, T) the number of the response within its prompt, from 1; 0 is the prompt itself, or padding.
        rows: (N,) the row of each response, in the order in which prompts and responses were given.
        columns: (N,) the column of its last token, where a reward model reads its score.
    """

    input_ids: Tensor
    position_ids: Tensor
    prompt_of: Tensor
    response_of: Tensor
    rows: Tensor
    columns: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.input_ids.shape)
        for name in ("position_ids", "prompt_of", "response_of"):
            expect(name, getattr(self, name), shape, torch.long)
        expect("columns", self.columns, tuple(self.rows.shape), torch.long)

    @classmethod
    def collate(cls, prompts: Sequence[Ids], responses: Sequence[Sequence[Ids]], pad: int) -> PackedRows:
        """Packs prompts, each with its responses, into rows as wide as the longest of them; no prompt is split.

        Raises:
            ValueError: a response has no token, so that there is nothing to read its score at.
        """
        if any(not response for said in responses for response in said):
            raise ValueError("a response without a token cannot be packed; give it at least EOS")
        lengths = [len(prompt) + sum(map(len, said)) for prompt, said in zip(prompts, responses, strict=True)]
        rows = _fit(lengths)
        shape = (len(rows), max(lengths))
        ids = torch.full(shape, pad, dtype=torch.long)
        positions, prompt_of, response_of = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        ends: dict[tuple[int, int], tuple[int, int]] = {}
        for row, items in enumerate(rows):
            column = 0
            for item in items:
                for number, part in enumerate((prompts[item], *responses[item])):
                    end = column + len(part)
                    first = len(prompts[item]) if number else 0
                    ids[row, column:end] = torch.tensor(part, dtype=torch.long)
                    positions[row, column:end] = torch.arange(first, first + len(part))
                    prompt_of[row, column:end] = item + 1
                    response_of[row, column:end] = number
                    column = end
                    if number:
                        ends[item, number] = (row, column - 1)
        places = torch.tensor([ends[key] for key in sorted(ends)], dtype=torch.long)
        return cls(ids, positions, prompt_of, response_of, places[:, 0], places[:, 1])

    @property
    def attention_mask(self) -> Tensor:
        """(B, T, T) bool: whether the token of a row sees the token of a column."""
        same_prompt = self.prompt_of[:, :, None] == self.prompt_of[:, None, :]
        own = self.response_of[:, :, None] == self.response_of[:, None, :]
        shared = self.response_of[:, None, :] == 0
        return (same_prompt & (own | shared)).tril()

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Rows and columns, (N,) each, of the last tokens of the responses."""
        return self.rows, self.columns

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int((self.prompt_of > 0).sum())

    def to(self, device: torch.device | str) -> PackedRows:
        """The same rows on another device."""
        return PackedRows(*(value.to(device) for value in vars(self).values()))


def _fit(lengths: Sequence[int]) -> list[list[int]]:
    """Which items share a row: the longest first, each into the first row that has room (first-fit decreasing).

    No row is longer than the longest item: attention costs the square of a row, and a wider row would only move
    padding from the end of rows into the mask.
    """
    width = max(lengths)
    rows: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        found = next((row for row, free in enumerate(room) if free >= lengths[item]), None)
        if found is None:
            rows.append([])
            room.append(width)
            found = len(rows) - 1
        rows[found].append(item)
        room[found] -= lengths[item]
    return rows


@dataclass(frozen=True)
class RankedBatch:
    """All responses of some prompts with what people said of them, each response once.

    Attributes:
        responses: N responses with their prompts, one a row or packed.
        group: (N,) the number of the prompt that a response belongs to.
        rank: (N, A) on each axis, 1 = best, equal = tie; 0 where it was not ranked.
        ranked: (N, A) bool.
        rating: (N, A) float32 between 0 and 1, the share of the way from the lowest rating to the highest.
        rated: (N, A) bool.
        weight: (N,) float32, what the prompt of a response counts.
        margin: (N,) float32, the margin that was given with its ranking; 0 where none was.
        names: of the records, for messages.
    """

    responses: Sequences | PackedRows
    group: Tensor
    rank: Tensor
    ranked: Tensor
    rating: Tensor
    rated: Tensor
    weight: Tensor
    margin: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        count, axes = self.responses.ends[0].numel(), self.rank.size(-1)
        expect("group", self.group, (count,), torch.long)
        expect("rank", self.rank, (count, axes), torch.long)
        expect("ranked", self.ranked, (count, axes), torch.bool)
        expect("rating", self.rating, (count, axes), torch.float32)
        expect("rated", self.rated, (count, axes), torch.bool)
        expect("weight", self.weight, (count,), torch.float32)
        expect("margin", self.margin, (count,), torch.float32)

    def to(self, device: torch.device | str) -> RankedBatch:
        """The same batch on another device."""
        moved = {name: value if name == "names" else value.to(device) for name, value in vars(self).items()}
        return RankedBatch(**moved)
