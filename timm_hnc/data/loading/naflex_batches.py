"""Timm's NaFlex batches, each a function of seed, epoch and place, so that a run can begin at any of them."""

import warnings
from collections.abc import Iterator
from itertools import count
from typing import Any

from timm.data.naflex_dataset import NaFlexMapDatasetWrapper
from timm.data.readers.shared_count import SharedCount
from torch.utils.data import IterableDataset, get_worker_info

from timm_hnc.data.loading.seeded_batches import SeededErasing, seed_generators
from timm_hnc.data.loading.wrapped_dataset import inner_loader


def seed_naflex_batches(loader: Any, seed: int) -> 'NaFlexBatches':
    """`timm_hnc.data.loading.seeded_batches.seed_batches` for a loader of timm's create_naflex_loader."""
    inner = inner_loader(loader)
    batches = NaFlexBatches(inner.dataset, seed)
    object.__setattr__(inner, 'dataset', batches)  # DataLoader refuses to change it once it is made
    if getattr(loader, 'random_erasing', None) is not None:
        loader.random_erasing = SeededErasing(loader.random_erasing, batches)
    return batches


class NaFlexBatches(IterableDataset[Any]):
    """Around timm's wrapper of a data set, which makes the batches; it stands in for `SeededBatches` as well.

    Args:
        dataset: timm's wrapper; its method that plans an epoch is replaced by one that begins where it is told to.
        seed: of this process.
    """

    def __init__(self, dataset: NaFlexMapDatasetWrapper, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self._start = SharedCount(0)  # workers that stay see both of them
        object.__setattr__(dataset, '_prepare_epoch_batches', self._rest)

    def _rest(self, epoch: int) -> list[Any]:
        return self._planned(epoch)[self.start :]

    def _planned(self, epoch: int) -> list[Any]:
        """(patches of an image at most, index of the patch size, indices of the samples) of every batch."""
        return NaFlexMapDatasetWrapper._prepare_epoch_batches(self.dataset, epoch)

    @property
    def epoch(self) -> int:
        """The epoch that comes next, or is under way."""
        return self.dataset.shared_epoch.value

    @property
    def start(self) -> int:
        """The batch that an epoch begins with."""
        return self._start.value

    @start.setter
    def start(self, batch: int) -> None:
        self._start.value = batch

    def set_epoch(self, epoch: int) -> None:
        """The epoch that comes next."""
        self.dataset.set_epoch(epoch)

    def samples(self, batch: int) -> list[int]:
        """Indices of a batch's samples."""
        return self._planned(self.epoch)[batch][2]

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Any]:
        """The batches of this process.

        Raises:
            RuntimeError: an image cannot be used.
        """
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch, batches = self.epoch, iter(self.dataset)
        for number in count(self.start + first, step):
            seed_generators(self.seed, epoch, number)
            batch = _next(batches)
            if batch is None:
                return
            yield batch


def _next(batches: Iterator[Any]) -> Any:
    """The next batch, None behind the last; timm warns of an image that fails, and would go on without it."""
    with warnings.catch_warnings():
        for start in ('Error processing sample', 'IndexError encountered', 'Transform returned None'):
            warnings.filterwarnings('error', start)
        try:
            return next(batches, None)
        except UserWarning as warning:
            raise RuntimeError(str(warning).removesuffix(' Skipping sample.')) from warning
