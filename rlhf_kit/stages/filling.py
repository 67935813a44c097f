"""Batches of equal number on every process, without learning anything twice.

Where the examples do not fill the last batches of an epoch, accelerate begins again with the first ones, which then
count more than the others, and as many more as there are processes. Here examples of which nothing is learned stand in
their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import ConcatDataset, DataLoader, Sampler
from transformers import Trainer


class FilledUp(Sampler[int]):
    """The order of examples that one process would have, then the filler until every process has full batches.

    Args:
        examples: how many there are; the filler comes after them.
        multiple: examples in a batch of all processes together.
        seed: of the order.
    """

    def __init__(self, examples: Sized, multiple: int, seed: int) -> None:
        self.count, self.multiple = len(examples), multiple
        self.order = SeedableRandomSampler(examples, data_seed=seed)  # as accelerate has it for one process

    def __len__(self) -> int:
        return -(-self.count // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from [self.count] * (len(self) - self.count)

    def set_epoch(self, epoch: int) -> None:
        """Another order for each epoch."""
        self.order.set_epoch(epoch)


def filled_up(trainer: Trainer, filler: Any, make: Callable[[], DataLoader]) -> DataLoader:
    """The data loader that `make` makes of the trainer's examples, with fillers where several processes need them.

    Args:
        filler: an example of which nothing is learned.
        make: transformers' own `get_train_dataloader`.
    """
    args, examples = trainer.args, trainer.train_dataset
    if args.world_size == 1 or args.train_sampling_strategy != "random":
        return make()
    seed = args.seed if args.data_seed is None else args.data_seed
    sampler = FilledUp(examples, args.train_batch_size * args.world_size, seed)
    held = trainer._get_train_sampler
    trainer.train_dataset, trainer._get_train_sampler = (
        ConcatDataset([examples, [filler]]),
        lambda dataset=None: sampler,
    )
    try:
        return make()
    finally:
        trainer.train_dataset, trainer._get_train_sampler = examples, held
