"""Rows that are read several at a time are those that timm's reader reads one by one."""

import numpy as np
import pytest
import timm.data
from image_data import write_parquet
from torch.utils.data import DataLoader, Subset

from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.holdout import Selection
from timm_hnc.data.loading.rows_ahead import RowsAhead, read_rows_ahead
from timm_hnc.data.loading.wrapped_dataset import Wrapper
from timm_hnc.data.noise import LabelNoise, NoisyLabels

IMAGES = 59
ORDER = np.random.default_rng(2).permutation(IMAGES)
WRAPPED = {
    'as it is': (lambda dataset: dataset, range(IMAGES)),
    'holdout': (lambda dataset: Selection(dataset, ORDER[:50]), ORDER[:50]),
    'holdout of a part': (lambda dataset: Selection(Subset(dataset, ORDER.tolist()), ORDER[:50]), ORDER[ORDER[:50]]),
    'noise and holdout': (
        lambda dataset: Selection(NoisyLabels(dataset, LabelNoise('symmetric', 0.0), 3, 0), ORDER[:50]),
        ORDER[:50],
    ),
}


class Counted(Wrapper):
    """A data set that notes which rows are read together."""

    def __init__(self, dataset):
        self.dataset, self.read = dataset, []

    def __getitem__(self, index):
        self.read.append([index])
        return self.dataset[index]

    def __getitems__(self, indices):
        self.read.append(indices)
        return self.dataset.__getitems__(indices)


class Damaged(Wrapper):
    """A data set whose rows 4 and 5, and 31, hold no images."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, index):
        row = self.dataset[index]
        return row | {'image': {'bytes': b'none', 'path': None}} if index in (4, 5, 31) else row

    def __getitems__(self, indices):
        return [self[index] for index in indices]


@pytest.fixture
def counted(tmp_path):
    """Ours, what it reads, and timm's own data set."""
    name, cache = f'hfds/{write_parquet(tmp_path / "set")}', str(tmp_path / 'cache')
    dataset = create_dataset(name, cache, 'train', num_classes=3)
    rows = dataset.reader.unchecked.dataset
    assert isinstance(rows, RowsAhead)
    rows.dataset = Counted(rows.dataset)
    return dataset, rows.dataset, timm.data.create_dataset(name, root=cache, split='train')


def pixels(sample):
    image, label = sample
    return np.asarray(image).tobytes(), label


@pytest.mark.parametrize('wrapped', WRAPPED)
def test_samples_are_the_same_and_no_row_is_read_by_itself(counted, wrapped):
    dataset, read, theirs = counted
    wrap, places = WRAPPED[wrapped]
    ours = read_rows_ahead(wrap(dataset))
    shuffled = [index for index in ORDER.tolist() if index < len(places)]
    batches = [shuffled[:40], [3, 3, 3, 8], shuffled[40:]]
    read.read.clear()
    found = [pixels(sample) for batch in DataLoader(ours, batch_sampler=batches, collate_fn=list) for sample in batch]
    expected = [int(places[index]) for batch in batches for index in batch]
    assert found == [pixels(theirs[index]) for index in expected]
    assert read.read == [expected[:32], expected[32:40], expected[40:44], expected[44:]]
    assert pixels(ours[7]) == pixels(theirs[int(places[7])]), 'and by index'


def test_the_image_in_place_of_a_damaged_one_is_timms(counted):
    """Also where the row of the next one has been read already, or comes with others later."""
    dataset, read, theirs = counted
    read.dataset, theirs.reader.dataset = Damaged(read.dataset), Damaged(theirs.reader.dataset)
    batch = [5, *range(10, 50), 4, 31]
    assert [pixels(sample) for sample in read_rows_ahead(dataset).__getitems__(batch)] == [
        pixels(theirs[index]) for index in batch
    ]
    assert read.read[:2] == [batch[:32], [6]]


def test_other_data_sets_are_left_alone():
    dataset = create_dataset('hnc/digits', None, 'validation', num_classes=10)
    assert read_rows_ahead(dataset) is dataset
