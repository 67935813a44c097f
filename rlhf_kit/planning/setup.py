"""The model of a stage as the stage builds it: base, adapters, heads, who learns; on tensors without memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_kit.models import Backbone, ScalarHead, lora_config
from rlhf_kit.planning.architectures import on_meta
from rlhf_kit.recipe import LoraSection

__all__ = ["Setup", "as_fake", "layer_kinds", "parameters"]

BELOW, ADAPTED, PLAIN = "below", "adapted", "plain"
"""Kinds of layers: below the first that learns; with an adapter; without one, above such a layer."""


@dataclass(frozen=True)
class Setup:
    """How a stage builds its model.

    Attributes:
        config: of the whole base.
        dtype: of the base.
        autocast: bfloat16 under autocast, as the trainers have it.
        lora: the shape of its adapters.
        adapters: their names.
        trained: names of adapters and heads that learn.
        adapters_learn: False where the heads alone learn.
        heads: names of heads, with their outputs.
        checkpointing: activations are computed again in the backward pass.
        inputs_learn: TRL makes the embeddings require a gradient with checkpointing, so that all layers are gone
            through in the backward pass.
    """

    config: PretrainedConfig
    dtype: torch.dtype
    attention: str | None
    autocast: bool
    quantization: str | None
    lora: LoraSection
    adapters: tuple[str, ...]
    trained: tuple[str, ...]
    heads: dict[str, int]
    adapters_learn: bool = True
    checkpointing: bool = False
    inputs_learn: bool = False

    def build(self, layers: Sequence[str] | None = None) -> Backbone:
        """The backbone on the meta device.

        Args:
            layers: the kinds of its decoder layers; those of the whole model where they are left out.
        """
        kinds = layer_kinds(self) if layers is None else list(layers)
        backbone = Backbone(
            on_meta(_cut(self.config, len(kinds)), self.dtype, self.attention),
            cast(PreTrainedTokenizerBase, None),  # nothing is tokenised
            "planned",
        )
        lora = self._lora(kinds)
        with torch.device("meta"):
            for name in self.adapters:
                backbone.add_adapter(name, lora_config(lora))
            for name, outputs in self.heads.items():
                backbone.heads[name] = ScalarHead(
                    backbone.hidden_size, zero=True, axes=[str(n) for n in range(outputs)]
                )
        backbone.train_only(*self.trained, adapters=self.adapters_learn)
        return backbone

    def _lora(self, kinds: Sequence[str]) -> LoraSection:
        if self.lora.layers_to_transform is None:
            return self.lora
        # Where nothing but a head learns, the layers are all `below`: their adapters are still there.
        places = [n for n, kind in enumerate(kinds) if kind == ADAPTED] or list(range(len(kinds)))
        return self.lora.model_copy(update={"layers_to_transform": places})


def layer_kinds(setup: Setup) -> list[str]:
    """The kind of each decoder layer of the whole model."""
    count = setup.config.get_text_config().num_hidden_layers
    if not setup.adapters_learn or not setup.trained:
        return [BELOW] * count
    chosen = setup.lora.layers_to_transform
    adapted = [chosen is None or n in chosen for n in range(count)]
    first = adapted.index(True) if any(adapted) else count
    return [BELOW if n < first else ADAPTED if adapted[n] else PLAIN for n in range(count)]


def _cut(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same configuration with so many layers."""
    found = copy.deepcopy(config)
    text = found.get_text_config()
    kinds = getattr(text, "layer_types", None)
    text.num_hidden_layers = layers
    if kinds is not None:
        text.layer_types = [kinds[n % len(kinds)] for n in range(layers)]
    return found


def parameters(backbone: Backbone) -> dict[str, int]:
    """Parameters by role: the base, each adapter, each head."""
    adapters = {id(p) for name in backbone.adapters for p in backbone.adapter_parameters(name)}
    found = {"base": sum(p.numel() for p in backbone.base.parameters() if id(p) not in adapters)}
    for name in backbone.adapters:
        found[name] = sum(p.numel() for p in backbone.adapter_parameters(name))
    for name, head in backbone.heads.items():
        found[f"{name} head"] = sum(p.numel() for p in head.parameters())
    return found


def as_fake(backbone: Backbone, kind: str = "cpu") -> None:
    """Replaces the tensors of a model on the meta device by fake ones of the same shapes; inside a `FakeTensorMode`."""
    made: dict[int, nn.Parameter] = {}
    for table, name, old in _tensors(backbone):
        empty = torch.empty(old.shape, dtype=old.dtype, device=kind)
        if isinstance(old, nn.Parameter):
            empty = made.setdefault(id(old), nn.Parameter(empty, requires_grad=old.requires_grad))
        table[name] = empty
    backbone._index()


def _tensors(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    kept = []  # alive until all are replaced, so that no id is used twice
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, old in table.items():
                if old is not None:
                    kept.append(old)
                    yield cast(dict[str, Any], table), name, old
