"""Who plays what in PPO: policy, reference and value model, each an adapter of a base, or a model of its own."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from rlhf_kit import launch
from rlhf_kit.batches import Sequences
from rlhf_kit.errors import CheckpointError
from rlhf_kit.models import Backbone, ScalarHead

POLICY, REFERENCE, VALUE = "policy", "sft", "value"
"""The names of the adapters and of the value head."""
VALUE_DIRECTORY = "value"
_WHOLE_MODEL = "model.safetensors"


@dataclass(frozen=True, eq=False)
class Role:
    """Weights that play a role.

    Attributes:
        backbone: the model they are a part of.
        adapter: its adapter; None is the model without any, frozen or trained as a whole.
        head: for a value model.
    """

    backbone: Backbone
    adapter: str | None = None
    head: ScalarHead | None = None

    def playing(self) -> contextlib.AbstractContextManager[None]:
        """Must enclose the backward pass as well as the forward pass."""
        return self.backbone.role(self.adapter)

    def parameters(self) -> list[nn.Parameter]:
        """What learns where the role learns, without its head."""
        if self.adapter is not None:
            return self.backbone.adapter_parameters(self.adapter)
        return [parameter for parameter in self.backbone.base.parameters() if parameter.requires_grad]

    def save(self, directory: Path) -> None:
        """An adapter in PEFT's layout, or a whole model; the head beside it. Of several processes the main one
        writes."""
        if self.adapter is not None:
            self.backbone.save_adapter(self.adapter, directory)
        else:
            with launch.whole(self.backbone.base.parameters()):
                if launch.is_main():
                    self.backbone.base.save_pretrained(directory, max_shard_size="1TB")
        if self.head is not None:
            self.head.save(directory)

    def reload(self, directory: Path) -> None:
        """Puts back what `save` wrote.

        Raises:
            CheckpointError: it is not there, or does not fit.
        """
        if self.adapter is not None:
            self.backbone.reload_adapter(self.adapter, directory)
        else:
            try:
                load_model(self.backbone.base, directory / _WHOLE_MODEL)
            except (OSError, RuntimeError) as failure:
                raise CheckpointError(f"{directory / _WHOLE_MODEL}: cannot be loaded: {failure}") from failure
        if self.head is not None:
            self.head.load_state_dict(ScalarHead.load(directory, self.backbone.hidden_size).state_dict())


class Roles(nn.Module):
    """The roles of one PPO run as one module, for the Trainer to place, to switch between modes and to save.

    Args:
        policy: what learns.
        reference: what the KL is measured against.
        value: with its head; on the policy's own adapter where they share their trunk.
    """

    # Tells transformers' Trainer that the loss is normalised by us, not by its own token count.
    accepts_loss_kwargs = False

    def __init__(self, policy: Role, reference: Role, value: Role) -> None:
        super().__init__()
        self.policy, self.reference, self.value = policy, reference, value
        self.backbones = nn.ModuleList(dict.fromkeys((policy.backbone, reference.backbone, value.backbone)))
        # A copy: the Trainer writes the tokenizer's special tokens into it, and a model whose config names a pad token
        # that it has no embedding for cannot be loaded again.
        self.config = copy.deepcopy(policy.backbone.config)
        # FSDP's parts.
        self._no_split_modules = [name for one in self.backbones for name in one.base._no_split_modules or ()]

    @property
    def shared(self) -> bool:
        """Whether the value head sits on the policy's trunk."""
        return self.value.backbone is self.policy.backbone and self.value.adapter == self.policy.adapter

    @property
    def head(self) -> ScalarHead:
        """The value head."""
        assert self.value.head is not None
        return self.value.head

    def states(self, role: Role, part: Sequences) -> Tensor:
        """(B, R, H) the hidden states of a role that predict the response tokens."""
        lower = part.lower if role.backbone is self.policy.backbone else None
        return part.before_response(role.backbone(part.input_ids, part.attention_mask, lower=lower))

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What learns for the policy, and for the value model."""
        trunk = [] if self.shared else self.value.parameters()
        return self.policy.parameters(), [*trunk, *self.head.parameters()]

    def save(self, directory: Path) -> None:
        """The policy at the top of a directory, the value model below it."""
        self.policy.save(directory)
        if self.shared:
            self.head.save(directory / VALUE_DIRECTORY)
        else:
            self.value.save(directory / VALUE_DIRECTORY)

    def reload(self, directory: Path) -> None:
        """Puts back what `save` wrote."""
        self.policy.reload(directory)
        if self.shared:
            head = ScalarHead.load(directory / VALUE_DIRECTORY, self.value.backbone.hidden_size)
            self.head.load_state_dict(head.state_dict())
        else:
            self.value.reload(directory / VALUE_DIRECTORY)

    def forward(self, play: Callable[[], Any]) -> Any:
        """What `play` returns: the loss of one role, which must enclose the backward pass too. In here it runs inside
        the forward pass of whatever synchronises the processes."""
        return play()


class MovingAverage:
    """The exponential moving average of a role's weights (arXiv 2203.02155, appendix C: decay 0.992), float32.

    average <- decay average + (1 - decay) weights, after every update, from the weights at the start.
    """

    def __init__(self, role: Role, decay: float) -> None:
        self.role, self.decay = role, decay
        self.values = [parameter.detach().float().clone() for parameter in role.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights as they are after an update."""
        with launch.whole(self.role.parameters()):
            for average, parameter in zip(self.values, self.role.parameters(), strict=True):
                average.lerp_(parameter.float(), 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the average with the weights; twice is as before, but that bfloat16 weights round the average."""
        with launch.whole(self.role.parameters(), written=True):
            for average, parameter in zip(self.values, self.role.parameters(), strict=True):
                kept = parameter.detach().float().clone()
                parameter.copy_(average)
                average.copy_(kept)

    def save(self, directory: Path) -> None:
        """Writes the average as the role itself is written, for others to load; it stays as it is."""
        exact = [value.clone() for value in self.values]
        self.swap()
        try:
            self.role.save(directory)
        finally:
            self.swap()
            self.values = exact

    def restore(self, values: list[Tensor]) -> None:
        """Puts back the `values` of a checkpoint.

        Raises:
            CheckpointError: they are of other weights.
        """
        if [value.shape for value in values] != [value.shape for value in self.values]:
            raise CheckpointError("the moving average of the checkpoint is of other weights than this run trains")
        self.values = [value.to(old.device) for value, old in zip(values, self.values, strict=True)]
