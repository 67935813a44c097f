"""Pretraining text beside PPO (PPO-ptx, arXiv 2203.02155, section 3.4): the language model loss that keeps the policy
able to do what pretraining taught it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_kit import launch
from rlhf_kit.batches import expect
from rlhf_kit.errors import DataError, Problem
from rlhf_kit.models import Backbone
from rlhf_kit.ppo.prompts import reshuffled

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
        weights: how often each is drawn beside the others; where they are left out, all come equally often.

    Raises:
        DataError: no text has two tokens.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, list[int]]],
        batch_size: int,
        pad: int,
        seed: int,
        weights: Sequence[float] | None = None,
    ) -> None:
        usable = [place for place, item in enumerate(items) if _learned(item)]
        self.items = [items[place] for place in usable]
        if not self.items:
            raise DataError([Problem("ptx_dataset", "", "holds no text of two tokens; ptx_coef needs some")])
        self.weights = None if weights is None else torch.tensor([weights[place] for place in usable])
        self.batch_size, self.pad, self.seed = batch_size, pad, seed

    def batches(self, number: int, micro: int) -> Iterator[tuple[TextBatch, float]]:
        """The texts of a mini-batch in parts of at most `micro`, each with the inverse of the number of learned tokens
        of all; depends on the number alone. Of several processes each has its share of the texts."""
        chosen = [self.items[place] for place in self._places(number)]
        chosen.sort(key=lambda item: len(item["input_ids"]))
        share = 1.0 / sum(map(_learned, chosen))
        chosen = chosen[launch.rank() :: launch.processes()]  # one in so many, so that all have as much to do
        for start in range(0, len(chosen), micro):
            yield collate(chosen[start : start + micro], self.pad), share

    def _places(self, number: int) -> list[int]:
        if self.weights is not None:
            draw = torch.Generator().manual_seed(self.seed * 6_007 + number)
            return torch.multinomial(self.weights, self.batch_size, replacement=True, generator=draw).tolist()
        return reshuffled(number, self.batch_size, len(self.items), self.seed * 6_007)

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
        except ValueError as failure:
            problems.append(Problem(f"ptx_dataset#{number}", "", str(failure)))
            continue
        found.append({name: values[:max_length] for name, values in item.items()})
    if problems:
        raise DataError(problems)
    return found


def weights_of(rows: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """How often each row is drawn: the `weight` of its `source` (1 where it has none), shared by the rows of that
    source; None where no row has a weight."""
    if all(row.get("weight") is None for row in rows):
        return None
    sizes = Counter(row.get("source") for row in rows)
    return [(row.get("weight") or 1.0) / sizes[row.get("source")] for row in rows]


def _tokenised(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    ids, labels, prompt, completion = (row.get(name) for name in ("input_ids", "labels", "prompt", "completion"))
    if ids is not None:
        if labels is None:
            return {"input_ids": list(ids)}
        if len(labels) != len(ids):
            raise ValueError(f"has {len(labels)} labels for {len(ids)} input_ids")
        return {"input_ids": list(ids), "labels": list(labels)}
    if isinstance(row.get("text"), str):
        return {"input_ids": [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]}
    if isinstance(prompt, str) and isinstance(completion, str):
        before, answer = list(tokenizer(prompt)["input_ids"]), completion
    elif _are_turns(prompt) and _are_turns(completion) and len(completion) == 1:
        rendered = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False)
        before, answer = list(tokenizer(rendered, add_special_tokens=False)["input_ids"]), completion[0]["content"]
    else:
        words = "prompt and completion (two texts, or turns and one turn)"
        raise ValueError(f"needs input_ids, text, or {words}; it has {', '.join(row) or 'nothing'}")
    after = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": before + after, "labels": [_IGNORED] * len(before) + after}


def _are_turns(value: Any) -> bool:
    turns = isinstance(value, (list, tuple)) and bool(value)
    return turns and all(isinstance(turn, Mapping) and {"role", "content"} <= turn.keys() for turn in value)


@torch.no_grad()
def mean_loss(backbone: Backbone, items: Sequence[Mapping[str, list[int]]], pad: int, batch_size: int = 8) -> float:
    """Nats a learned token of some texts under the active role; what PPO-ptx is to keep low. NaN without a text."""
    total, count = 0.0, sum(map(_learned, items))
    kept = sorted((item for item in items if _learned(item)), key=lambda item: len(item["input_ids"]))
    for start in range(0, len(kept), batch_size):
        batch = collate(kept[start : start + batch_size], pad).to(backbone.device)
        total += float(PretrainingText.loss(backbone, batch))
    return total / count if count else math.nan
