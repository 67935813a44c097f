"""Pretraining text beside PPO (PPO-ptx, arXiv 2203.02155, section 3.4): the language model loss that keeps the policy
able to do what pretraining taught it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_kit.batches import expect
from rlhf_kit.errors import DataError, Problem
from rlhf_kit.models import Backbone

_IGNORED = -100


@dataclass(frozen=True)
class TextBatch:
    """Texts, padded on the right.

    Attributes:
        input_ids: (B, T).
        attention_mask: (B, T) bool.
        learned: (B, T) bool, the tokens whose loss counts; never the first.
    """

    input_ids: Tensor
    attention_mask: Tensor
    learned: Tensor

    def __post_init__(self) -> None:
        for name in ("attention_mask", "learned"):
            expect(name, getattr(self, name), tuple(self.input_ids.shape), torch.bool)

    def to(self, device: torch.device | str) -> TextBatch:
        """The same batch on another device."""
        return TextBatch(self.input_ids.to(device), self.attention_mask.to(device), self.learned.to(device))


class PretrainingText:
    """Texts as token ids, in a new order each time they have all been used.

    Args:
        items: `input_ids`, and perhaps `labels` with -100 on what is not learned, as TRL's SFT takes them.
        batch_size: texts beside a mini-batch.
        seed: of the order.

    Raises:
        DataError: no text has two tokens.
    """

    def __init__(self, items: Sequence[Mapping[str, list[int]]], batch_size: int, pad: int, seed: int) -> None:
        self.items = [item for item in items if _learned(item)]
        if not self.items:
            raise DataError([Problem("ptx_dataset", "", "holds no text of two tokens; ptx_coef needs some")])
        self.batch_size, self.pad, self.seed = batch_size, pad, seed

    def batches(self, number: int, micro: int) -> Iterator[tuple[TextBatch, float]]:
        """The texts of a mini-batch in parts of at most `micro`, each with the inverse of the number of learned tokens
        of all; depends on the number alone."""
        count, chosen = len(self.items), []
        for position in range(number * self.batch_size, (number + 1) * self.batch_size):
            order = torch.Generator().manual_seed(self.seed * 6_007 + position // count)
            chosen.append(self.items[int(torch.randperm(count, generator=order)[position % count])])
        chosen.sort(key=lambda item: len(item["input_ids"]))
        share = 1.0 / sum(map(_learned, chosen))
        for start in range(0, len(chosen), micro):
            yield collate(chosen[start : start + micro], self.pad), share

    @staticmethod
    def loss(backbone: Backbone, batch: TextBatch) -> Tensor:
        """The sum of -log p over the learned tokens, in nats, float32."""
        hidden = backbone(batch.input_ids, batch.attention_mask)[:, :-1]
        targets, learned = batch.input_ids[:, 1:], batch.learned[:, 1:]
        log_probs, _ = backbone.log_probs(hidden[learned][None], targets[learned][None])
        return -log_probs.sum()


def collate(items: Sequence[Mapping[str, list[int]]], pad: int) -> TextBatch:
    """Texts padded on the right."""
    width = max(len(item["input_ids"]) for item in items)
    ids = torch.full((len(items), width), pad, dtype=torch.long)
    mask, learned = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, item in enumerate(items):
        tokens = item["input_ids"]
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, : len(tokens)] = True
        labels = torch.tensor(item.get("labels", tokens), dtype=torch.long)
        learned[row, : len(tokens)] = labels != _IGNORED
    learned[:, 0] = False
    return TextBatch(ids, mask, learned)


def _learned(item: Mapping[str, list[int]]) -> int:
    labels = item.get("labels", item["input_ids"])
    return sum(label != _IGNORED for label in labels[1:])


def tokenised(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[dict[str, list[int]]]:
    """Rows of `input_ids`, of `text`, or of `prompt` and `completion` (texts or turns, as TRL's SFT takes them; only
    the completion is learned), cut at `max_length` tokens.

    Raises:
        DataError: rows of another shape, all of them.
    """
    found, problems = [], []
    for number, row in enumerate(rows, 1):
        try:
            item = _tokenised(row, tokenizer)
        except (KeyError, TypeError) as failure:
            words = f"needs input_ids, text, or prompt and completion ({failure}); it has {', '.join(row)}"
            problems.append(Problem(f"ptx_dataset#{number}", "", words))
            continue
        found.append({name: values[:max_length] for name, values in item.items()})
    if problems:
        raise DataError(problems)
    return found


def _tokenised(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    if "input_ids" in row:
        return {name: list(row[name]) for name in ("input_ids", "labels") if name in row}
    if "text" in row:
        return {"input_ids": [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]}
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        before = list(tokenizer(prompt)["input_ids"])
        after = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    else:
        rendered = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        before = list(tokenizer(rendered, add_special_tokens=False)["input_ids"])
        words = completion[-1]["content"]
        after = [*tokenizer(words, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": before + after, "labels": [_IGNORED] * len(before) + after}


@torch.no_grad()
def mean_loss(backbone: Backbone, items: Sequence[Mapping[str, list[int]]], pad: int, batch_size: int = 8) -> float:
    """Nats a learned token of some texts under the active role; what PPO-ptx is to keep low. NaN without a text."""
    total, count = 0.0, sum(map(_learned, items))
    kept = sorted((item for item in items if _learned(item)), key=lambda item: len(item["input_ids"]))
    for start in range(0, len(kept), batch_size):
        batch = collate(kept[start : start + batch_size], pad).to(backbone.device)
        total += float(PretrainingText.loss(backbone, batch))
    return total / count if count else math.nan
