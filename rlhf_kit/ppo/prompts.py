"""Prompts as PPO takes them: rows of a dataset with their token ids, what reward functions are told, their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_kit.data import one_line
from rlhf_kit.errors import DataError, Problem

Shown = str | list[dict[str, str]]
"""A prompt as reward functions see it: a text, or the turns of a conversation."""

_MOST_NAMED = 20


@dataclass(frozen=True)
class PromptRow:
    """One prompt.

    Attributes:
        ids: what the policy is given.
        shown: what reward functions are given.
        columns: the other columns of its row, for reward functions.
        plain: the text was taken as it is, without a chat template.
    """

    ids: list[int]
    shown: Shown
    columns: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False


def read_prompts(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, room: int, name: str = "train_dataset"
) -> list[PromptRow]:
    """The rows of a dataset with a `prompt` column, or of token ids in `input_ids`.

    As in TRL's trainers a text is taken as it is, and a conversation is rendered by the chat template with the
    generation prompt. Where both columns are there, the model is given the ids and reward functions the prompt.

    Args:
        room: the most tokens that a prompt may have.
        name: of the dataset, for messages.

    Raises:
        DataError: no rows, or rows that cannot be used, all of them (the first twenty by name).
    """
    found: list[PromptRow] = []
    problems: list[Problem] = []
    for number, row in enumerate(rows, 1):
        where = f"{name}#{number}"
        try:
            made = _row(row, tokenizer)
        except ValueError as failure:
            problems.append(Problem(where, "prompt", str(failure)))
            continue
        if not 0 < len(made.ids) <= room:
            words = f"has {len(made.ids)} tokens, and the context of the model leaves {room} beside the response"
            problems.append(Problem(where, "prompt", f"{words}: {one_line(last_turn(made.shown))!r}"))
        found.append(made)
    if not found and not problems:
        problems = [Problem(name, "", "holds no prompts; PPO needs at least one")]
    if len(problems) > _MOST_NAMED:
        rest = len(problems) - _MOST_NAMED
        problems = [*problems[:_MOST_NAMED], Problem(name, "", f"and {rest} more rows like these")]
    if problems:
        raise DataError(problems)
    return found


def _row(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> PromptRow:
    columns = {key: value for key, value in row.items() if key not in ("prompt", "input_ids", "attention_mask")}
    prompt, ids = row.get("prompt"), row.get("input_ids")
    if prompt is None and ids is None:
        raise ValueError(f"neither a prompt nor input_ids; the row has {', '.join(row) or 'nothing'}")
    if isinstance(prompt, str):
        shown: Shown = prompt
    elif prompt is None:
        shown = str(tokenizer.decode(list(ids), skip_special_tokens=True))
    elif isinstance(prompt, (list, tuple)) and prompt and all(map(_is_turn, prompt)):
        shown = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in prompt]
    else:
        raise ValueError(f"must be a text or a list of turns with role and content, not {prompt!r}")
    if ids is not None:
        return PromptRow([int(token) for token in ids], shown, columns, plain=prompt is None)
    if isinstance(shown, str):
        return PromptRow(list(tokenizer(shown)["input_ids"]), shown, columns, plain=True)
    if tokenizer.chat_template is None:
        raise ValueError("is a conversation, but the tokenizer has no chat template; set tokenizer.chat_template")
    text = tokenizer.apply_chat_template(shown, add_generation_prompt=True, tokenize=False)
    return PromptRow(list(tokenizer(text, add_special_tokens=False)["input_ids"]), shown, columns)


def _is_turn(turn: object) -> bool:
    return isinstance(turn, Mapping) and {"role", "content"} <= turn.keys()


def last_turn(shown: Shown) -> str:
    """What a prompt asks last: the text, or the last turn of the conversation."""
    return shown if isinstance(shown, str) else shown[-1]["content"]


def prompts_of_update(
    rows: Sequence[PromptRow], update: int, *, batch_size: int, copies: int, seed: int
) -> list[PromptRow]:
    """The prompts of an update, each `copies` times: the data in a new order each time they have all been used.

    Depends on the seed and the number of the update alone, so that a run goes on as if it had not been interrupted.
    """
    places = reshuffled(update, batch_size // copies, len(rows), seed * 7_919)
    return [rows[place] for place in places for _ in range(copies)]


def reshuffled(number: int, size: int, count: int, seed: int) -> list[int]:
    """The places of batch `number` of a data set of `count` rows that is gone through again and again, each pass in an
    order of its own; it depends on the arguments alone."""
    orders: dict[int, list[int]] = {}
    places = []
    for position in range(number * size, (number + 1) * size):
        once, place = divmod(position, count)
        if once not in orders:
            orders[once] = torch.randperm(count, generator=torch.Generator().manual_seed(seed + once)).tolist()
        places.append(orders[once][place])
    return places
