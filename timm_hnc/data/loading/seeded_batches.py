"""Batches whose random numbers depend on where they stand, not on what came before.

The batch sampler yields epoch and number with the indices; whoever reads the batch seeds from them, and then augments
its samples and mixes them in their order. A loader can begin at any batch of any epoch, with any number of workers, and
give what it gave before. So can workers that stay from epoch to epoch.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from timm import utils
from timm.data import FastCollateMixup
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader, IterableDataset, RandomSampler
from torch.utils.data.distributed import DistributedSampler

from timm_hnc.data.loading.wrapped_dataset import WrappedDataset, Wrapper, inner_loader

_REMEMBERED = 64  # batches whose samples can be named; more than loaders fetch ahead
_OF_ERASING = -1
_OF_ORDER = -3
_MASK = (1 << 64) - 1


class Batch(NamedTuple):
    """What the sampler said, and where it stands."""

    seed: int
    epoch: int
    number: int
    indices: list[Any]


def mixed(*numbers: int) -> int:
    """64 bits from integers, well mixed (the finaliser of SplitMix64)."""
    state = 0
    for number in numbers:
        state = (state + 0x9E3779B97F4A7C15 + (number & _MASK)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def seed_process(seed: int, process: int = 0) -> None:
    """Timm's `random_seed` of any seed: NumPy takes no more than 32 bits."""
    utils.random_seed((seed + process) % 2**32)


def seed_generators(*numbers: int, devices: bool = False) -> None:
    """Seed Python, NumPy and torch's CPU generator, and with `devices` those of accelerators."""
    seed = mixed(*numbers)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # without an accelerator torch.manual_seed() takes a millisecond to note the seed for one that may come
    if devices and torch.accelerator.is_available():
        torch.manual_seed(seed >> 1)
    else:
        torch.default_generator.manual_seed(seed >> 1)


class SeededBatches(Wrapper):
    """A batch sampler that says where its samples stand, and can begin at any batch."""

    inside = 'batches'

    def __init__(self, batches: Any, seed: int) -> None:
        self.batches, self.seed = batches, seed
        self.epoch = self.start = 0
        self.recent: OrderedDict[int, list[Any]] = OrderedDict()
        order = _order_of(batches)
        self._order = order if isinstance(order, RandomSampler) and order.generator is None else None

    def __iter__(self) -> Iterator[Batch]:
        self.recent.clear()
        seed_generators(self.seed, self.epoch, _OF_ORDER)
        if self._order is not None:  # by itself it would draw anew whenever an epoch goes round the data again
            drawn = int(torch.empty((), dtype=torch.int64).random_())
            self._order.generator = torch.Generator().manual_seed(drawn)
        for number, batch in islice(enumerate(self.batches), self.start, None):
            self.recent[number] = list(batch)
            if len(self.recent) > _REMEMBERED:
                self.recent.popitem(last=False)
            yield Batch(self.seed, self.epoch, number, list(batch))

    def set_epoch(self, epoch: int) -> None:
        """The epoch that comes next."""
        self.epoch = epoch
        if hasattr(self.batches, 'set_epoch'):
            self.batches.set_epoch(epoch)

    def samples(self, batch: int) -> list[int]:
        """Indices of a recent batch's samples, empty for one that is long past."""
        indices = self.recent.get(batch, [])
        return [index[0] if isinstance(index, tuple) else index for index in indices]


class _SeededDataset(WrappedDataset):
    def __getitems__(self, batch: Batch) -> list[Any]:
        seed_generators(batch.seed, batch.epoch, batch.number)
        if isinstance(self.dataset, WrappedDataset):
            return self.dataset.__getitems__(batch.indices)
        return [self.dataset[index] for index in batch.indices]

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]


class SeededErasing:
    """Random erasing on the device, seeded from the batch; batches come in order."""

    def __init__(self, erasing: Callable[..., Any], batches: Any) -> None:
        self.erasing, self.batches = erasing, batches
        self.epoch, self.next = -1, 0

    def __call__(self, input: Any, **places: Any) -> Any:
        """The input of the next batch, erased."""
        if self.epoch != self.batches.epoch:
            self.epoch, self.next = self.batches.epoch, self.batches.start
        seed_generators(self.batches.seed, self.epoch, self.next, _OF_ERASING, devices=True)
        self.next += 1
        return self.erasing(input, **places)


def seed_shares(loader: Any, seed: int) -> None:
    """Let the order of which each of several processes takes its share follow from a seed, the same in all of them.

    Args:
        loader: of timm's create_loader, whose own order follows from the epoch alone; it is changed in place.
        seed: of the run.
    """
    sampler = _order_of(inner_loader(loader).batch_sampler)
    key = mixed(seed, _OF_ORDER) >> 2  # torch adds the epoch to it, and takes 64 bits
    if isinstance(sampler, DistributedSampler):
        sampler.seed = key
    elif isinstance(sampler, RepeatAugSampler):
        # it has no seed but the epoch
        object.__setattr__(sampler, 'set_epoch', lambda epoch: RepeatAugSampler.set_epoch(sampler, key + epoch))
        sampler.set_epoch(0)


def _order_of(batches: Any) -> Any:
    """The sampler at the bottom of a batch sampler."""
    while hasattr(batches, 'sampler'):
        batches = batches.sampler
    return batches


def seed_batches(loader: Any, seed: int) -> SeededBatches | None:
    """Make the random numbers of a loader of timm's create_loader depend on a batch's place; it is changed in place.

    Returns:
        Its batch sampler from now on; None for streams and for timm's multi-epoch loader, which runs ahead of epochs.
    """
    inner = inner_loader(loader)
    if isinstance(inner.dataset, IterableDataset) or type(inner) is not DataLoader:
        return None
    seeded = SeededBatches(inner.batch_sampler, seed)
    # DataLoader refuses to change these once it is made
    object.__setattr__(inner, 'batch_sampler', seeded)
    object.__setattr__(inner, 'dataset', _SeededDataset(inner.dataset))
    # workers have a copy of timm's mixup, which --mixup-off-epoch switches off in this process
    keep_workers = inner.num_workers > 0 and not isinstance(inner.collate_fn, FastCollateMixup)
    object.__setattr__(inner, 'persistent_workers', keep_workers)
    if getattr(loader, 'random_erasing', None) is not None:
        loader.random_erasing = SeededErasing(loader.random_erasing, seeded)
    return seeded
