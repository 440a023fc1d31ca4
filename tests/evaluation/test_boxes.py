"""Boxes of data sets, and validate.py with them."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from image_data import png, square, write_cub
from PIL import Image, ImageOps
from running import NARROW, ROOT, SMALL, failure, forget_run, result_of, run_script, train, validate
from timm.data import create_transform
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

import timm_hnc
from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.holdout import split_off
from timm_hnc.data.loading.wrapped_dataset import WrappedDataset
from timm_hnc.data.objects.boxes import BoxSource
from timm_hnc.errors import DataError, UsageError

HERE = ['--workers', '0', '--device', 'cpu', '-b', '7']
STATISTICS = {'mean': (0.0, 0.0, 0.0), 'std': (1.0, 1.0, 1.0)}


@pytest.fixture(scope='module')
def birds(tmp_path_factory):
    return write_cub(tmp_path_factory.mktemp('birds'))


def write_objects(root, boxes):
    features = Features(
        {
            'image': ImageFeature(),
            'label': ClassLabel(names=['air', 'boat', 'car']),
            'things': {'bbox': List(List(Value('float32'))), 'category': List(Value('int64'))},
        }
    )
    rng, count = np.random.default_rng(0), len(boxes)
    columns = {
        'image': [{'bytes': png(square(rng, {2})), 'path': None} for _ in range(count)],
        'label': [index % 3 for index in range(count)],
        'things': [
            None if each is None else {'bbox': each, 'category': [index % 3] * len(each)}
            for index, each in enumerate(boxes)
        ],
    }
    (root / 'data').mkdir(parents=True)
    for split in ('train', 'validation'):
        table = Dataset.from_dict(columns, features=features)
        table.to_parquet(str(root / 'data' / f'{split}-00000-of-00001.parquet'))
    return ['--dataset', f'hfds/{root}', '--data-dir', str(root / 'cache')]


def test_boxes_of_both_kinds_of_data_sets(birds, tmp_path):
    cub = create_dataset('hnc/cub200', str(birds), 'train', 3)
    assert BoxSource(cub)[1].boxes.tolist() == [[2, 2, 12, 22.5]]
    held = split_off(cub, 0.3, seed=1)[1]
    assert BoxSource(held)[0].boxes.tolist() == BoxSource(cub)[held.indices[0]].boxes.tolist()
    assert BoxSource(held).image_size(0) == (32, 32)
    within = Subset(WrappedDataset(Subset(held, [1, 0])), [1])
    assert BoxSource(within)[0].boxes.tolist() == BoxSource(held)[0].boxes.tolist()
    name = write_objects(tmp_path / 'set', [[[1, 2, 10, 20]], [], [[3, 3, 5, 5], [1, 1, 9, 9]], None])
    objects = create_dataset(name[1], name[3], 'train', 3)
    assert BoxSource(objects, 'things')[2].boxes.tolist() == [[3, 3, 5, 5], [1, 1, 9, 9]]
    assert BoxSource(objects, 'things', 'xywh')[0].boxes.tolist() == [[1, 2, 11, 22]]
    assert len(BoxSource(objects, 'things')[1].boxes) == 0
    assert len(BoxSource(objects, 'things')[3].boxes) == 0
    with pytest.raises(UsageError, match="no boxes 'objects' in the data set, its columns are image, label, things"):
        BoxSource(objects)
    with pytest.raises(UsageError, match='--boxes-key things: does nothing, the boxes are in no column'):
        BoxSource(cub, 'things')
    plain = timm.data.create_dataset(name[1], root=name[3], split='train')  # with timm's own reader
    assert BoxSource(plain, 'things').image_size(1) == BoxSource(objects, 'things').image_size(1) == (32, 32)


def test_a_class_map_is_that_of_the_boxes_too(tmp_path):
    name = write_objects(tmp_path / 'set', [[[1, 2, 10, 20]], [[3, 3, 5, 5], [1, 1, 9, 9]], [[2, 2, 7, 7]]])
    for class_map in ({'car': 0, 'boat': 1, 'air': 2}, {0: 2, 1: 1, 2: 0}):
        objects = create_dataset(name[1], name[3], 'train', 3, class_map=class_map)
        source = BoxSource(objects, 'things')
        labels = [source[index].labels.tolist() for index in range(3)]
        assert labels == [[2], [1, 1], [0]]
        assert [each[0] for each in labels] == [objects.reader[index][1] for index in range(3)]
    del objects.reader.class_to_idx[0]
    assert source[0].labels.tolist() == [-1]


@pytest.mark.parametrize('box', [[5, 5, 5, 9], [-7, 1, 4, 4], [9, 2, 3, 8]])
def test_boxes_that_cannot_be(tmp_path, box):
    name = write_objects(tmp_path / 'set', [[box], [], []])
    with pytest.raises(DataError, match=r'sample 0 has the box .* see --boxes-format'):
        BoxSource(create_dataset(name[1], name[3], 'train', 3), 'things')[0]


def test_boxes_that_end_outside(tmp_path, capsys):
    data = write_objects(tmp_path / 'set', [[[1, 1, 30, 33]], [[4, 4, 40, 9]], []])
    run = train(*data, *SMALL, '-b', '2', '--output', tmp_path, '--experiment', 'run')
    argv = ['validate', '--checkpoint', run, *HERE, '--cam-boxes', '--boxes-key', 'things']
    code, line = failure(capsys, *argv)
    assert code == 1
    assert 'sample 1 has the box [4.0, 4.0, 40.0, 9.0], which ends outside the image of 32 x 32 pixels' in line


def test_boxes_need_the_order_of_the_images(birds):
    data = create_dataset('hnc/cub200', str(birds), 'test', 3)
    data.transform = create_transform((3, 32, 32))
    forget_run()
    with pytest.raises(UsageError, match='--cam-boxes: the loader shuffles or has a sampler of its own'):
        timm_hnc.evaluate(
            timm.create_model('test_resnet', num_classes=3, **NARROW),
            DataLoader(data, 8, shuffle=True),
            device='cpu',
            cam_boxes=True,
        )


@pytest.mark.parametrize(
    ('transform', 'message'),
    [
        (
            v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Resize(16), v2.CenterCrop(16)]),
            'ToImage',
        ),
        (v2.Compose([v2.RandomHorizontalFlip(1.0), v2.Resize((32, 32)), v2.PILToTensor()]), 'RandomHorizontalFlip'),
        (v2.Compose([v2.Compose([v2.RandomHorizontalFlip(0.5)]), v2.PILToTensor()]), 'RandomHorizontalFlip'),
        (v2.Compose([v2.Lambda(ImageOps.mirror), v2.Resize((32, 32)), v2.PILToTensor()]), 'Lambda mirrors'),
        (v2.Compose([v2.Lambda(ImageOps.flip), v2.Resize((32, 32)), v2.PILToTensor()]), 'Lambda mirrors'),
        (v2.Compose([v2.AutoAugment(), v2.Resize((32, 32)), v2.PILToTensor()]), 'AutoAugment moves'),
        (create_transform((3, 32, 32)).__call__, 'method is no Compose'),
    ],
)
def test_transforms_through_which_boxes_cannot_be_followed(birds, transform, message):
    data = create_dataset('hnc/cub200', str(birds), 'test', 3)
    data.transform = transform
    forget_run()
    model = timm.create_model('test_resnet', num_classes=3, **NARROW)
    with pytest.raises(UsageError, match=f'--cam-boxes: .*{message}'):
        timm_hnc.evaluate(model, DataLoader(data, 8), device='cpu', cam_boxes=True)


XML = '<annotation><size><width>32</width></size>{}</annotation>'
OBJECT = '<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'


@pytest.mark.parametrize('layout', ['names', 'classes', 'splits'])
def test_boxes_of_xml_files(images, tmp_path, layout):
    data = write_annotations(images, tmp_path, layout)
    source = BoxSource(data, folder=tmp_path)
    for index in range(len(data)):
        found = source[index]
        assert found.boxes.tolist() == ([[2, 3, 12, 19]] if index % 2 == 0 else [])
        assert found.labels.tolist() == ([data.reader[index][1]] if index % 2 == 0 else [])


def test_xml_files_as_those_of_imagenet_are(tmp_path):
    """Of an image that was stored at twice the size; TensorFlow's process_bounding_boxes.py tells of such names."""
    folder = tmp_path / 'train' / 'n02092002'
    folder.mkdir(parents=True)
    Image.new('RGB', (64, 32)).save(folder / 'n02092002_7.png')
    named = ('Scottish_deerhound', 2, 3, 12, 14), ('n02092002', -4, 8, 40, 20), ('n02099601', 0, 0, 9, 9)
    nothing = ('n02092002', 12, 3, 2, 14), ('n02092002', 33, 3, 40, 14)
    size = '<size><width>32</width><height>16</height></size>'
    text = f'<annotation>{size}{"".join(OBJECT.format(*each) for each in (*named, *nothing))}</annotation>'
    (tmp_path / 'n02092002_7.xml').write_text(text)
    source = BoxSource(create_dataset('', str(tmp_path), 'train', 1), folder=tmp_path)
    found = source[0].inside(source.image_size(0), 0)
    assert found.boxes.tolist() == [[4, 6, 24, 28], [0, 16, 64, 32]]
    assert found.labels.tolist() == [0, 0]
    assert len(source[0].inside((16, 32), 0).boxes) == 0, 'of an image that is stored turned'
    assert source[0].inside((24, 24), 0).boxes.tolist()[0] == [1.5, 4.5, 9, 21], 'of a squashed one'


