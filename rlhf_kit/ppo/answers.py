"""Sampled answers as rewards see them: tokens for models on the policy's own vocabulary, texts for all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_kit.batches import Sequences
from rlhf_kit.data import one_line
from rlhf_kit.ppo.prompts import PromptRow, last_turn
from rlhf_kit.rollout import Drawn


@dataclass(frozen=True)
class Answers:
    """B sampled answers.

    Attributes:
        rows: the prompt of each.
        sequences: prompts and responses as one padded batch.
        completion_ids: the tokens of each response, EOS included.
        texts: of the responses, without special tokens.
        ended: (B,) bool, whether a response ended by itself.
        sampled: (B, R) the log-probabilities by which an engine outside the trainer drew the tokens; None where the
            trainer drew them itself.
    """

    rows: Sequence[PromptRow]
    sequences: Sequences
    completion_ids: list[list[int]]
    texts: list[str]
    ended: Tensor
    sampled: Tensor | None = None

    @classmethod
    def of(
        cls,
        rows: Sequence[PromptRow],
        drawn: Sequence[Drawn],
        ended: Tensor,
        sequences: Sequences,
        tokenizer: PreTrainedTokenizerBase,
    ) -> Answers:
        """With the texts that the tokenizer makes of the responses."""
        responses = [list(one.ids) for one in drawn]
        texts = [str(tokenizer.decode(response, skip_special_tokens=True)) for response in responses]
        sampled = None
        if drawn[0].log_probs:
            sampled = torch.zeros(sequences.responses.shape)
            for row, one in enumerate(drawn):
                sampled[row, : len(one.ids)] = torch.tensor(one.log_probs)
            sampled = sampled.to(sequences.input_ids.device)
        return cls(rows, sequences, responses, texts, ended, sampled)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, places: Tensor) -> Answers:
        """The answers at some places (a 1-D index tensor), still padded as the whole is."""
        chosen = places.tolist()
        return Answers(
            [self.rows[place] for place in chosen],
            self.sequences.select(places),
            [self.completion_ids[place] for place in chosen],
            [self.texts[place] for place in chosen],
            self.ended[places],
            None if self.sampled is None else self.sampled[places],
        )

    @property
    def completions(self) -> list[Any]:
        """As TRL hands them to reward functions: a text for a text, one assistant turn for a conversation."""
        return [
            text if isinstance(row.shown, str) else [{"role": "assistant", "content": text}]
            for row, text in zip(self.rows, self.texts, strict=True)
        ]

    @property
    def columns(self) -> dict[str, list[Any]]:
        """The other columns of the prompts' rows; None where a row lacks one."""
        names = dict.fromkeys(name for row in self.rows for name in row.columns)
        return {name: [row.columns.get(name) for row in self.rows] for name in names}

    def name(self, place: int) -> str:
        """An answer in a message: its place, its beginning and that of its prompt."""
        said, asked = one_line(self.texts[place]), one_line(last_turn(self.rows[place].shown))
        return f"sample {place + 1} of {len(self)}, {said!r} to the prompt {asked!r}"
