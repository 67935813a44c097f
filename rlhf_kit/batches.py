"""What flows between the stages' functions: frozen dataclasses of tensors whose shapes are checked where they are made.

Axes as everywhere: B sequences, P prompt (left-padded), R response (right-padded), T = P + R, N scored responses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


def expect(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    """Raises ValueError where a tensor has not this shape, or not this dtype."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected {shape}")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{name}: {tensor.dtype}, expected {dtype}")


@dataclass(frozen=True)
class Sequences:
    """Prompts with their responses, ready for one forward pass.

    Attributes:
        input_ids: (B, T) token ids: a left-padded prompt, then a right-padded response.
        attention_mask: (B, T) bool.
        response_length: R. Column t of any (B, R) tensor is response token t.
        lower: (B, T, H) what the layers below every adapter of the policy's base make of it, where that is kept.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_length: int
    lower: Tensor | None = None

    def __post_init__(self) -> None:
        expect("attention_mask", self.attention_mask, tuple(self.input_ids.shape), torch.bool)
        if not 0 < self.response_length < self.input_ids.size(1):
            raise ValueError(
                f"response_length {self.response_length} leaves no prompt in {self.input_ids.size(1)} tokens"
            )
        if self.lower is not None:
            expect("lower", self.lower, (*self.input_ids.shape, self.lower.size(-1)))

    @classmethod
    def collate(cls, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad: int) -> Sequences:
        """Pads prompts on the left and responses on the right, each to the longest of this batch."""
        p, r = max(map(len, prompts)), max(map(len, responses))
        ids = torch.full((len(prompts), p + r), pad, dtype=torch.long)
        mask = torch.zeros((len(prompts), p + r), dtype=torch.bool)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            ids[row, p - len(prompt) : p] = torch.tensor(prompt, dtype=torch.long)
            ids[row, p : p + len(response)] = torch.tensor(response, dtype=torch.long)
            mask[row, p - len(prompt) : p + len(response)] = True
        return cls(ids, mask, r)

    @property
    def prompt_length(self) -> int:
        """P."""
        return self.input_ids.size(1) - self.response_length

    @property
    def responses(self) -> Tensor:
        """(B, R) token ids of the responses."""
        return self.input_ids[:, -self.response_length :]

    @property
    def response_mask(self) -> Tensor:
        """(B, R) bool."""
        return self.attention_mask[:, -self.response_length :]

    @property
    def last(self) -> Tensor:
        """(B,) column of T at which the last real token stands: where a reward model reads its score."""
        positions = torch.arange(self.attention_mask.size(1), device=self.attention_mask.device)
        return torch.where(self.attention_mask, positions, -1).amax(1)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Row and column, (B,) each, of the last real tokens."""
        return torch.arange(self.input_ids.size(0), device=self.input_ids.device), self.last

    def before_response(self, hidden: Tensor) -> Tensor:
        """(B, R, ...) of a (B, T, ...): the states that predict the response tokens."""
        return hidden[:, -self.response_length - 1 : -1]

    def select(self, rows: Tensor) -> Sequences:
        """The sequences `rows` (a 1-D index tensor), still padded as the whole is."""
        lower = None if self.lower is None else self.lower[rows]
        return Sequences(self.input_ids[rows], self.attention_mask[rows], self.response_length, lower)

    def to(self, device: torch.device | str) -> Sequences:
        """The same batch on another device."""
        lower = None if self.lower is None else self.lower.to(device)
        return Sequences(self.input_ids.to(device), self.attention_mask.to(device), self.response_length, lower)


@dataclass(frozen=True)
class Episodes:
    """Rollouts with everything the inner epochs of PPO need. All (B, R) but `sequences` and `score`.

    Attributes:
        log_probs: of the policy that sampled, recomputed by the trainer's own forward pass, so that the first ratio
            is exactly 1.
        score: (B,) what the response earned, penalties included.
        kl: per-token KL(policy || reference).
        importance: how much each token counts in the policy's loss, where an engine has sampled it that rounds
            otherwise; None is 1.
    """

    sequences: Sequences
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    kl: Tensor
    score: Tensor
    importance: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.sequences.responses.shape)
        for name in ("log_probs", "values", "advantages", "returns", "kl"):
            expect(name, getattr(self, name), shape, torch.float32)
        if self.importance is not None:
            expect("importance", self.importance, shape, torch.float32)
        expect("score", self.score, shape[:1], torch.float32)

    def __len__(self) -> int:
        return self.score.size(0)

    def select(self, rows: Tensor) -> Episodes:
        """The episodes `rows` (a 1-D index tensor), still padded as the whole was: padding must not depend on the
        minibatch, or the first ratio of policy to old policy is not exactly 1 in low precision."""
        held = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sequences"}
        return replace(
            self,
            **{name: tensor[rows] for name, tensor in held.items() if tensor is not None},
            sequences=self.sequences.select(rows),
        )

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[Episodes]:
        """The episodes once, in random order, `size` at a time."""
        for rows in torch.randperm(len(self), generator=generator).split(size):
            yield self.select(rows)
