"""The processes of a run: how they were started, what all of them must agree on, and what one of them does alone.

accelerate, torchrun and DeepSpeed start and connect the processes; here is only what they leave open. Without a
launcher every function is that of one process, and nothing is sent.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import broadcast_object_list, gather, gather_object, save_fsdp_optimizer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.integrations import deepspeed as integration
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer import SCHEDULER_NAME
from trl.models.utils import add_hooks, remove_hooks

from rlhf_kit.errors import CheckpointError, RlhfKitError

# What a launcher tells its processes by; without them a process is alone.
_TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
_ENGINES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")

Item = TypeVar("Item")


def connect() -> PartialState:
    """This process among those that were launched with it; they are connected when it returns.

    Raises:
        RlhfKitError: the launcher was asked for several processes and has started one, or for an engine that would
            train several without synchronising them.
    """
    _refuse_what_is_not_as_asked()
    # Without `cpu` each process on a machine without accelerators thinks that it is alone.
    return PartialState(cpu=not torch.accelerator.is_available())


def _refuse_what_is_not_as_asked() -> None:
    alone = "LOCAL_RANK" not in os.environ
    if alone and "MASTER_ADDR" in os.environ and "ACCELERATE_USE_CPU" in os.environ:
        raise RlhfKitError(
            "accelerate was asked for several processes on CPUs and has started one (its --cpu and MULTI_CPU do so); "
            "use recipes/accelerate/cpu_ddp.yaml, or torchrun --nproc_per_node N -m rlhf_kit run RECIPE"
        )
    if by_fsdp() and not torch.accelerator.is_available():
        raise RlhfKitError(
            "FSDP needs accelerators: on CPUs accelerate leaves it out without a word and shards nothing. Use "
            "recipes/accelerate/zero3.yaml (DeepSpeed shards on CPUs too), or cpu_ddp.yaml"
        )


def is_main() -> bool:
    """Whether this is the process that writes what all share."""
    return PartialState._shared_state == {} or PartialState().is_main_process


def processes() -> int:
    """How many there are."""
    return 1 if PartialState._shared_state == {} else PartialState().num_processes


def rank() -> int:
    """The number of this one, from 0."""
    return 0 if PartialState._shared_state == {} else PartialState().process_index


def wait() -> None:
    """Returns when every process has come here."""
    if processes() > 1:
        PartialState().wait_for_everyone()


def agreed(value: Item) -> Item:
    """What the main process says, on all of them."""
    if processes() == 1:
        return value
    held = [value]
    broadcast_object_list(held)
    return held[0]


def gathered(items: Sequence[Item]) -> list[Item]:
    """The items of all processes, in the order of the processes."""
    return list(items) if processes() == 1 else list(gather_object(list(items)))


def any_of(flag: bool) -> bool:
    """Whether it holds on one of the processes at least."""
    return any(gathered([flag]))


def gathered_rows(tensor: Tensor) -> Tensor:
    """The rows of a tensor of all processes, one below the other; its other axes are alike everywhere."""
    if processes() == 1:
        return tensor
    rows: Tensor = gather(tensor.contiguous())
    return rows


def summed(figures: dict[str, float]) -> dict[str, float]:
    """The sum over the processes of each figure; all processes name the same ones."""
    if processes() == 1:
        return figures
    said = gathered([figures])
    return {name: sum(one[name] for one in said) for name in figures}


def share(count: int) -> slice:
    """Which of `count` rows this process has; the count must divide into equal shares."""
    size = count // processes()
    return slice(rank() * size, (rank() + 1) * size)


def finish_alone() -> bool:
    """Ends the connection of the processes; afterwards the main one is a process of its own.

    Returns:
        Whether this is the one that goes on.
    """
    if processes() == 1:
        return True
    main = is_main()
    wait()
    torch.distributed.destroy_process_group()
    integration.unset_hf_deepspeed_config()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    for name in (*_TOLD, *_ENGINES):
        os.environ.pop(name, None)
    return main


# -------------------------------------------------------------------- engines that keep a part on each process


@contextlib.contextmanager
def whole(parameters: Iterable[nn.Parameter], *, written: bool = False) -> Iterator[None]:
    """Inside, the parameters are there in full on every process, where ZeRO-3 has given a part to each. All processes
    must enter.

    Args:
        written: what the main process writes into them is kept; otherwise they are to be read only.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    # What is there already, an enclosing `whole` has gathered: it must not be given back here.
    parted = [one for one in parameters if vars(one).get("ds_status") == ZeroParamStatus.NOT_AVAILABLE]
    with deepspeed.zero.GatheredParameters(parted, modifier_rank=0 if written else None):
        yield