def write_annotations(images, folder, layout):
    """XML files of every second validation image, and the images."""
    data = create_dataset('', str(images), 'validation', 3)
    for index in range(0, len(data), 2):
        name = Path(data.reader.filename(index))
        path = folder / {'names': name.name, 'classes': name, 'splits': Path('validation') / name}[layout]
        path.parent.mkdir(parents=True, exist_ok=True)
        own, other = OBJECT.format(name.parts[0], 2, 3, 12, 19), OBJECT.format('whale', 0, 0, 5, 5)
        path.with_suffix('.xml').write_text(XML.format(own + other))
    return data


def test_validate_with_boxes_of_xml_files(images, tmp_path, capsys):
    write_annotations(images, tmp_path / 'boxes', 'names')
    run = train('--data-dir', images, *SMALL, '--output', tmp_path, '--experiment', 'run')
    argv = ['--checkpoint', run, *HERE, '--cam-boxes', '--boxes-dir', tmp_path / 'boxes']
    assert validate(capsys, *argv)['cam_maps_with_boxes'] == 13
    next((tmp_path / 'boxes').iterdir()).write_text('<annotation>')
    code, line = failure(capsys, 'validate', *argv)
    assert (code, "' is damaged or no annotation of ImageNet's: " in line) == (1, True)
    (tmp_path / 'none').mkdir()
    code, line = failure(capsys, 'validate', *argv[:-1], tmp_path / 'none')
    assert (code, 'no .xml files in it or in its folders' in line) == (1, True)
    (tmp_path / 'none' / 'other.xml').write_text(XML)
    code, line = failure(capsys, 'validate', *argv[:-1], tmp_path / 'none')
    assert (code, '--cam-boxes: no image has a box of a class that is in it' in line) == (2, True)


def test_validate_with_boxes(birds, images, tmp_path, capsys):
    data = ['--dataset', 'hnc/cub200', '--data-dir', birds, '--val-split', 'test']
    run = train(*data, *SMALL, '--output', tmp_path, '--experiment', 'run')
    one = validate(capsys, '--checkpoint', run, *HERE, '--cam-boxes')
    assert one['cam_maps_with_boxes'] == 25
    assert 0 < one['cam_energy'] < 100
    two = result_of(run_script(ROOT / 'validate.py', '--checkpoint', run, *HERE, '--cam-boxes', processes=2))
    cam = [name for name in one if name.startswith('cam_')]
    assert {name: two[name] for name in cam} == pytest.approx({name: one[name] for name in cam}, rel=1e-3)
    code, line = failure(capsys, 'validate', '--checkpoint', run, *HERE, '--cam-boxes', '--data-dir', images)
    assert code == 2
    assert "--cam-boxes: no boxes 'objects' in the data set, it is no data set with boxes" in line
