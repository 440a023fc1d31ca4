"""CUB-200-2011, Tiny-ImageNet and MS-COCO in their own layouts."""

import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from image_data import CLASSES, samples, write_coco, write_cub, write_tiny_imagenet
from PIL import Image

from timm_hnc.data.class_names import class_names
from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.labels import class_counts
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


def test_classes_are_counted_by_their_numbers(cub, tmp_path):
    change(cub, tmp_path, 'classes', lambda text: '\n'.join(reversed(text.splitlines())))
    shuffled = birds(tmp_path / 'cub')
    assert class_names(shuffled, 3) == class_names(birds(cub), 3)
    assert shuffled.reader.targets == birds(cub).reader.targets


@pytest.mark.parametrize('name', ['images', 'image_class_labels', 'train_test_split', 'classes'])
def test_a_missing_index_file_is_named(cub, tmp_path, name):
    shutil.copytree(cub, tmp_path / 'cub')
    (tmp_path / 'cub' / 'CUB_200_2011' / f'{name}.txt').unlink()
    message = one_line(lambda: birds(tmp_path / 'cub'))
    assert re.search(rf"CUB_200_2011/{name}\.txt' is missing: CUB-200-2011 comes with it, .* see --data-dir", message)


@pytest.mark.parametrize(
    ('name', 'old', 'new', 'message'),
    [
        ('images', '1 001.blue/blue-00', '1 001.blue/gone', "image '.*/001.blue/gone-train.jpg' is missing"),
        ('images', '1 001.blue/blue-00-train.jpg', '1', r"images.txt', line 1: '1' is not what"),
        ('images', '1 001.blue', 'one 001.blue', r"images.txt', line 1: 'one 001.blue/blue-00-train.jpg' is not what"),
        (
            'images',
            '2 001.blue/blue-01-train.jpg\n',
            '',
            'images.txt. has no line for image 2 of image_class_labels.txt',
        ),
        ('image_class_labels', '1 1\n', '1 9\n', r"image_class_labels.txt', line 1: '1 9' is not what"),
        ('image_class_labels', '1 1\n', '1 blue\n', r"image_class_labels.txt', line 1: '1 blue' is not what"),
        ('image_class_labels', '2 1\n', '1 1\n', r"image_class_labels.txt', line 2: 1 is there a second time"),
        ('train_test_split', '2 1\n', '', 'train_test_split.txt. has no line for image 2 of images.txt'),
        ('train_test_split', '2 1\n', '2 2\n', r"train_test_split.txt', line 2: '2 2' is not what"),
        ('bounding_boxes', '3 3.0 2.0', '3 3.0', r"bounding_boxes.txt', line 3: '3 3.0 10"),
        ('bounding_boxes', '3 3.0 2.0', '3 nan 2.0', r"bounding_boxes.txt', line 3: '3 nan 2"),
        ('bounding_boxes', '1 1.0 2.0 10.0 20.5\n', '', 'bounding_boxes.txt. has no line for image 1 of images.txt'),
        ('classes', '1 001.blue', '1', r"classes.txt', line 1"),
    ],
)
def test_damaged_index_files(cub, tmp_path, name, old, new, message):
    change(cub, tmp_path, name, lambda text: text.replace(old, new, 1))
    found = one_line(lambda: birds(tmp_path / 'cub'))
    assert re.search(message, found)
    assert 'see --data-dir' in found


def change(cub, tmp_path, name, edit):
    shutil.copytree(cub, tmp_path / 'cub')
    path = tmp_path / 'cub' / 'CUB_200_2011' / f'{name}.txt'
    text = path.read_text()
    assert edit(text) != text
    path.write_text(edit(text))


