"""The share of the training data that is kept for validation."""

import pytest

from timm_hnc.data.holdout import split_off
from timm_hnc.errors import DataError


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