def full(tensor: Tensor) -> Tensor:
    """A tensor in full, where FSDP has given a part to each process; all must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def serve(engine: nn.Module, play: Callable[[], Item], *, gather: bool = True) -> Item:
    """What `play` returns: sampling and scoring, in which nothing is learned. Where each process has a part of the
    model, all of it is put together once for that, and not each layer for each token. All processes must call this.

    Args:
        engine: what accelerate has made of the module whose models play.
        gather: False puts a layer together when it is needed, and no more; the processes must then make the same
            forward passes.
    """
    if is_deepspeed_zero3_enabled() and gather:
        with whole(engine.parameters()):
            remove_hooks(engine)  # which would give each layer back behind its forward pass
            try:
                return play()
            finally:
                add_hooks(engine)
    if not by_fsdp():
        return play()
    parts = [module for module in engine.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(not gather, recurse=False)
    try:
        return engine(play)  # it looks after the parameters inside its own forward pass only
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not engine, recurse=False)
            part.reshard()


def by_fsdp() -> bool:
    """Whether the launcher has asked for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def parted() -> bool:
    """Whether each process has a part of the model only."""
    return is_deepspeed_zero3_enabled() or by_fsdp()


@contextlib.contextmanager
def loaded_whole() -> Iterator[None]:
    """Inside, transformers loads models in full, also for ZeRO-3, which then shares them out when training begins:
    what is done with a model before that (packing, checks, copies of adapters) needs all of it."""
    held = integration._hf_deepspeed_config_weak_ref
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = held


class Played(nn.Module):
    """A module whose forward pass is whatever it is handed: DDP and DeepSpeed synchronise the gradients of what runs
    inside the forward pass of the module that they have wrapped.

    Args:
        module: a `Backbone`, whose parameters they are.
    """

    # Tells transformers' Trainer that the loss is normalised by us, not by its own token count.
    accepts_loss_kwargs = False

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module
        self.config = module.config
        self._no_split_modules = module.base._no_split_modules  # FSDP's parts

    def forward(self, play: Callable[[], Any]) -> Any:
        """What `play` returns."""
        return play()


def prepared(
    trainer: Trainer, prepare: Callable[[str | None], Item], checkpoint: str | None, backbones: Iterable[Any]
) -> Item:
    """What transformers makes ready for a trainer of the kit, with its engine going on from a checkpoint.

    Args:
        prepare: transformers' own `_prepare_for_training`, told of the checkpoint where it can go on by itself.
        backbones: whose parameters an engine may replace.

    Raises:
        CheckpointError: the checkpoint is none of DeepSpeed's.
    """
    if trainer.is_fsdp_enabled and checkpoint is not None:
        trainer._load_from_checkpoint(checkpoint)  # as long as the weights are in one piece
    made = prepare(None if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled else checkpoint)
    for backbone in backbones:
        backbone.reindex()
    _go_on(trainer, checkpoint)
    return made


def _go_on(trainer: Trainer, checkpoint: str | None) -> None:
    """DeepSpeed's checkpoints hold what is trained and not the frozen base (transformers sees to that for PEFT's own
    models only), and DeepSpeed and FSDP go on from one."""
    if trainer.is_deepspeed_enabled:
        engine = trainer.model_wrapped
        engine.save_checkpoint = functools.partial(engine.save_checkpoint, exclude_frozen_parameters=True)
        if checkpoint is not None and engine.load_checkpoint(checkpoint, load_module_strict=False)[0] is None:
            raise CheckpointError(f"{checkpoint}: holds no state of DeepSpeed's to go on from")
    if checkpoint is not None and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        trainer._load_optimizer_and_scheduler(checkpoint)


def save_state(trainer: Trainer, directory: str) -> None:
    """Optimiser and schedule of a trainer on FSDP, without the model, which transformers would put together for it."""
    plugin = trainer.accelerator.state.fsdp_plugin
    save_fsdp_optimizer(plugin, trainer.accelerator, trainer.optimizer, trainer.model, directory)
    if is_main():
        torch.save(trainer.lr_scheduler.state_dict(), os.path.join(directory, SCHEDULER_NAME))
