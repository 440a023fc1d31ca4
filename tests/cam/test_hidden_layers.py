"""Rows that come back through hidden layers give the maps and gradients of positions that go through them."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import timm
import torch
from map_checks import assert_same, gradients
from small_models import DETACHED_MODELS, TAIL_MODELS
from timm.models.metaformer import StarReLU
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from timm_hnc import CamModel, HNCLoss, HNCTask
from timm_hnc.cam.hidden_layers import Centre, Dense, HiddenLayers, HiddenMaps, Scale
from timm_hnc.losses.maps.consistency import ConsistencyLoss

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


@pytest.mark.parametrize('name', BEHIND_LAYERS)
def test_a_copy_of_all_tensors_has_those_of_the_layers_too(name):
    model, images = class_maps_of(name)
    class_maps = model.class_maps(images)
    copied = pytree.tree_map_only(torch.Tensor, torch.clone, class_maps)
    assert pytree.tree_structure(class_maps.hidden.layers) == pytree.tree_structure(copied.hidden.layers)
    expected = class_maps.maps([1, 3])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(copied.maps([1, 3]), expected, rtol=0, atol=0)


def test_learnable_numbers_are_layers_too():
    """s relu(x)^2 + b behind the pool: M(s, b) = s (M(1, 0) - bias) + bias + b sum(last weights)."""
    small, classes, found = DETACHED_MODELS['metaformer'], [3, 1], {}
    for scale, shift in ((1.0, 0.0), (1.75, -0.5)):
        plain = small.make().double()
        plain.head.fc.act, plain.head.fc.norm = StarReLU(scale, shift).double(), torch.nn.Identity()
        model = CamModel(plain)
        class_maps = model.class_maps(small.images().double())
        assert isinstance(class_maps, HiddenMaps)
        maps, every = class_maps.maps(classes), class_maps.maps(None)
        torch.testing.assert_close(maps, every[:, classes], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(every.mean((2, 3)), class_maps.logits, rtol=1e-9, atol=1e-9)
        act, last = plain.head.fc.act, plain.head.fc.fc2
        found[scale] = maps
    weights = last.weight[classes].sum(1)[:, None, None]
    alone = found[1.0] - last.bias[classes][:, None, None]
    expected = 1.75 * alone + last.bias[classes][:, None, None] - 0.5 * weights
    torch.testing.assert_close(maps, expected, rtol=1e-9, atol=1e-9)
    ours, theirs = (gradients(each.square().sum(), act) for each in (maps, every[:, classes]))
    for of_scale, of_shift in (ours, theirs):
        torch.testing.assert_close(of_scale.squeeze(), (2 * maps * alone).sum(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(of_shift.squeeze(), (2 * maps * weights).sum(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('training', [False, True])
def test_batch_norm_between_layers(training):
    """Statistics and gate detached, written out for MobileNetV4's head."""
    plain = timm.create_model('mobilenetv4_conv_small_035', num_classes=5).double()
    images, classes, norm = torch.randn(3, 3, 64, 96).double(), [3, 1], plain.norm_head
    with torch.no_grad():
        for each in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            each.copy_(torch.rand_like(each))
    model = CamModel(plain).train(training)
    running = norm.running_mean.clone(), norm.running_var.clone()
    class_maps = model.class_maps(images)
    assert isinstance(class_maps, HiddenMaps)
    found = class_maps.maps(classes)
    torch.testing.assert_close(found.mean((2, 3)), class_maps.logits[:, classes], rtol=1e-9, atol=1e-9)
    values = plain.conv_head(plain.forward_features(images))
    pooled = values.mean((2, 3)).detach()
    mean, variance = (pooled.mean(0), pooled.var(0, correction=0)) if training else running
    scale = (variance + norm.eps).rsqrt() * norm.weight
    normed, value = ((each.movedim(1, -1) - mean) * scale + norm.bias for each in (values, pooled))
    expected = plain.classifier(normed * (value > 0)[:, None, None]).movedim(-1, 1)
    torch.testing.assert_close(class_maps.maps(None), expected, rtol=1e-9, atol=1e-9)
    expected = expected[:, classes]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    factors = torch.randn_like(found)
    ours, theirs = (gradients((maps * factors).sum(), plain) for maps in (found, expected))
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


