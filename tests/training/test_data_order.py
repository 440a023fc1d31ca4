"""Which images every process reads in which batch: a function of --seed and the epoch."""

import pytest
import torch
from running import SMALL

from timm_hnc.commands.options.train_options import parse_train_options
from timm_hnc.data.loading.seeded_batches import mixed, seed_batches, seed_generators
from timm_hnc.training.setup.loaders import create_train_loader, open_train_dataset

CONFIG = {'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bilinear'}
SHARED = {
    'plain': [],
    'repeats': ['--aug-repeats', '2'],
    'sizes': ['--train-img-sizes', '32', '64'],
}


@pytest.fixture
def order(images, monkeypatch):
    """The batches of an epoch of one of several processes, each a list of indices."""

    def read(seed, epoch=0, rank=0, processes=2, argv=(), start=0):
        monkeypatch.setenv('WORLD_SIZE', str(processes))
        monkeypatch.setattr('torch.distributed.get_world_size', lambda group=None: processes)
        monkeypatch.setattr('torch.distributed.get_rank', lambda group=None: rank)
        argv = ['--data-dir', str(images), *SMALL, '--seed', str(seed), *argv]
        options, *_ = parse_train_options(argv)
        dataset = open_train_dataset(options, 3, 3)
        loader = create_train_loader(dataset, options, CONFIG, torch.device('cpu'), processes > 1, None)
        seeded = seed_batches(loader, mixed(seed, rank))
        for part in (loader.batch_sampler, loader.sampler):
            if hasattr(part, 'set_epoch'):
                part.set_epoch(epoch)
        seeded.start = start
        batches = [batch.indices for batch in loader.batch_sampler]
        # scheduled sizes stand behind the indices
        batches = [[index[0] if isinstance(index, tuple) else index for index in batch] for batch in batches]
        assert [seeded.samples(number) for number in range(start, start + len(batches))] == batches
        return batches

    return read


@pytest.mark.parametrize('kind', SHARED)
def test_the_order_over_several_processes_follows_from_seed_and_epoch(order, kind):
    argv = SHARED[kind]
    first = order(1, argv=argv)
    assert order(1, argv=argv) == first
    orders = [first, order(2, argv=argv), order(1, 1, argv=argv), order(2, 1, argv=argv), order(2**32 - 1, argv=argv)]
    assert all(orders[i] != orders[k] for i in range(5) for k in range(i))
    for epoch in (0, 3):  # as a run that goes on inside an epoch
        assert order(1, epoch, argv=argv, start=2) == order(1, epoch, argv=argv)[2:]
    shares = [[index for batch in order(5, 2, rank, argv=argv) for index in batch] for rank in range(2)]
    # every process takes its share of one order
    common = set(shares[0]) & set(shares[1])
    assert shares[0] == shares[1] if kind == 'repeats' else not common


def test_the_order_of_one_process_is_drawn_from_seed_and_epoch_as_it_was(order):
    for seed, epoch in ((1, 0), (1, 1), (7, 0)):
        seed_generators(mixed(seed, 0), epoch, -3)
        generator = torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
        expected = torch.randperm(59, generator=generator)[:56].view(7, 8)
        assert order(seed, epoch, processes=1) == expected.tolist()
