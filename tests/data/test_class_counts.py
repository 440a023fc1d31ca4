"""Counts of classes against counting while reading every image."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_fixtures import images, multi_label, parquet, shards, tar_files
from image_data import png, samples, square, write_coco, write_cub
from torchvision.datasets import MNIST, QMNIST

from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.holdout import split_off
from timm_hnc.data.labels import class_counts, sample_labels
from timm_hnc.data.noise import LabelNoise, NoisyLabels
from timm_hnc.data.targets import ClassIndex
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
    check(create_dataset('torch/image_folder', str(images), 'train', 3))
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


def test_one_column_a_class_and_pictures_beside_them(tmp_path, monkeypatch):
    dataset = write_columns(tmp_path, 'a,b,objects/there', multi_label=True)
    assert check(dataset, multi_label=True).tolist() == [4, 3, 2]
    single = write_columns(tmp_path, 'a')
    monkeypatch.setattr('datasets.Image.decode_example', refuse)
    assert class_counts(dataset, 3, True)[0].tolist() == [4, 3, 2]
    assert class_counts(single, 3, False)[0].tolist() == [3, 4, 0]


def test_a_class_map(tmp_path):
    for name, classes in (('map', {0: 2, 1: 1}), ('short', {0: 2})):
        (tmp_path / f'{name}.pkl').write_bytes(pickle.dumps(classes))
    assert check(write_columns(tmp_path, 'a', class_map=str(tmp_path / 'map.pkl'))).tolist() == [0, 4, 3]
    # labels of 0 to 6 in the file, folded into three classes
    (tmp_path / 'fold.pkl').write_bytes(pickle.dumps({number: number // 3 for number in range(7)}))
    assert check(write_columns(tmp_path, 'number', class_map=str(tmp_path / 'fold.pkl'))).tolist() == [3, 3, 1]
    with pytest.raises(DataError, match='--class-map: has 0 but not 1, a label of the data; of numbers, give a '):
        write_columns(tmp_path, 'a', class_map=str(tmp_path / 'short.pkl'))


def refuse(*_, **__):
    raise AssertionError('an image was decoded')


def write_columns(tmp_path, target_key, **kwargs):
    """Seven images with binary columns, and a picture beside that no count needs."""
    from datasets import Dataset, Features, Image, Value

    columns = {
        'image': [{'bytes': png(square(np.random.default_rng(0), {0})), 'path': None}] * 7,
        'mask': [{'bytes': samples('train')[0][2], 'path': None}] * 7,
        'a': [1, 0, 1, 0, 1, 0, 1],
        'b': [1, 1, 1, 0, 0, 0, 0],
        'number': list(range(7)),
        'objects': [{'there': number % 4 == 2} for number in range(7)],
    }
    integers = {name: Value('int64') for name in ('a', 'b', 'number')}
    features = {'image': Image(), 'mask': Image(), **integers, 'objects': {'there': Value('bool')}}
    if not (tmp_path / 'set').is_dir():
        (tmp_path / 'set' / 'data').mkdir(parents=True)
        table = Dataset.from_dict(columns, features=Features(features))
        table.to_parquet(str(tmp_path / 'set' / 'data' / 'train-00000-of-00001.parquet'))
    options = dict(input_key='image', target_key=target_key, **kwargs)
    return create_dataset(f'hfds/{tmp_path / "set"}', str(tmp_path / 'cache'), 'train', 3, **options)


def test_published_sets(tmp_path):
    birds = create_dataset('hnc/cub200', str(write_cub(tmp_path / 'cub')), 'train', 3)
    assert check(birds).tolist() == [21, 20, 18]
    check(split_off(NoisyLabels(birds, LabelNoise('asymmetric', 0.5), 3, seed=3), 0.2, seed=0)[0])
    scenes = create_dataset('hnc/coco', str(write_coco(tmp_path / 'coco')), 'train', 3, multi_label=True)
    assert check(scenes, multi_label=True).tolist() == [20, 20, 20]
    check(split_off(scenes, 0.2, seed=0)[0], multi_label=True)


@pytest.mark.parametrize('kind', [MNIST, QMNIST])
def test_torchvision_labels_as_a_tensor(kind):
    dataset = kind.__new__(kind)
    dataset.targets = torch.tensor([2, 0, 2, 1, 2])
    if kind is QMNIST:  # the digit, then who wrote it and where
        dataset.targets = torch.stack([dataset.targets, *(torch.full((5,), 9) for _ in range(7))], 1)
    dataset.target_transform = ClassIndex(3)
    assert class_counts(dataset, 3, False)[0].tolist() == [1, 1, 3]


@pytest.mark.parametrize('labels', [[2, 0, 2, 1], [[0, 1, 1], [1, 0, 0]]])
def test_labels_of_a_data_set_without_a_target_transform(labels):
    several = isinstance(labels[0], list)
    dataset = SimpleNamespace(targets=labels, target_transform=None)
    for plain in (dataset, SimpleNamespace(targets=labels)):
        assert class_counts(plain, 3, several)[0].tolist() == ([1, 1, 1] if several else [1, 1, 2])
        with pytest.raises(DataError, match='--num-classes'):
            class_counts(plain, 2, several)


def test_labels_that_are_no_class_index(multi_label):
    dataset = create_dataset(multi_label[1], multi_label[3], 'train', 3, target_key='labels')
    for wrong in (dataset, NoisyLabels(dataset, LabelNoise('symmetric', 0.5), 3, seed=0)):
        with pytest.raises(DataError, match='not one class index: for several labels pass --task multilabel'):
            class_counts(wrong, 3, False)


@pytest.mark.parametrize('kind', ['wds', 'hfids'])
def test_streams_are_not_counted(shards, parquet, kind):
    name, root = ('wds/x', str(shards)) if kind == 'wds' else (parquet[1].replace('hfds/', 'hfids/'), parquet[3])
    dataset = create_dataset(name, root, 'train', 3, is_training=True, batch_size=4, num_samples=59)
    assert sample_labels(dataset) is None
    with pytest.raises(DataError, match='cannot be counted without its images: give --class-stats FILE'):
        class_counts(dataset, 3, False)
