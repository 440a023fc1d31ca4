import os
import random

import numpy as np
import pytest
import torch
from timm.data import FastCollateMixup
from timm.data.scheduled_sampler import ScheduledBatchSampler
from timm.utils import random_seed
from torch.utils.data import DataLoader, Dataset, RandomSampler

from timm_hnc.data.loading.seeded_batches import seed_batches, seed_process


class Draws(Dataset):
    """Samples that say which they are, what they drew, and in which process."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return index[0] if isinstance(index, tuple) else index, torch.rand(()), os.getpid()


def loader_of(workers, **options):
    loader = DataLoader(Draws(), batch_size=2, shuffle=True, num_workers=workers, **options)
    return loader, seed_batches(loader, 5)


def read(loader, seeded, epoch, start=0):
    """Indices and numbers of an epoch's batches, and the processes that read them."""
    seeded.set_epoch(epoch)
    seeded.start = start
    columns = [torch.cat(column) for column in zip(*loader, strict=True)]
    return columns[0].tolist(), columns[1].tolist(), set(columns[2].tolist())


@pytest.mark.parametrize('workers', [1, 2])
def test_workers_stay_and_give_what_fresh_ones_give(workers):
    kept, plain = loader_of(workers), loader_of(0)
    epochs = [read(*kept, epoch) for epoch in range(3)]
    assert epochs[0][0] != epochs[1][0] != epochs[2][0]
    assert epochs[0][2] == epochs[1][2] == epochs[2][2]
    assert len(epochs[0][2]) == workers
    assert os.getpid() not in epochs[0][2]
    for epoch, (indices, numbers, _) in enumerate(epochs):
        assert sorted(indices) == list(range(12))
        torch.manual_seed(epoch)  # what was drawn before makes no difference
        assert read(*plain, epoch)[:2] == (indices, numbers)
        assert read(*loader_of(2), epoch, start=4)[:2] == (indices[8:], numbers[8:])


def test_an_epoch_may_go_round_the_data_again():
    """A schedule of image sizes asks for as many batches as it likes."""

    def scheduled(workers):
        batches = ScheduledBatchSampler(RandomSampler(Draws()), [2, 3], num_batches=12)
        loader = DataLoader(Draws(), batch_sampler=batches, num_workers=workers)
        return loader, seed_batches(loader, 5)

    indices, numbers, _ = read(*scheduled(1), 1)
    assert len(indices) > 2 * 12
    assert indices[:12] != indices[12:24]
    assert read(*scheduled(0), 1)[:2] == (indices, numbers)
    later = read(*scheduled(0), 1, start=8)
    assert later[:2] == (indices[-len(later[0]) :], numbers[-len(later[0]) :])


@pytest.mark.parametrize('process', [0, 5])
def test_a_process_takes_any_seed(process):
    seed_process(42, process)
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    random_seed(42, process)  # timm's
    assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())
    largest = 2**32 - 1
    seed_process(largest + 100_003 * 90, process)
    assert np.random.rand() == np.random.RandomState((100_003 * 90 + process - 1) % 2**32).rand()


def test_kept_workers_begin_anew_after_a_pass_that_was_left():
    loader, seeded = loader_of(2)
    whole = read(loader, seeded, 1)
    seeded.set_epoch(0)
    next(iter(loader))
    assert read(loader, seeded, 1) == whole


def test_workers_do_not_stay_with_a_mixup_that_is_switched_off_outside_of_them():
    assert loader_of(1)[0].persistent_workers
    assert not loader_of(1, collate_fn=FastCollateMixup())[0].persistent_workers
    assert not loader_of(0)[0].persistent_workers
