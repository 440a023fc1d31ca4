import io
import re
import shutil

import pytest
import torch
from image_data import CLASSES, TRAIN_COUNTS, samples, write_folder, write_parquet, write_shards, write_tar
from PIL import Image
from timm.data import create_loader
from torch.utils.data import DataLoader
from torchvision.transforms import PILToTensor

from timm_hnc.data.class_names import check_same_classes, class_names, class_to_idx
from timm_hnc.data.datasets import create_dataset, same_files
from timm_hnc.data.loading.loaders import image_mode
from timm_hnc.data.targets import ClassIndex
from timm_hnc.errors import DataError, UsageError


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def parquet(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp('parquet') / 'set')


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp('cache'))


def pixels(image: Image.Image) -> bytes:
    return image.convert('RGB').tobytes()


@pytest.mark.parametrize('kind', ['folder', 'train folder', 'tar', 'torch', 'hfds'])
def test_every_kind_holds_the_same_images_and_labels(folder, parquet, cache, tmp_path, kind):
    name, root = {
        'folder': lambda: ('', folder),
        'train folder': lambda: ('', folder / 'train'),
        'tar': lambda: ('', write_tar(tmp_path / 'train.tar', 'train')),
        'torch': lambda: ('torch/image_folder', folder),
        'hfds': lambda: (f'hfds/{parquet}', cache),
    }[kind]()
    dataset = create_dataset(name, str(root), 'train', num_classes=3)
    assert class_names(dataset, 4) == [*CLASSES, '3']
    found = sorted((target, pixels(image)) for image, target in (dataset[index] for index in range(len(dataset))))
    expected = sorted((label, pixels(Image.open(io.BytesIO(content)))) for _, label, content in samples('train'))
    assert found == expected


@pytest.mark.parametrize('kind', ['wds', 'hfids'])
def test_every_streamed_kind_holds_the_same_images_and_labels(parquet, cache, tmp_path, kind):
    if kind == 'wds':
        options = dict(name='wds/set', root=str(write_shards(tmp_path / 'wds')))
    else:
        options = dict(name=f'hfids/{parquet}', root=cache, num_samples=sum(TRAIN_COUNTS))
    dataset = create_dataset(split='train', num_classes=3, batch_size=8, **options)
    found = sorted((target, pixels(image)) for image, target in dataset)
    expected = sorted((label, pixels(Image.open(io.BytesIO(content)))) for _, label, content in samples('train'))
    assert len(found) == 59
    assert found == expected


def refused(error, message, name='', root=None, split='train', num_classes=3, **kwargs):
    with pytest.raises(error) as caught:
        create_dataset(name, None if root is None else str(root), split, num_classes=num_classes, **kwargs)
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)


def test_missing_data_is_refused(folder, tmp_path, parquet, cache):
    refused(UsageError, 'pass --data-dir DIR, or --dataset NAME', '')
    refused(
        DataError, f"data folder '{tmp_path / 'nowhere'}' does not exist: see --data-dir", root=tmp_path / 'nowhere'
    )
    (tmp_path / 'empty').mkdir()
    refused(DataError, 'Found 0 images', root=tmp_path / 'empty')
    (tmp_path / 'text.tar').write_text('no tar')
    refused(DataError, 'cannot be read', root=tmp_path / 'text.tar')
    refused(DataError, 'cannot be read', 'torch/image_folder', tmp_path / 'nowhere')
    refused(DataError, 'cannot be read', 'torch/nothing', tmp_path)
    refused(UsageError, '--dataset torch/cifar100: pass --data-dir DIR', 'torch/cifar100', None)
    refused(DataError, 'cannot be read', f'hfds/{tmp_path / "nowhere"}', cache)
    refused(DataError, "split 'test'", f'hfds/{parquet}', cache, split='test')
    refused(DataError, 'cannot be read', 'wds/set', tmp_path / 'nowhere')


def test_a_folder_without_the_split_is_refused_instead_of_taken_whole(folder, tmp_path):
    shutil.copytree(folder / 'train', tmp_path / 'train')
    refused(DataError, "no folder for the split 'validation' but has train", root=tmp_path, split='validation')
    refused(UsageError, "'hfd/set': expected a name that begins with torch", 'hfd/set', tmp_path, split='validation')
    assert len(create_dataset('', str(tmp_path), 'train', 3)) == 59
    assert len(create_dataset('', f'{tmp_path}/', '', 3)) == 59  # no split: whatever is there
    whole = create_dataset('', str(tmp_path / 'train'), 'validation', 3)
    assert len(whole) == 59
    assert same_files(create_dataset('', str(tmp_path / 'train'), 'train', 3), whole)
    assert not same_files(whole, create_dataset('', str(folder), 'validation', 3))
    assert not same_files(*(create_dataset('hnc/digits', '', split, 10) for split in ('train', 'validation')))
    tars = [str(write_tar(tmp_path / f'{split}.tar', split)) for split in ('train', 'validation')]
    assert same_files(*(create_dataset('', tars[0], split, 3) for split in ('train', 'validation')))
    assert not same_files(*(create_dataset('', tar, 'train', 3) for tar in tars))