def one_line(call):
    with pytest.raises(DataError) as caught:
        call()
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_scenes(coco):
    train, test = scenes(coco), scenes(coco, 'val2014')
    assert (len(train), len(test)) == (41, 25)
    expected = torch.tensor([[float(bool(number & (1 << label))) for label in range(3)] for number in range(41)])
    torch.testing.assert_close(torch.stack([target for _, target in train]), expected)
    assert class_names(train, 3) == list(CLASSES)
    assert train.reader.boxes[5] == [(2.0, 1.0, 12.0, 21.5), (0.0, 1.0, 10.0, 21.5)]
    assert train.reader.box_labels[5] == [2, 0]
    assert train.reader.boxes[0] == []
    counts, number = class_counts(train, 3, True)
    assert number == 41
    torch.testing.assert_close(counts, expected.sum(0).double())


def test_an_object_without_area_is_present_but_has_no_box(coco, tmp_path):
    damaged(coco, tmp_path, lambda content: content['annotations'][0].update(bbox=[1.0, 2.0, 3.0, 0.0]))
    train = scenes(tmp_path / 'coco')
    assert train[1][1].tolist() == [1, 0, 0]
    assert (train.reader.boxes[1], train.reader.box_labels[1]) == ([], [])


def test_train_and_validation_are_of_the_same_year(coco, tmp_path):
    shutil.copytree(coco, tmp_path / 'coco')
    root = tmp_path / 'coco'

    def give(old, new):
        (root / old).rename(root / new)
        (root / 'annotations' / f'instances_{old}.json').rename(root / 'annotations' / f'instances_{new}.json')

    give('train2014', 'train2017')
    # most of val2014 is in train2017
    assert "instances_train2014.json' is missing: see --data-dir, --train-split" in one_line(lambda: scenes(root))
    assert (len(scenes(root, 'train2017')), len(scenes(root, 'validation'))) == (41, 25)
    give('val2014', 'val2017')
    assert (len(scenes(root)), len(scenes(root, 'validation'))) == (41, 25)
    shutil.copytree(coco, root, dirs_exist_ok=True)
    assert scenes(root).reader.folder == root / 'train2014'
    assert scenes(root, 'validation').reader.folder == root / 'val2014'


@pytest.mark.parametrize('part', ['images', 'annotations', 'categories'])
def test_scenes_without_a_part(coco, tmp_path, part):
    damaged(coco, tmp_path, lambda content: content.pop(part))
    found = one_line(lambda: scenes(tmp_path / 'coco'))
    assert f"instances_train2014.json' has no '{part}': it is no file of COCO's object annotations" in found


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['categories'].pop(), 'has category_id 3, which is not among its categories: unpack'),
        (lambda c: c['images'].pop(5), 'has image_id 1005, which is not among its images: unpack'),
        (
            lambda c: c['annotations'][0].pop('bbox'),
            "is damaged, an entry lacks 'bbox': unpack COCO's annotations again",
        ),
        (lambda c: c['annotations'][0].update(bbox=[1, 2, 3]), 'has the box [1, 2, 3], not x, y, width and height'),
        (lambda c: c['annotations'].append(3), 'is damaged, '),
        (lambda c: c['categories'].append(c['categories'][0]), 'two of its categories have one id'),
        (lambda c: c['categories'].clear(), "has no 'categories'"),
        (lambda c: c['images'][0].update(file_name='gone.jpg'), "gone.jpg' is missing"),
    ],
)
def test_damaged_scenes(coco, tmp_path, change, message):
    damaged(coco, tmp_path, change)
    assert message in one_line(lambda: scenes(tmp_path / 'coco'))


