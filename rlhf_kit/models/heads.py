"""Scalar heads: one float32 number a position, kept beside the adapter in safetensors.

They are ours and not PEFT's `modules_to_save`: a reward adapter that loses its head on save is the commonest fault of
the field.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_kit.errors import CheckpointError

HEAD_FILE = "head.safetensors"


class ScalarHead(nn.Module):
    """A linear layer from hidden states to one number, with the normalisation of its scores.

    The score is `(w . h + b - mean) / std`; `mean` and `std` are those of the raw scores over the demonstrations once
    a reward model is trained (arXiv 2009.01325), 0 and 1 before.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, hidden_size: int, *, zero: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        # Reward: std 1/sqrt(H+1); value: zero, so that an untrained critic says nothing (arXiv 2403.17031).
        nn.init.normal_(self.linear.weight, std=0.0 if zero else (hidden_size + 1) ** -0.5)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("mean", torch.zeros((), dtype=torch.float32))
        self.register_buffer("std", torch.ones((), dtype=torch.float32))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) to (...), in float32 whatever the autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            return (self.linear(hidden.float()).squeeze(-1) - self.mean) / self.std

    @torch.no_grad()
    def normalise(self, scores: Tensor) -> None:
        """Makes `scores`, (N,) of this head as it is, have mean 0 and std 1 from now on."""
        std, mean = torch.std_mean(scores.float(), correction=0)
        if not torch.isfinite(std) or std < 1e-6:
            raise ValueError("the reward model gives all demonstrations the same score; it has learned nothing")
        self.mean += mean * self.std
        self.std *= std

    def save(self, directory: Path) -> None:
        """Writes `head.safetensors`."""
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, directory / HEAD_FILE)

    @classmethod
    def load(cls, directory: Path, hidden_size: int) -> ScalarHead:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: no head there, or one for another hidden size.
        """
        head = cls(hidden_size, zero=True)
        try:
            head.load_state_dict(load_file(directory / HEAD_FILE))
        except (OSError, RuntimeError, SafetensorError) as failure:
            raise CheckpointError(f"{directory / HEAD_FILE}: not a head for this model: {failure}") from failure
        return head
