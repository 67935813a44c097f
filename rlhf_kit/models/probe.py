"""A fingerprint of what a trained adapter does: some of its logits on fixed tokens, kept beside it.

An export is compared with this, not with itself: the trained model is gone by then, and an adapter that was saved
wrongly would agree with its own reload.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_kit.errors import CheckpointError

PROBE_FILE = "probe.safetensors"
_VOCABULARY = 64


@dataclass(frozen=True)
class Probe:
    """Logits of a model at the positions of some sequences.

    Attributes:
        input_ids: (B, T).
        attention_mask: (B, T), 1 = real.
        vocabulary: (V',) the token ids whose logits are kept.
        logits: (positions, V') float32, of the real positions in order.
    """

    input_ids: Tensor
    attention_mask: Tensor
    vocabulary: Tensor
    logits: Tensor

    @classmethod
    def take(cls, model: nn.Module, sequences: Sequence[Sequence[int]], vocabulary_size: int, pad: int) -> Probe:
        """The probe of a causal language model as it stands (adapter active or not, in its own precision)."""
        width = max(map(len, sequences))
        ids = torch.full((len(sequences), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(sequences):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            mask[row, : len(tokens)] = 1
        step = max(1, vocabulary_size // _VOCABULARY)
        vocabulary = torch.arange(0, vocabulary_size, step)[:_VOCABULARY]
        return cls(ids, mask, vocabulary, logits_of(model, ids, mask, vocabulary))

    def repeat(self, model: nn.Module) -> Tensor:
        """The same logits of another model."""
        return logits_of(model, self.input_ids, self.attention_mask, self.vocabulary)

    def save(self, directory: Path) -> None:
        """Writes `probe.safetensors`."""
        save_file({k: v.contiguous() for k, v in vars(self).items()}, directory / PROBE_FILE)

    @classmethod
    def load(cls, directory: Path) -> Probe:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: not there or damaged.
        """
        try:
            return cls(**load_file(directory / PROBE_FILE))
        except (OSError, TypeError, SafetensorError) as failure:
            raise CheckpointError(
                f"{directory / PROBE_FILE}: missing or damaged; without it an export cannot be verified"
            ) from failure


@torch.no_grad()
def logits_of(model: nn.Module, ids: Tensor, mask: Tensor, vocabulary: Tensor) -> Tensor:
    """(positions, V') float32."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    autocast = torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=next(model.parameters()).dtype == torch.bfloat16
    )
    with autocast:
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
    model.train(was_training)
    return logits[mask.bool().to(device)][:, vocabulary.to(device)].float().cpu()
