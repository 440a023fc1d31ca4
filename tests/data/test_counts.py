"""Counts of classes against counting while reading every image."""

import pytest
import torch
from data_fixtures import images, multi_label, parquet, shards, tar_files

from timm_hnc.data.counts import class_counts
from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.holdout import split_off
from timm_hnc.data.noise import LabelNoise, NoisyLabels
from timm_hnc.errors import DataError

__all__ = ['images', 'multi_label', 'parquet', 'shards', 'tar_files']


def counted_by_reading(dataset):
    targets = [torch.as_tensor(dataset[index][1]) for index in range(len(dataset))]
    rows = [target if target.ndim else torch.eye(3)[target] for target in targets]
    return torch.stack(rows).sum(0).double()


def check(dataset, multi_label=False):
    counts, samples = class_counts(dataset, 3, multi_label)
    assert samples == len(dataset)
    torch.testing.assert_close(counts, counted_by_reading(dataset))
    return counts


def test_one_label(images, parquet, tar_files):
    folder = create_dataset('', str(images), 'train', 3)
    assert check(folder).tolist() == [21, 20, 18]
    check(create_dataset('', str(tar_files / 'train.tar'), 'train', 3))
    check(create_dataset(parquet[1], parquet[3], 'train', 3, input_key='image', target_key='label'))
    noisy = NoisyLabels(folder, LabelNoise('symmetric', 0.5), 3, seed=1)
    assert check(noisy).tolist() != [21, 20, 18]
    assert check(split_off(noisy, 0.4, seed=2)[0]).sum() == 35


def test_ten_digits():
    counts, samples = class_counts(create_dataset('hnc/digits', None, 'train', 10), 10, False)
    assert counts.sum() == samples == 1437


@pytest.mark.parametrize('how', [{'target_key': 'labels'}, {'target_key': 'vector', 'target_format': 'multihot'}])
def test_several_labels(multi_label, how):
    check(create_dataset(multi_label[1], multi_label[3], 'train', 3, multi_label=True, **how), multi_label=True)


def test_streams_are_not_counted(shards):
    dataset = create_dataset('wds/x', str(shards), 'train', 3, is_training=True, batch_size=4)
    with pytest.raises(DataError, match='cannot be counted without its images: give --class-stats FILE'):
        class_counts(dataset, 3, False)
