"""Label noise: transition matrices, and the same wrong labels wherever they are drawn."""

import numpy as np
import pytest
from PIL import Image

from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.noise import LabelNoise, NoisyLabels

NUM_CLASSES, PER_CLASS = 20, 500


def transitions(noise, seed=0):
    """(n, n) shares of labels that became others; rows are the true classes."""
    labels = np.repeat(np.arange(NUM_CLASSES), PER_CLASS)
    noisy = [noise.label(int(label), index, NUM_CLASSES, seed) for index, label in enumerate(labels)]
    counts = np.zeros((NUM_CLASSES, NUM_CLASSES))
    np.add.at(counts, (labels, noisy), 1)
    return counts / PER_CLASS


@pytest.mark.parametrize('rate', [0.2, 0.4, 0.6])
def test_symmetric_noise_draws_from_all_classes(rate):
    matrix = transitions(LabelNoise('symmetric', rate))
    kept = 1 - rate + rate / NUM_CLASSES
    samples = NUM_CLASSES * PER_CLASS
    assert abs(np.diag(matrix).mean() - kept) < 3 * (kept * (1 - kept) / samples) ** 0.5
    others = matrix[~np.eye(NUM_CLASSES, dtype=bool)]
    share = rate / NUM_CLASSES
    sigma = (share * (1 - share) / PER_CLASS) ** 0.5
    assert abs(others.mean() - share) < 3 * sigma / len(others) ** 0.5
    # as many entries beyond 3 sigma as chance has, and none far out
    assert (abs(others - share) > 3 * sigma).mean() < 0.02
    assert others.max() < share + 8 * sigma


@pytest.mark.parametrize('rate', [0.1, 0.3])
def test_asymmetric_noise_draws_the_next_class(rate):
    matrix = transitions(LabelNoise('asymmetric', rate))
    following = matrix[np.arange(NUM_CLASSES), (np.arange(NUM_CLASSES) + 1) % NUM_CLASSES]
    sigma = (rate * (1 - rate) / (NUM_CLASSES * PER_CLASS)) ** 0.5
    assert abs(following.mean() - rate) < 3 * sigma
    np.testing.assert_allclose(np.diag(matrix) + following, 1)


def test_labels_depend_on_seed_and_index_alone():
    noise = LabelNoise('symmetric', 0.4)
    dataset = NoisyLabels([(index, index % 10) for index in range(200)], noise, 10, seed=3)
    forwards = [dataset[index] for index in range(200)]
    assert forwards == [dataset[index] for index in reversed(range(200))][::-1]
    assert [image for image, _ in forwards] == list(range(200))
    other = NoisyLabels(dataset.dataset, noise, 10, seed=4)
    assert [label for _, label in forwards] != [other[index][1] for index in range(200)]


def test_an_image_in_the_place_of_a_damaged_one_keeps_its_own_wrong_label(tmp_path):
    for name in ('a/0', 'a/1', 'b/0', 'b/1'):
        (tmp_path / f'{name}.png').parent.mkdir(exist_ok=True)
        Image.new('RGB', (4, 4)).save(tmp_path / f'{name}.png')
    (tmp_path / 'a' / '1.png').write_bytes(b'damaged')
    for seed in range(8):
        dataset = NoisyLabels(create_dataset('', str(tmp_path), '', 2), LabelNoise('symmetric', 0.9), 2, seed)
        labels = [dataset[index][1] for index in range(4)]
        assert labels == [dataset.label(index, label) for index, label in ((0, 0), (2, 1), (2, 1), (3, 1))]


def test_no_noise_and_nothing_but_noise():
    assert np.array_equal(transitions(LabelNoise('symmetric', 0.0)), np.eye(NUM_CLASSES))
    assert np.array_equal(transitions(LabelNoise('asymmetric', 1.0)), np.roll(np.eye(NUM_CLASSES), 1, axis=1))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('symmetric:1.2', 'rate 1.2: expected a probability, 0 to 1'),
        ('symmetric:-0.1', 'rate -0.1'),
        ('pairwise:0.3', "'pairwise' is unknown: expected symmetric or asymmetric"),
        ('symmetric', 'expected TYPE:RATE, such as symmetric:0.4'),
        ('symmetric:half', 'expected TYPE:RATE'),
        ('symmetric:nan', 'rate nan'),
    ],
)
def test_noise_that_means_nothing(text, message):
    with pytest.raises(ValueError, match=message):
        LabelNoise.parse(text)
