"""Rows that come back through hidden layers give the maps and gradients of positions that go through them."""

import copy
from contextlib import nullcontext

import pytest
import torch
from map_checks import assert_same, gradients
from small_models import DETACHED_MODELS

from timm_hnc.cam.hidden_layers import Centre, Dense, HiddenLayers, HiddenMaps, Scale

BEHIND_LAYERS = ('mobilenetv3', 'mambaout', 'metaformer', 'efficientvit')


def class_maps_of(name, **kwargs):
    small = DETACHED_MODELS[name]
    model = small.cam_model(**kwargs).double()
    return model, small.images().double()


@pytest.mark.parametrize('name', BEHIND_LAYERS)
def test_both_ways_have_the_same_maps_and_gradients(name):
    model, images = class_maps_of(name)
    class_maps = model.class_maps(images)
    assert isinstance(class_maps, HiddenMaps)
    classes = torch.tensor([[1], [4], [0]])
    assert class_maps.hidden.is_cheaper_back(1)
    back = class_maps.maps(classes)
    through = class_maps.maps(None).gather(1, classes[:, :, None, None].expand(-1, -1, *class_maps.grid))
    torch.testing.assert_close(back, through, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back.mean((2, 3)), class_maps.logits.gather(1, classes), rtol=1e-9, atol=1e-9)
    factors = torch.randn_like(back)
    ours, theirs = (gradients((maps * factors).sum(), model) for maps in (back, through))
    assert_same(ours, theirs, rtol=1e-7, atol=1e-9)


def test_layers_against_products_at_every_position():
    generator = torch.Generator().manual_seed(3)
    positions, first, bias, last = (
        torch.randn(size, generator=generator, dtype=torch.float64) for size in ((2, 6, 5), (4, 5), (4,), (2, 3, 4))
    )
    gate, shift = torch.rand(2, 1, 4, generator=generator, dtype=torch.float64), bias.flip(0)
    hidden = HiddenLayers(
        positions, (Dense(first, bias), Centre(), Scale(gate, shift)), lambda: torch.autocast('cpu', enabled=False)
    )
    found = hidden.scores(last)
    for image in range(2):
        for row in range(3):
            for place in range(6):
                value = first @ positions[image, place] + bias
                value = (value - value.mean()) * gate[image, 0] + shift
                assert found[image, row, place] == pytest.approx((last[image, row] @ value).item(), rel=1e-12)


def test_the_cheaper_way_is_chosen_by_the_number_of_products():
    hidden = HiddenLayers(torch.zeros(1, 49, 960), (Dense(torch.zeros(1280, 960), None),), nullcontext)
    assert [hidden.is_cheaper_back(k) for k in (1, 10, 40, 60, 100)] == [True, True, True, False, False]


@pytest.mark.parametrize('name', ['mobilenetv3', 'efficientvit'])
def test_under_autocast_maps_can_be_asked_for_behind_it(name):
    small = DETACHED_MODELS[name]
    model = small.cam_model()
    with torch.autocast('cpu', torch.bfloat16):
        class_maps = model.class_maps(small.images())
    exact = model.class_maps(small.images()).maps(None)
    few = class_maps.maps([1, 2])
    every = class_maps.maps(None)
    assert few.dtype == every.dtype == class_maps.positions.dtype
    for maps, expected in ((few, exact[:, [1, 2]]), (every, exact)):
        torch.testing.assert_close(maps.float(), expected, rtol=0, atol=0.05 * exact.abs().max().item())


def test_positions_are_made_once_when_they_are_asked_for():
    model, images = class_maps_of('mobilenetv3')
    class_maps = model.class_maps(images)
    class_maps.maps([0])
    assert 'outer' not in vars(class_maps.hidden)
    assert class_maps.positions is class_maps.positions
    assert copy.copy(class_maps).grid == class_maps.grid
    with pytest.raises(AttributeError, match="'HiddenMaps' has no attribute 'other'"):
        _ = class_maps.other
