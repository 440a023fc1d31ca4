import logging

import pytest
import torch
from image_data import write_folder
from torch.utils.data import DataLoader

from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.loading.skipped_images import SkippedImages


class ToTensor:
    def __call__(self, image):
        return torch.zeros(1)


@pytest.fixture
def skipped():
    counter = SkippedImages()
    yield counter
    counter.stop()


@pytest.fixture
def dataset(tmp_path, skipped):
    root = write_folder(tmp_path) / 'validation'
    files = sorted(root.rglob('*.png'))
    files[3].write_bytes(b'no image')
    files[12].write_bytes(files[12].read_bytes()[:150])
    files[13].write_bytes(b'')
    dataset = create_dataset('', str(root), 'validation', num_classes=3)
    dataset.transform = ToTensor()
    dataset.skipped_images = skipped
    return dataset


@pytest.mark.parametrize(
    ('workers', 'context'), [(0, None), (2, 'fork'), pytest.param(1, 'forkserver', marks=pytest.mark.slow)]
)
def test_every_image_that_cannot_be_decoded_is_counted(dataset, skipped, workers, context):
    # a process of 'forkserver' is sent the data set, as one of 'spawn' is
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, multiprocessing_context=context)
    batches = list(loader)
    assert sum(len(targets) for _, targets in batches) == 25
    # the image before the last one in a row of damaged ones leads to a second warning
    assert skipped.count == 4


def test_only_timms_warning_counts_and_only_until_stopped(skipped):
    logger = logging.getLogger('timm.data.dataset')
    logger.warning('Skipped sample (index 3). no image')
    logger.warning('Something else')
    logging.getLogger('another').warning('Skipped sample (index 3).')
    assert skipped.count == 1
    skipped.stop()
    logger.warning('Skipped sample (index 4). no image')
    assert skipped.count == 1


def test_two_counters_count_apart(skipped):
    other = SkippedImages()
    other.stop()
    logging.getLogger('timm.data.dataset').warning('Skipped sample (index 3).')
    assert (skipped.count, other.count) == (1, 0)