def damaged(coco, tmp_path, change):
    shutil.copytree(coco, tmp_path / 'coco')
    path = tmp_path / 'coco' / 'annotations' / 'instances_train2014.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_no_file_and_no_json(coco, tmp_path):
    assert "instances_train2014.json' is missing: see --data-dir" in one_line(lambda: scenes(tmp_path))
    assert "instances_val2017.json' is missing: see --data-dir" in one_line(lambda: scenes(coco, 'val2017'))
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations' / 'instances_train2014.json').write_text('{')
    assert "instances_train2014.json' is no JSON (Expecting" in one_line(lambda: scenes(tmp_path))
    (tmp_path / 'annotations' / 'instances_train2014.json').write_bytes(b'\xff\xfe')
    assert "instances_train2014.json' cannot be read ('utf-8'" in one_line(lambda: scenes(tmp_path))


def test_wrong_use(cub, coco):
    for call, message in (
        (lambda: birds(cub, 'half'), "hnc/cub200 has no split 'half': use train or test"),
        (lambda: scenes(coco, 'test2014'), "hnc/coco has no split 'test2014': use train, validation, train2014"),
        (lambda: create_dataset('hnc/coco', str(coco), 'train', 3), 'pass --task multilabel'),
        (lambda: create_dataset('hnc/cub200', str(cub), 'train', 3, multi_label=True), 'pass --task classification'),
        (
            lambda: create_dataset('hnc/coco', str(coco), 'train', 3, multi_label=True, target_format='multihot'),
            '--target-format multihot: not for hnc/coco',
        ),
        (lambda: create_dataset('hnc/cub200', None, 'train', 3), 'pass --data-dir DIR'),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    with pytest.raises(DataError, match="labels outside the model's range 0 to 1, such as 2"):
        birds(cub, classes=2)
    with pytest.raises(DataError, match="labels outside the model's range 0 to 1, such as 2"):
        scenes(coco, classes=2)


def test_scenes_with_one_category(coco, tmp_path):
    def keep_red(content):
        content['categories'] = content['categories'][:1]
        content['annotations'] = [entry for entry in content['annotations'] if entry['category_id'] == 90]

    damaged(coco, tmp_path, keep_red)
    assert class_names(scenes(tmp_path / 'coco', classes=1), 1) == ['red']


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return write_tiny_imagenet(tmp_path_factory.mktemp('tiny'))


def test_tiny_imagenet(tiny):
    train = create_dataset('hnc/tiny-imagenet', str(tiny), 'train', 3)
    assert train.reader.class_to_idx == {'n01': 0, 'n02': 1, 'n03': 2}
    for split, name in (('train', 'train'), ('validation', 'validation'), ('val', 'validation')):
        found = create_dataset('hnc/tiny-imagenet', str(tiny / 'tiny-imagenet-200'), split, 3)
        expected = samples(name)
        assert found.reader.targets == [label for _, label, _ in expected]
        for index, (_, label, content) in enumerate(expected):
            # corners in the files are the object's first and last pixel
            assert found.reader.boxes[index] == [(index % 5, 2, 21, 24)]
            assert found.reader.box_labels[index] == [label]
            image, target = found[index]
            assert target == label
            close = np.asarray(image).astype(int) - np.asarray(Image.open(io.BytesIO(content)))
            assert abs(close).mean() < 30, 'the same image, but for JPEG'


@pytest.mark.parametrize(
    ('file', 'content', 'message'),
    [
        ('wnids.txt', None, "wnids.txt' is missing"),
        ('val/val_annotations.txt', 'val_0.JPEG\tn09\t0\t0\t5\t5', 'class n09 is not in wnids.txt'),
        ('val/val_annotations.txt', 'val_0.JPEG\tn01\t0\t0\t5', 'line 1: expected a name and four numbers'),
        ('val/val_annotations.txt', 'val_99.JPEG\tn01\t0\t0\t5\t5', "val_99.JPEG' is missing"),
    ],
)
def test_damaged_tiny_imagenet(tiny, tmp_path, file, content, message):
    shutil.copytree(tiny, tmp_path / 'tiny')
    path = tmp_path / 'tiny' / 'tiny-imagenet-200' / file
    path.unlink() if content is None else path.write_text(content)
    assert message in one_line(lambda: create_dataset('hnc/tiny-imagenet', str(tmp_path / 'tiny'), 'validation', 3))


def test_tiny_imagenet_has_no_labels_for_its_test_images(tiny):
    with pytest.raises(UsageError, match="no split 'test' with labels: use train or validation"):
        create_dataset('hnc/tiny-imagenet', str(tiny), 'test', 3)
