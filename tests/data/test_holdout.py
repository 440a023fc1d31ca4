"""The share of the training data that is kept for validation."""

import pickle
import shutil
from pathlib import Path
from zlib import crc32

import pytest
from data_fixtures import images
from torch.utils.data import DataLoader

from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.holdout import split_off
from timm_hnc.data.loading.skipped_images import SkippedImages
from timm_hnc.data.noise import LabelNoise, NoisyLabels
from timm_hnc.errors import DataError

__all__ = ['images']


def test_the_two_parts_are_the_whole():
    kept, held = split_off(range(1000, 1205), 0.1, seed=42)
    assert (len(kept), len(held)) == (185, 20)
    assert sorted([*(kept[i] for i in range(185)), *(held[i] for i in range(20))]) == list(range(1000, 1205))


def test_seeds_choose():
    def held(seed):
        return list(split_off(range(500), 0.2, seed)[1].indices)

    assert held(1) == held(1)
    assert held(1) != held(2)
    # drawn from all over the data, classes often lie one behind the other
    assert 150 < sum(held(1)) / len(held(1)) < 350


@pytest.mark.parametrize('share', [0.01, 0.99])
def test_no_part_is_empty(share):
    with pytest.raises(DataError, match=r'--holdout 0\.[09][19]: .* of 10 images, both parts need one or more'):
        split_off(range(10), share, seed=0)


class Reading:
    """What a data set does with an image: its pixels as a number."""

    def __call__(self, image):
        return crc32(image.tobytes())


@pytest.fixture
def parts(images, tmp_path):
    """Both parts of a folder of 59 images, one and two of them damaged, and the pixels of the whole images."""
    root = shutil.copytree(images / 'train', tmp_path / 'train')
    sound = create_dataset('', str(root), 'train', 3)
    sound.transform = Reading()
    pixels = [image for image, _ in sound]
    kept, held = (list(part.indices) for part in split_off(range(59), 0.3, seed=4))
    # the image behind it belongs to the other part
    first = next(index for index in kept if index + 1 in held)
    row = next(index for index in held if index + 1 in held and index + 2 in kept)
    damaged = [first, row, row + 1]
    for index in damaged:
        Path(sound.filename(index, absolute=True)).write_bytes(b'no image')
    dataset = create_dataset('', str(root), 'train', 3)
    dataset.transform = Reading()
    return dataset, damaged, pixels


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('noisy', [False, True])
def test_an_image_of_its_own_part_takes_the_place_of_a_damaged_one(parts, workers, noisy):
    dataset, damaged, pixels = parts
    if noisy:
        dataset = NoisyLabels(dataset, LabelNoise('symmetric', 0.5), 3, seed=0)
    for part, expected in zip(split_off(dataset, 0.3, seed=4), (1, 3), strict=True):
        indices = list(part.indices)
        part.skipped_images = skipped = SkippedImages()
        found = [int(image) for batch, _ in DataLoader(part, 8, num_workers=workers) for image in batch]
        skipped.stop()
        assert skipped.count == expected  # of two in a row the first one leads to two
        for place in range(len(indices)):
            taken = place
            while indices[taken] in damaged:
                taken = (taken + 1) % len(indices)
            assert found[place] == pixels[indices[taken]]
        assert set(found) <= {pixels[index] for index in indices if index not in damaged}


def test_a_part_travels_to_other_processes(parts):
    for part in split_off(parts[0], 0.3, seed=4):
        there = pickle.loads(pickle.dumps(part))
        assert [there[index] for index in range(len(part))] == [part[index] for index in range(len(part))]


def test_a_part_without_readable_images_ends(parts):
    dataset, _, _ = parts
    for index in range(59):
        Path(dataset.filename(index, absolute=True)).write_bytes(b'')
    with pytest.raises(RuntimeError, match='Failed to load 10 consecutive samples'):
        split_off(dataset, 0.3, seed=4)[0][0]
