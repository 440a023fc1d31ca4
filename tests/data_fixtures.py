"""What tests of train.py and validate.py train on: data sets, each written once a session, and a command line."""

import pytest
from image_data import write_folder, write_multi_label_parquet, write_parquet, write_shards, write_tar
from running import SMALL


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    """Root of an image folder."""
    return write_folder(tmp_path_factory.mktemp('images'))


@pytest.fixture
def options(images, tmp_path):
    """The command line of a small run of a name, with what else is given."""
    return lambda name, *argv: ['--data-dir', images, *SMALL, '--output', tmp_path, '--experiment', name, *argv]


@pytest.fixture(scope='session')
def tar_files(tmp_path_factory):
    """Folder of train.tar and validation.tar."""
    folder = tmp_path_factory.mktemp('tar')
    for split in ('train', 'validation'):
        write_tar(folder / f'{split}.tar', split)
    return folder


@pytest.fixture(scope='session')
def shards(tmp_path_factory):
    """Root of webdataset shards."""
    return write_shards(tmp_path_factory.mktemp('wds') / 'shards')


@pytest.fixture(scope='session')
def parquet(tmp_path_factory):
    """Options that name a data set of Hugging Face's `datasets`."""
    root = tmp_path_factory.mktemp('parquet')
    return ['--dataset', f'hfds/{write_parquet(root / "set")}', '--data-dir', str(root / 'cache')]


@pytest.fixture(scope='session')
def multi_label(tmp_path_factory):
    """Options that name a data set with several labels an image."""
    root = tmp_path_factory.mktemp('multi-label')
    name = f'hfds/{write_multi_label_parquet(root / "set")}'
    return ['--dataset', name, '--data-dir', str(root / 'cache'), '--target-key', 'labels', '--task', 'multilabel']
