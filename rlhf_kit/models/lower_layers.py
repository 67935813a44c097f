"""The layers below every adapter: what they make of a sequence is the same for all roles and never changes, so that
it is computed once (`lora.layers_to_transform` says where the adapters start)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

log = logging.getLogger(__name__)

# The largest relative difference of hidden states that rounding explains where a pass is made in two parts.
_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}


@dataclass(frozen=True, eq=False)
class LowerLayers:
    """The layers of a decoder below all that is adapted.

    Attributes:
        decoder: the model without its output head.
        layers: all of its layers, lowest first.
        count: how many of them; 0 where none is, or where a pass cannot be divided there.
    """

    decoder: nn.Module
    layers: Sequence[nn.Module]
    count: int

    @classmethod
    def below(cls, decoder: nn.Module, number: int, adapted: Sequence[nn.Module]) -> LowerLayers:
        """Those of a decoder of `number` layers, not tried.

        Args:
            adapted: the modules that adapters change; none of them may stand outside the layers.
        """
        lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module) == number]
        layers = list(lists[0]) if lists else []
        place_of = {id(module): place for place, layer in enumerate(layers) for module in layer.modules()}
        return cls(decoder, layers, min((place_of.get(id(module), 0) for module in adapted), default=0))

    def tried(self, forward: Callable[..., Tensor]) -> LowerLayers:
        """The same where a pass can be divided there, else none; found out on a few tokens.

        Args:
            forward: `Backbone.forward`, which a divided pass must agree with.
        """
        return self if self.count and self._divides(forward) else replace(self, count=0)

    @torch.no_grad()
    def states(self, ids: Tensor, mask: Tensor, prompt_length: int) -> Tensor:
        """(B, T, H) what these layers make of sequences, without a gradient.

        Args:
            ids: (B, T).
            mask: (B, T) bool, True = real.
            prompt_length: P; rows whose first P columns are alike read them once, as when they were sampled.
        """
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        seen = torch.cat([ids[:, :prompt_length], mask[:, :prompt_length].long()], 1)
        prompts, copies = torch.unique(seen, dim=0, return_inverse=True)
        with _passed(self.layers[self.count :], None), _caught(self.layers[self.count - 1]) as found:
            if len(prompts) == len(ids):
                self.decoder(input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=False)
                return found[0]
            rows = torch.stack([(copies == prompt).nonzero()[0, 0] for prompt in range(len(prompts))])
            cache = DynamicCache(config=self.decoder.config)
            self.decoder(
                input_ids=ids[rows, :prompt_length],
                attention_mask=mask[rows, :prompt_length].long(),
                position_ids=positions[rows, :prompt_length],
                past_key_values=cache,
                use_cache=True,
            )
            cache.batch_select_indices(copies)
            self.decoder(
                input_ids=ids[:, prompt_length:],
                attention_mask=mask.long(),
                position_ids=positions[:, prompt_length:],
                past_key_values=cache,
                use_cache=True,
            )
        return torch.cat([found[0][copies], found[1]], 1)

    def left_out(self, states: Tensor) -> contextlib.AbstractContextManager[None]:
        """Within, passes of the decoder begin with what these layers have made, (B, T, H)."""
        return _passed(self.layers[: self.count], states)

    @torch.no_grad()
    def _divides(self, forward: Callable[..., Tensor]) -> bool:
        """Whether a pass in two parts is the pass: not where layers hand on more than hidden states."""
        device = next(self.decoder.parameters()).device
        ids = torch.tensor([[3, 4, 5, 6], [3, 4, 6, 7], [5, 3, 4, 8]], device=device)  # two of them with one prompt
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[2, 0] = False
        name, was_training = self.decoder.config.model_type, self.decoder.training
        self.decoder.eval()
        try:
            whole = forward(ids, mask)[mask].float()
            with self.left_out(self.states(ids, mask, 2)):
                divided = forward(ids, mask)[mask].float()
            error = float(((divided - whole).norm(dim=1) / whole.norm(dim=1)).max())
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as failure:
            log.info("%s: its lower layers are computed by each role: %s", name, failure)
            return False
        finally:
            self.decoder.train(was_training)
        right = error < _ROUNDING[next(self.decoder.parameters()).dtype]
        if not right:
            log.info("%s: its lower layers are computed by each role: divided passes differ by %.1e", name, error)
        return right


@contextlib.contextmanager
def _passed(layers: Sequence[nn.Module], states: Tensor | None) -> Iterator[None]:
    """Within, layers compute nothing: they hand on `states`, or what they were given where it is None."""

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states if states is None else states

    for layer in layers:
        vars(layer)["forward"] = forward
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


@contextlib.contextmanager
def _caught(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer makes, of each pass within."""
    found: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, given, made: found.append(made))
    try:
        yield found
    finally:
        hook.remove()