@pytest.mark.parametrize('first', [torch.no_grad, torch.inference_mode])
def test_maps_that_were_looked_at_without_gradients_have_them_later(first):
    model, images = class_maps_of('mobilenetv3')
    fresh, class_maps = model.class_maps(images), model.class_maps(images)
    with first():
        torch.testing.assert_close(class_maps.maps(None), fresh.maps(None).detach())
        changed = replace(class_maps, bias=None)
    expected = gradients(fresh.maps(None).square().sum(), model)
    assert_same(gradients(class_maps.maps(None).square().sum(), model), expected)
    assert changed.positions.requires_grad


def test_hnc_that_is_only_looked_at_leaves_other_losses_their_gradients():
    """Where `--hnc-start-epoch` comes later, its value is made without gradients, from maps that other losses share."""
    found = []
    for joins in (True, False):
        small = DETACHED_MODELS['mobilenetv3']
        task = HNCTask(
            small.cam_model().double(),
            hnc=HNCLoss('mse', topk=7),
            hnc_weight=0.0,
            verbose=False,
            map_losses={'consistency': (ConsistencyLoss(), 100.0)},
        )
        task.hnc_joins = joins
        loss = task(small.images().double(), torch.tensor([1, 2, 3]))['loss']
        found.append(gradients(loss, task))
    assert_same(*found, rtol=1e-9, atol=1e-12)


def test_positions_that_are_given_are_taken():
    model, images = class_maps_of('mobilenetv3')
    class_maps = replace(model.class_maps(images), positions=torch.zeros_like(model.class_maps(images).positions))
    for classes in ([0], None):
        maps, bias = class_maps.maps(classes), class_maps.bias if classes is None else class_maps.bias[classes]
        torch.testing.assert_close(maps, bias[:, None, None].expand_as(maps[0]).expand_as(maps))
    with pytest.raises(ValueError, match='positions of shape'):
        replace(class_maps, positions=class_maps.positions[:, :1])
    assert len(repr(model.class_maps(images))) < 100


def test_positions_are_made_once_when_they_are_asked_for():
    model, images = class_maps_of('mobilenetv3')
    class_maps = model.class_maps(images)
    class_maps.maps([0])
    assert class_maps.hidden.made is None
    assert class_maps.positions is class_maps.positions
    assert copy.copy(class_maps).grid == class_maps.grid
    with pytest.raises(AttributeError, match="'HiddenMaps' has no attribute 'other'"):
        _ = class_maps.other


def test_hidden_layers_that_were_trained_meanwhile_make_no_maps():
    model, images = class_maps_of('mobilenetv3')
    maps = model.class_maps(images)
    with torch.no_grad():
        next(layer for layer in maps.hidden.layers if isinstance(layer, Dense)).weight.mul_(2)
    for classes in ([1], None):  # back through the layers, and forward
        with pytest.raises(ValueError, match='weights have changed since these class maps were made'):
            maps.maps(classes)


@pytest.mark.parametrize(('name', 'of_maps'), [('mobilenetv3', True), ('mobilenetv3', False), ('vit', False)])
def test_ddp_finds_what_is_to_be_summed_of_a_static_graph(name, of_maps):
    """It looks for tensors in what the forward pass returned, and sums no gradient where it finds none."""
    small, summed = (DETACHED_MODELS | TAIL_MODELS)[name], []
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(small.cam_model(), static_graph=True)

        def as_it_is(state, bucket):
            summed.append(bucket.index())
            done = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        wrapped.register_comm_hook(None, as_it_is)
        for _ in range(2):
            maps = wrapped(small.images(), return_class_maps=True)
            (maps.maps([0, 1]) if of_maps else maps.logits).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert summed == [0, 0]
