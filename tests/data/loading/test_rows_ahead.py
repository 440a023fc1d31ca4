"""Rows that are read several at a time are those that timm's reader reads one by one."""

import pickle

import datasets
import numpy as np
import pytest
import timm.data
from image_data import png, samples, write_parquet
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

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
    'holdout of a part': (lambda dataset: Selection(Subset(dataset, ORDER), ORDER[:50]), ORDER[ORDER[:50]]),
    'noise and holdout': (
        lambda dataset: Selection(NoisyLabels(dataset, LabelNoise('symmetric', 0.0), 3, 0), ORDER[:50]),
        ORDER[:50],
    ),
}


class Counted(Wrapper):
    """Notes which rows are read together; rows 4, 5 and 31 may be damaged."""

    def __init__(self, dataset):
        self.dataset, self.read, self.damaged = dataset, [], False

    def __getitem__(self, index):
        self.read.append([index])
        return self.row(index)

    def __getitems__(self, indices):
        self.read.append(list(indices))
        return [self.row(index) for index in indices]

    def row(self, index):
        broken = {'image': {'bytes': b'none', 'path': None}} if self.damaged and index in (4, 5, 31) else {}
        return self.dataset[index] | broken


@pytest.fixture
def opened(tmp_path):
    """Ours, what it reads, and timm's own data set."""
    name, cache = f'hfds/{write_parquet(tmp_path / "set")}', str(tmp_path / 'cache')
    dataset = create_dataset(name, cache, 'train', num_classes=3)
    rows = dataset.reader.unchecked.dataset
    rows._narrow = Counted(rows._narrow)
    return dataset, rows._narrow, timm.data.create_dataset(name, root=cache, split='train')


def pixels(sample):
    image, label = sample
    return np.asarray(image).tobytes(), label


def batch_of(dataset, indices):
    return [pixels(sample) for sample in read_rows_ahead(dataset).__getitems__(indices)]


@pytest.mark.parametrize('wrapped', WRAPPED)
def test_samples_are_the_same_and_no_row_is_read_by_itself(opened, wrapped):
    dataset, counted, theirs = opened
    wrap, places = WRAPPED[wrapped]
    ours = read_rows_ahead(wrap(dataset))
    shuffled = [index for index in ORDER.tolist() if index < len(places)]
    batches = [shuffled[:40], [3, 3, 8, 3], shuffled[40:]]
    counted.read.clear()
    size = len(pickle.dumps(ours.rows))
    found = [pixels(sample) for batch in DataLoader(ours, batch_sampler=batches, collate_fn=list) for sample in batch]
    expected = [int(places[index]) for batch in batches for index in batch]
    assert found == [pixels(theirs[index]) for index in expected]
    assert counted.read == [expected[:32], expected[32:40], expected[40:43:2], expected[44:]]
    assert pixels(ours[7]) == pixels(theirs[int(places[7])]), 'and by index'
    counted.read.clear()
    assert len(pickle.dumps(ours.rows)) == size, 'no row is kept'


def test_the_image_in_place_of_a_damaged_one_is_timms(opened):
    """Also where the row of the next one has been read already, or comes with others later."""
    dataset, counted, theirs = opened
    theirs.reader.dataset = Counted(theirs.reader.dataset)
    counted.damaged = theirs.reader.dataset.damaged = True
    batch = [5, *range(10, 50), 4, 31]
    assert batch_of(dataset, batch) == [pixels(theirs[index]) for index in batch]
    assert counted.read[:2] == [batch[:32], [6]]


def test_rows_that_cannot_be_read_together_are_read_by_themselves(opened):
    dataset, _, theirs = opened
    batch = [3, 7, -1, *range(20, 40)]
    expected = [pixels(theirs[index]) for index in batch]
    ours = read_rows_ahead(dataset)
    ours.rows.expect([*batch, IMAGES])
    assert [pixels(ours[index]) for index in batch] == expected
    with pytest.raises(IndexError):
        ours.__getitems__([3, IMAGES])


def test_columns_that_the_reader_does_not_look_at_are_not_decoded(tmp_path):
    """timm's reader alone decodes a mask as well, and skips the image where that is damaged."""
    masks = [{'bytes': png(Image.new('L', (32, 32))), 'path': None} for _ in range(IMAGES)]
    masks[40] = {'bytes': masks[40]['bytes'][:40], 'path': None}
    columns = {'image': [], 'objects': []}
    for _, label, content in samples('train'):
        columns['image'].append({'bytes': content, 'path': None})
        columns['objects'].append({'category': label})
    features = {'image': datasets.Image(), 'mask': datasets.Image(), 'objects': {'category': datasets.Value('int64')}}
    table = datasets.Dataset.from_dict(columns | {'mask': masks}, features=datasets.Features(features))
    (tmp_path / 'set').mkdir()
    table.to_parquet(tmp_path / 'set' / 'train-0.parquet')
    dataset = create_dataset(
        f'hfds/{tmp_path / "set"}', str(tmp_path / 'cache'), 'train', num_classes=3, target_key='objects/category'
    )
    assert [label for _, label in batch_of(dataset, range(IMAGES))] == [label for _, label, _ in samples('train')]
    assert pixels(dataset[40])[1] == samples('train')[40][1]


class Repeated(Dataset):
    """A data set of somebody else, whose samples have places of their own."""

    def __init__(self, dataset):
        self.dataset, self.indices = dataset, {}

    def __getitem__(self, index):
        return self.dataset[index % IMAGES]


def test_other_data_sets_are_left_alone(opened):
    dataset, _, theirs = opened
    digits = create_dataset('hnc/digits', None, 'validation', num_classes=10)
    repeated = Repeated(dataset)
    for each in (digits, repeated, Subset(repeated, [60]), theirs):
        assert read_rows_ahead(each) is each
    assert not isinstance(theirs.reader.dataset, RowsAhead)