def test_one_class_is_refused(folder, tmp_path, cache):
    shutil.copytree(folder / 'train' / 'red', tmp_path / 'red')
    refused(DataError, 'images of one class only: a classifier needs at least two', root=tmp_path, is_training=True)
    assert len(create_dataset('', str(tmp_path), 'validation', 3)) == 18, (
        'to evaluate on one class is as good as another'
    )
    (tmp_path / 'one').mkdir()
    shutil.copytree(folder / 'train' / 'red', tmp_path / 'one' / 'train' / 'red')
    refused(DataError, 'images of one class only', 'torch/image_folder', tmp_path / 'one', is_training=True)


def test_one_class_that_only_the_labels_show_is_refused(tmp_path, cache):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    name, _, content = samples('train')[0]
    features = Features({'image': ImageFeature(), 'label': Value('int64')})
    images = [{'bytes': content, 'path': name}] * 3

    def write(folder, labels):
        folder.mkdir()
        Dataset.from_dict({'image': images, 'label': labels}, features=features).to_parquet(folder / 'train.parquet')
        return f'hfds/{folder}'

    refused(DataError, 'one class only', write(tmp_path / 'one', [1, 1, 1]), cache, is_training=True)
    message = "outside the model's range 0 to 2, such as 7: set --num-classes"
    refused(DataError, message, write(tmp_path / 'far', [0, 1, 7]), cache)


@pytest.mark.parametrize('name', ['torch/image_folder', 'hnc/digits'])
def test_a_class_map_is_told_where_it_numbers_nothing(folder, caplog, name):
    create_dataset(name, str(folder), 'train', 10, class_map='names.txt')
    assert f'--class-map names.txt: does nothing, {name} numbers its classes itself.' in caplog.text


@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_torchvisions_images_have_the_mode_that_is_asked_for(folder, mode):
    dataset = create_dataset('torch/image_folder', str(folder), 'train', 3, input_img_mode=mode)
    expected = sorted(Image.open(io.BytesIO(content)).convert(mode).tobytes() for _, _, content in samples('train'))
    assert sorted(image.tobytes() for image, _ in dataset) == expected
    dataset.transform = PILToTensor()
    assert isinstance(dataset.transform, PILToTensor)
    assert dataset[0][0].shape == (len(mode), 32, 32)


def test_alpha_that_torchvision_leaves_out_is_refused(folder):
    message = '--input-img-mode RGBA: not with torch/image_folder'
    refused(UsageError, message, 'torch/image_folder', folder, input_img_mode='RGBA')


@pytest.mark.parametrize('mode', ['1', 'F', 'I'])
def test_modes_without_channels_of_8_bits_are_refused(mode):
    with pytest.raises(UsageError, match=f'--input-img-mode {mode}: its channels do not have 8 bits'):
        image_mode(mode, 1)


@pytest.mark.parametrize('split', ['train[:80%]', 'trian', 'TRAIN'])
def test_what_is_no_name_of_a_split_is_not_the_test_split(tmp_path, split):
    with pytest.raises(UsageError, match=re.escape(f"--dataset torch/kmnist: split '{split}' is none of train, ")):
        create_dataset('torch/kmnist', str(tmp_path), split, 10)


@pytest.mark.parametrize('name', ['', 'torch/image_folder'])
def test_labels_outside_the_range_are_refused(folder, name):
    message = "labels outside the model's range 0 to 1, such as 2: set --num-classes to the classes of the data"
    refused(DataError, message, name, folder, num_classes=2)


def test_rows_without_an_image_or_a_label(tmp_path, cache):
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    name, _, content = samples('train')[0]
    image = {'bytes': content, 'path': name}
    features = Features({'image': ImageFeature(), 'labels': List(Value('int64')), 'a/label': Value('int64')})
    rows = {'image': [None, image, image], 'labels': [[1], [0, 2], None], 'a/label': [2, 0, None]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / 'train.parquet')
    several = create_dataset(f'hfds/{tmp_path}', cache, 'train', 3, multi_label=True, target_key='labels')
    assert several[1][1].tolist() == [1, 0, 1]
    one = create_dataset(f'hfds/{tmp_path}', cache, 'train', 3, target_key='a/label')
    assert one[1][1] == 0
    for dataset in (several, one):
        with pytest.raises(ValueError, match='sample 2 has no label, see --target-key'):
            dataset[2]


def test_columns_that_are_not_there_are_named(parquet, cache):
    name = f'hfds/{parquet}'
    refused(DataError, "no column 'img' but image, label, name: see --input-key", name, cache, input_key='img')
    refused(DataError, "no column 'fine' but image, label, name: see --target-key", name, cache, target_key='fine')
    refused(DataError, "['a', 'b'] not found", name, cache, target_key='a,b', multi_label=True)


