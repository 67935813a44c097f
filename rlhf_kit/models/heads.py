"""Scalar heads: one float32 number a position, kept beside the adapter in safetensors.

They are ours and not PEFT's `modules_to_save`: a reward adapter that loses its head on save is the commonest fault of
the field.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rlhf_kit import launch
from rlhf_kit.data import WHOLE
from rlhf_kit.errors import CheckpointError

HEAD_FILE = "head.safetensors"


class ScalarHead(nn.Module):
    """A linear layer from hidden states to one number, with the normalisation of its scores.

    There may be several outputs, one an axis (helpful, truthful, harmless); the score is their weighted sum,
    `(sum over axes of weight * (w . h + b) / spread - mean) / std`. `spread` is each axis's own standard deviation over
    the demonstrations once a reward model is trained, so that a weight of 1 means the same on every axis; `mean` and
    `std` are then those of the sum (arXiv 2009.01325). Before, they are 1, 0 and 1.

    Args:
        hidden_size: H.
        zero: starts at zero, so that an untrained critic says nothing (arXiv 2403.17031); else with a standard
            deviation of 1/sqrt(H+1).
        axes: the names of the outputs.
        weights: of the outputs in the score; all 1 where they are left out.
    """

    weights: Tensor
    spread: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        hidden_size: int,
        *,
        zero: bool = False,
        axes: Sequence[str] = (WHOLE,),
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.axes = tuple(axes)
        self.linear = nn.Linear(hidden_size, len(self.axes), dtype=torch.float32)
        nn.init.normal_(self.linear.weight, std=0.0 if zero else (hidden_size + 1) ** -0.5)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("weights", torch.tensor(weights or [1.0] * len(self.axes), dtype=torch.float32))
        self.register_buffer("spread", torch.ones(len(self.axes), dtype=torch.float32))
        self.register_buffer("mean", torch.zeros((), dtype=torch.float32))
        self.register_buffer("std", torch.ones((), dtype=torch.float32))

    @property
    def combine(self) -> Tensor:
        """(A,) what an output counts in the score, before the score is normalised."""
        return self.weights / self.spread

    def outputs(self, hidden: Tensor) -> Tensor:
        """(..., H) to (..., A): what each axis says, not normalised; in float32 whatever the autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            said: Tensor = self.linear(hidden.float())
        return said

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) to (...): the score, in float32 whatever the autocast."""
        return self.score(self.outputs(hidden))

    def score(self, outputs: Tensor) -> Tensor:
        """(..., A) to (...): the normalised weighted sum of what the axes say."""
        return ((outputs * self.combine).sum(-1) - self.mean) / self.std

    @torch.no_grad()
    def normalise(self, outputs: Tensor) -> None:
        """Makes the scores of `outputs`, (N, A), have mean 0 and std 1 from now on, every axis having the same spread.

        Raises:
            ValueError: an axis says the same everywhere, or something that is not finite.
        """
        outputs = outputs.float().to(self.mean.device)
        spread = outputs.std(0, correction=0)
        for axis, width in zip(self.axes, spread.tolist(), strict=True):
            if not 1e-6 < width < float("inf"):
                what = "" if self.axes == (WHOLE,) else f" on the axis {axis}"
                raise ValueError(
                    f"the reward model gives all demonstrations the same score{what}; it has learned nothing"
                )
        self.spread.copy_(spread)
        std, mean = torch.std_mean(outputs @ self.combine, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(std)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, float]:
        """The whole head as one linear function: a weight (H,) and an offset with score = weight . h + offset."""
        weight = (self.combine @ self.linear.weight) / self.std
        return weight, float((self.combine @ self.linear.bias - self.mean) / self.std)

    def save(self, directory: Path) -> None:
        """Writes `head.safetensors`. Of several processes all must call this; the main one writes."""
        with launch.whole(self.parameters()):
            state = {k: launch.full(v.detach()).cpu().contiguous() for k, v in self.state_dict().items()}
        if launch.is_main():
            directory.mkdir(parents=True, exist_ok=True)
            save_file(state, directory / HEAD_FILE, {"axes": json.dumps(self.axes)})

    @classmethod
    def load(cls, directory: Path, hidden_size: int) -> ScalarHead:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: no head there, or one for another hidden size.
        """
        try:
            with safe_open(directory / HEAD_FILE, "pt") as file:
                axes = json.loads((file.metadata() or {}).get("axes", json.dumps([WHOLE])))
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            head = cls(hidden_size, zero=True, axes=axes)
            head.load_state_dict(state)
        except (OSError, RuntimeError, ValueError, SafetensorError) as failure:
            raise CheckpointError(f"{directory / HEAD_FILE}: not a head for this model: {failure}") from failure
        return head
