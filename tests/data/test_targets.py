import numpy as np
import pytest
import torch

from timm_hnc.data.targets import ClassIndex, LabelSet
from timm_hnc.errors import DataError


@pytest.mark.parametrize('target', [2, np.int64(2), torch.tensor(2), 2.0])
def test_a_class_index_becomes_an_int(target):
    assert ClassIndex(3)(target) == 2
    assert type(ClassIndex(3)(target)) is int


@pytest.mark.parametrize(
    ('target', 'message'),
    [
        (3, 'class 3, outside the range 0 to 2: set --num-classes'),
        (-1, 'class -1, outside the range 0 to 2'),
        (1.5, 'expected a class index; see --target-key'),
        (None, 'expected a class index'),
        ([1, 2], 'not one class index: for several labels pass --task multilabel'),
        ([], 'not one class index'),
        ((1,), 'not one class index'),
        ({'a': 1}, 'not one class index'),
        ('cat', 'not one class index'),
        (b'7 ', 'expected a class index'),
        (object(), 'expected a class index'),
        (np.array([0, 1]), 'not one class index'),
        (torch.zeros(3), 'not one class index'),
        (float('nan'), 'expected a class index'),
        (float('inf'), 'expected a class index'),
    ],
)
def test_what_is_no_class_index_is_refused(target, message):
    with pytest.raises(DataError, match=message):
        ClassIndex(3)(target)


@pytest.mark.parametrize(
    ('target', 'dense', 'expected'),
    [
        ([0, 2], False, [1, 0, 1]),
        ([], False, [0, 0, 0]),
        ([2, 2], False, [0, 0, 1]),
        (np.array([1]), False, [0, 1, 0]),
        ([0.0, 1.0, 1.0], True, [0, 1, 1]),
        (np.array([0, 0, 0]), True, [0, 0, 0]),
    ],
)
def test_a_set_of_labels_becomes_ones_and_zeros(target, dense, expected):
    encoded = LabelSet(3, dense)(target)
    assert encoded.is_floating_point()
    assert encoded.tolist() == expected


@pytest.mark.parametrize(
    ('target', 'dense', 'message'),
    [
        (1, False, 'for a single label pass --task classification'),
        ([3], False, 'see --target-key|See --target-key'),
        ([-1], False, 'See --target-key'),
        ([0.0, 1.0], True, 'See --target-key, --target-format and --num-classes'),
        ('cat', False, 'See --target-key'),
        (None, False, 'See --target-key'),
        ([0, 1, 0], False, r'\[0, 1, 0\], 3 zeros and ones: pass --target-format multihot'),
    ],
)
def test_what_is_no_set_of_labels_is_refused(target, dense, message):
    with pytest.raises(DataError, match=message):
        LabelSet(3, dense)(target)