def test_a_streamed_label_outside_the_range_is_met_when_it_is_read(tmp_path):
    dataset = create_dataset('wds/set', str(write_shards(tmp_path / 'wds')), 'train', num_classes=2, batch_size=8)
    with pytest.raises(DataError, match='class 2, outside the range 0 to 1'):
        list(dataset)


@pytest.mark.parametrize('name', ['hfds/x', 'hfids/x', 'wds/x'])
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, name):
    monkeypatch.setattr('timm_hnc.data.datasets.find_spec', lambda package: None)
    refused(UsageError, 'pip install "timm_hnc[data]"', name, 'nowhere')


def test_a_class_map_names_the_classes(folder, tmp_path, caplog):
    (tmp_path / 'map.txt').write_text('red\nblue\n')
    for empty in ('.cache', 'yellow'):
        (folder / 'train' / empty).mkdir()
    dataset = create_dataset('', str(folder), 'train', num_classes=2, class_map=str(tmp_path / 'map.txt'))
    assert class_to_idx(dataset) == {'red': 0, 'blue': 1}
    assert len(dataset) == TRAIN_COUNTS[0] + TRAIN_COUNTS[2]
    assert isinstance(dataset.target_transform, ClassIndex)
    assert f'map.txt: has no class for {CLASSES[1]}; these folders of ' in caplog.text
    for empty in ('.cache', 'yellow'):
        (folder / 'train' / empty).rmdir()
    (tmp_path / 'map.txt').write_text('yellow\n')
    with pytest.raises(DataError, match=r'Found 0 images .*; of classes that --class-map .*map\.txt names'):
        create_dataset('', str(folder), 'train', num_classes=2, class_map=str(tmp_path / 'map.txt'))
    with pytest.raises(DataError, match=r'Cannot locate specified class map file \(nowhere\.txt\)$'):
        create_dataset('', str(folder), 'train', num_classes=2, class_map='nowhere.txt')


@pytest.mark.parametrize('kind', ['wds/x', 'hfids', 'hfds'])
def test_a_label_that_a_class_map_lacks_is_named(parquet, cache, tmp_path, kind):
    name, root = (kind, write_shards(tmp_path / 'wds')) if kind == 'wds/x' else (f'{kind}/{parquet}', cache)
    (tmp_path / 'map.txt').write_text('red\nblue\n')
    options = dict(class_map=str(tmp_path / 'map.txt'), batch_size=1, num_samples=sum(TRAIN_COUNTS))

    def read():
        dataset = create_dataset(name, str(root), 'train', num_classes=2, **options)
        dataset.transform = PILToTensor()
        return list(DataLoader(dataset, num_workers=1))

    # of shards the labels are numbers, of the others those of a column that has their names
    label = '0' if kind == 'wds/x' else "'green'"
    with pytest.raises(DataError, match=f"--class-map: has 'red', 'blue' but not {label}, a label of the data"):
        read()


def test_batches_of_several_labels_are_dense(tmp_path, cache):
    from image_data import write_multi_label_parquet

    root = write_multi_label_parquet(tmp_path / 'set')
    batches = {}
    for key, target_format in (('labels', None), ('vector', 'multihot')):
        dataset = create_dataset(
            f'hfds/{root}', cache, 'train', 3, multi_label=True, target_format=target_format, target_key=key
        )
        loader = create_loader(dataset, (3, 32, 32), 8, is_training=False, device=torch.device('cpu'), num_workers=0)
        batches[key] = next(iter(loader))
    refused(
        DataError,
        'targets such as [0.0, 0.0, 0.0], 3 zeros and ones each: pass --target-format multihot.',
        f'hfds/{root}',
        cache,
        multi_label=True,
        target_key='vector',
    )
    assert batches['labels'][1].tolist()[:5] == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert torch.equal(batches['labels'][1], batches['vector'][1])


def test_validation_folders_that_number_their_classes_otherwise_are_refused(tmp_path):
    root = write_folder(tmp_path / 'images')
    train = create_dataset('', str(root), 'train', num_classes=3)
    check_same_classes(train, create_dataset('', str(root), 'validation', num_classes=3))
    shutil.rmtree(root / 'validation' / CLASSES[0])
    lacking = create_dataset('', str(root), 'validation', num_classes=3)
    with pytest.raises(DataError, match=f"class '{CLASSES[1]}' is number 0 in the validation data but 1 in the train"):
        check_same_classes(train, lacking)
    mapping = tmp_path / 'classes.txt'
    mapping.write_text('\n'.join(CLASSES))
    lacking = create_dataset('', str(root), 'validation', num_classes=3, class_map=str(mapping))
    check_same_classes(train, lacking)
