"""CUB-200-2011 and MS-COCO in their own layouts."""

import json
import shutil

import pytest
import torch
from image_data import CLASSES, samples, write_coco, write_cub

from timm_hnc.data.counts import class_counts
from timm_hnc.data.datasets import class_names, create_dataset
from timm_hnc.errors import DataError, UsageError


@pytest.fixture(scope='module')
def cub(tmp_path_factory):
    return write_cub(tmp_path_factory.mktemp('cub'))


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp('coco'))


def birds(root, split='train', classes=3):
    return create_dataset('hnc/cub200', str(root), split, classes)


def scenes(root, split='train', classes=3):
    return create_dataset('hnc/coco', str(root), split, classes, multi_label=True)


def test_birds(cub):
    train, test = birds(cub), birds(cub / 'CUB_200_2011', 'test')
    assert [label for _, label in train] == [label for _, label, _ in samples('train')]
    assert [label for _, label in test] == [label for _, label, _ in samples('validation')]
    assert train[0][0].size == (32, 32)
    assert class_names(train, 3) == [f'{number + 1:03d}.{name}' for number, name in enumerate(CLASSES)]
    assert train.reader.boxes[:2] == [[(1.0, 2.0, 11.0, 22.5)], [(2.0, 2.0, 12.0, 22.5)]]
    assert train.reader.box_labels[0] == [0]
    assert train.filename(0) == '001.blue/blue-00-train.jpg'
    assert len(birds(cub, 'validation')) == len(test) == 25
    assert class_counts(train, 3, False)[0].tolist() == [21, 20, 18]


def test_birds_without_boxes(cub, tmp_path):
    shutil.copytree(cub, tmp_path / 'cub')
    (tmp_path / 'cub' / 'CUB_200_2011' / 'bounding_boxes.txt').unlink()
    assert birds(tmp_path / 'cub').reader.boxes is None


@pytest.mark.parametrize('name', ['images', 'image_class_labels', 'train_test_split', 'classes'])
def test_a_missing_index_file_is_named(cub, tmp_path, name):
    shutil.copytree(cub, tmp_path / 'cub')
    (tmp_path / 'cub' / 'CUB_200_2011' / f'{name}.txt').unlink()
    with pytest.raises(DataError, match=rf"{name}\.txt' cannot be read .*: CUB-200-2011 comes with it, see --data-dir"):
        birds(tmp_path / 'cub')


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        ('images', lambda text: text.replace('1 001', '1'), r"image '.*' is missing|line 1"),
        (
            'image_class_labels',
            lambda text: text.replace('1 1\n', '1 9\n', 1),
            'image 1 is of a class that classes.txt',
        ),
        ('train_test_split', lambda text: text.replace('2 1\n', '', 1), 'has no line for image 2 of images.txt'),
        (
            'bounding_boxes',
            lambda text: text.replace('3 3.0 2.0', '3 3.0', 1),
            r"bounding_boxes.txt', line 3: '3 3.0 10",
        ),
        ('classes', lambda text: text.replace('1 001.blue', '1', 1), r"classes.txt', line 1"),
    ],
)
def test_damaged_index_files(cub, tmp_path, name, change, message):
    shutil.copytree(cub, tmp_path / 'cub')
    path = tmp_path / 'cub' / 'CUB_200_2011' / f'{name}.txt'
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message):
        birds(tmp_path / 'cub')


def test_scenes(coco):
    train, test = scenes(coco), scenes(coco, 'val2014')
    assert (len(train), len(test)) == (41, 25)
    expected = torch.tensor([[float(bool(number & (1 << label))) for label in range(3)] for number in range(41)])
    torch.testing.assert_close(torch.stack([target for _, target in train]), expected)
    assert class_names(train, 3) == list(CLASSES)
    assert train.reader.boxes[5] == [(0.0, 1.0, 10.0, 21.5), (2.0, 1.0, 12.0, 21.5), (0.0, 1.0, 10.0, 21.5)]
    assert train.reader.box_labels[5] == [0, 2, 0]
    assert train.reader.boxes[0] == []
    counts, number = class_counts(train, 3, True)
    assert number == 41
    torch.testing.assert_close(counts, expected.sum(0).double())


@pytest.mark.parametrize('part', ['images', 'annotations', 'categories'])
def test_scenes_without_a_part(coco, tmp_path, part):
    damaged(coco, tmp_path, lambda content: content.pop(part))
    with pytest.raises(DataError, match=rf"instances_train2014.json' has no '{part}': it is no file of COCO's object"):
        scenes(tmp_path / 'coco')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda content: content['categories'].pop(), 'an entry lacks category 3 among its categories'),
        (lambda content: content['images'].pop(5), 'an object is in image 1005, which is not among its images'),
        (lambda content: content['annotations'][0].pop('bbox'), "an entry lacks 'bbox'"),
        (lambda content: content['images'][0].update(file_name='gone.jpg'), r"image '.*gone.jpg' is missing"),
    ],
)
def test_damaged_scenes(coco, tmp_path, change, message):
    damaged(coco, tmp_path, change)
    with pytest.raises(DataError, match=message):
        scenes(tmp_path / 'coco')


def damaged(coco, tmp_path, change):
    shutil.copytree(coco, tmp_path / 'coco')
    path = tmp_path / 'coco' / 'annotations' / 'instances_train2014.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_no_file_and_no_json(coco, tmp_path):
    with pytest.raises(DataError, match=r"instances_train2014.json' cannot be read"):
        scenes(tmp_path)
    with pytest.raises(DataError, match=r"instances_val2017.json' cannot be read"):
        scenes(coco, 'val2017')
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations' / 'instances_train2014.json').write_text('{')
    with pytest.raises(DataError, match='cannot be read'):
        scenes(tmp_path)


def test_wrong_use(cub, coco):
    for call, message in (
        (lambda: birds(cub, 'half'), "hnc/cub200 has no split 'half': use train or test"),
        (lambda: scenes(coco, 'test2014'), "hnc/coco has no split 'test2014': use train, validation, train2014"),
        (lambda: create_dataset('hnc/coco', str(coco), 'train', 3), 'pass --task multilabel'),
        (lambda: create_dataset('hnc/cub200', str(cub), 'train', 3, multi_label=True), 'leave out --task multilabel'),
        (lambda: create_dataset('hnc/cub200', None, 'train', 3), 'pass --data-dir DIR'),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    with pytest.raises(DataError, match="labels outside the model's range 0 to 1, such as 2"):
        birds(cub, classes=2)
