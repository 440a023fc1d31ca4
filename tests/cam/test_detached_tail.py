"""Class-token models as they are listed: maps for pictures, through the detached tail of the network."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from map_checks import off_by
from small_models import NUM_CLASSES, TAIL_MODELS, SmallModel
from torch.nn import functional

from timm_hnc import CamModel, HNCTask, hnc_loss
from timm_hnc.cam.heads.probe import UnsupportedHead
from timm_hnc.cam.heads.sparse_products import SparseLinear, SparseMix
from timm_hnc.losses.maps.separability import SeparabilityLoss

ALL = pytest.mark.parametrize('small', TAIL_MODELS.values(), ids=TAIL_MODELS)


@ALL
def test_mean_of_maps_is_the_logit(small):
    plain, model = small.make(), small.cam_model()
    assert (model.kind.name, model.kind.exact, model.kind.trainable) == (small.kind, True, False)
    with torch.no_grad():
        class_maps = model.class_maps(small.images())
        assert torch.equal(class_maps.logits, plain(small.images()))
    maps = class_maps.maps(None)
    assert class_maps.grid == small.grid
    assert maps.shape == (3, NUM_CLASSES, *small.grid)
    assert maps.std((2, 3)).min() > 0
    assert off_by(class_maps) < 1e-5


@pytest.mark.parametrize('copied', [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies_that_could_make_no_maps_are_refused(copied):
    small = TAIL_MODELS['vit']
    with pytest.raises(TypeError, match=r'made by a backward pass, which no copy has: keep maps\(classes\) of them'):
        copied(small.cam_model().class_maps(small.images()))


@pytest.mark.parametrize('name', ['vit', 'xcit', 'coat_lite', 'volo'])
def test_mean_of_maps_is_the_logit_in_float64(name):
    small = TAIL_MODELS[name]
    assert off_by(small.cam_model().double().class_maps(small.images().double())) < 1e-9


@pytest.mark.parametrize('name', ['vit', 'eva', 'convit', 'deit_distilled'])
def test_the_detached_tail_is_affine_in_the_tokens(name):
    """Its maps are those tokens times gradients: twice the tokens' difference, twice the logits' difference."""
    small = TAIL_MODELS[name]
    model = small.cam_model().double()
    class_maps = model.class_maps(small.images().double())
    (start,) = class_maps._starts
    (gradient,) = torch.autograd.grad(class_maps._detached[:, 2].sum(), start.shadow, retain_graph=True)
    (again,) = torch.autograd.grad(class_maps._detached[:, 2].square().sum(), start.shadow, retain_graph=True)
    expected = 2 * class_maps._detached[:, 2].detach()[:, None, None] * gradient
    torch.testing.assert_close(again, expected, rtol=1e-9, atol=1e-9)
    share = (start.shadow * gradient).sum(-1)[:, start.live.prefix :] * start.live.num_positions
    maps = class_maps.maps(torch.full((3, 1), 2)).flatten(1)
    torch.testing.assert_close(maps - maps.mean(1, True), share - share.mean(1, True), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('rows', [[], [0], [0, 3, 4], range(6)], ids=str)
@pytest.mark.parametrize('columns', [slice(0, 0), slice(2, 4)], ids=['all columns', 'few columns'])
def test_products_of_few_rows_have_the_gradients_of_torch(rows, columns):
    generator = torch.Generator().manual_seed(0)
    tokens, mixture, weight, upstream = (
        torch.randn(*shape, generator=generator).double() for shape in ((2, 6, 5), (2, 6, 6), (5, 5), (2, 6, 5))
    )
    upstream[:, [row for row in range(6) if row not in rows]] = 0
    upstream[..., columns] = 0
    upstream[0, :, 4] = 0  # not in all images
    bias = weight[0]
    for plain, sparse in (
        (lambda leaf: functional.linear(leaf, weight, bias), lambda leaf: SparseLinear.apply(leaf, weight, bias)),
        (lambda leaf: mixture @ leaf, lambda leaf: SparseMix.apply(mixture, leaf)),
    ):
        leaf = tokens.clone().requires_grad_()
        expected, found = plain(leaf), sparse(leaf)
        assert torch.equal(expected, found)
        gradients = [torch.autograd.grad(out, leaf, upstream)[0] for out in (expected, found)]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_products_in_autocast_whose_gradient_is_taken_outside():
    torch.manual_seed(0)
    tokens, mixture, weight = torch.randn(2, 6, 5, requires_grad=True), torch.rand(2, 6, 6), torch.rand(5, 5)
    with torch.autocast('cpu', torch.bfloat16):
        out = SparseLinear.apply(SparseMix.apply(mixture, tokens), weight)
    assert out.dtype == torch.bfloat16
    (found,) = torch.autograd.grad(out.sum(), tokens)
    expected = mixture.sum(1)[..., None] * weight.sum(0)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_factors_are_the_maps_themselves():
    small = TAIL_MODELS['vit']
    class_maps = CamModel(small.make().double()).class_maps(small.images().double())
    assert class_maps.positions.shape == (3, 24, NUM_CLASSES)
    assert class_maps.num_classes == NUM_CLASSES
    torch.testing.assert_close(class_maps.positions.mean(1) @ class_maps.weight.T, class_maps.logits.detach())
    chosen = torch.tensor([[3, 3], [0, 6], [5, 1]])
    maps = class_maps.maps(None)
    expected = torch.stack([maps[image, classes] for image, classes in enumerate(chosen)])
    torch.testing.assert_close(class_maps.maps(chosen), expected)


@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradient_modes(context):
    small = TAIL_MODELS['vit']
    model = small.cam_model()
    expected = model.class_maps(small.images()).maps(None)
    with context():
        class_maps = model.class_maps(small.images())
        torch.testing.assert_close(class_maps.maps(None), expected)
    assert not class_maps.maps(None).requires_grad
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_logits_have_their_own_gradient():
    small = TAIL_MODELS['vit']
    plain, model = small.make(drop_path_rate=0.3).train(), small.cam_model(drop_path_rate=0.3).train()
    torch.manual_seed(3)
    plain(small.images()).square().sum().backward()
    torch.manual_seed(3)
    model.class_maps(small.images()).logits.square().sum().backward()
    for (name, ours), (_, theirs) in zip(model.model.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name


def test_nothing_is_trained_on_them():
    small = TAIL_MODELS['vit']
    model = small.cam_model()
    with pytest.raises(UnsupportedHead, match=r"no trainable class maps for 'test_vit': .*\(--gp avg\)"):
        HNCTask(model)
    class_maps = model.class_maps(small.images())
    with pytest.raises(ValueError, match='for pictures and evaluation'):
        hnc_loss(class_maps, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match='for pictures and evaluation'):
        SeparabilityLoss()(class_maps, torch.tensor([0, 1, 2]))
    with torch.no_grad():
        assert hnc_loss(class_maps, torch.tensor([0, 1, 2]), topk=2).isfinite()
    HNCTask(small.cam_model(global_pool='avg'), verbose=False)


@pytest.mark.parametrize('name', ['vit', 'xcit'])
def test_gradient_checkpointing(name):
    """The detached network beside a checkpointed block leaves its recomputation alone."""
    small = TAIL_MODELS[name]
    model = small.cam_model()
    expected = model.class_maps(small.images()).maps(None)
    model.model.set_grad_checkpointing()
    class_maps = model.class_maps(small.images())
    torch.testing.assert_close(class_maps.maps(None), expected)
    class_maps.logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.model.get_classifier().parameters())


def test_two_threads():
    """The other thread's pass enters the same block."""
    small = SmallModel('test_vit', 'G', (160, 160), (10, 10), {'dynamic_img_size': True, 'depth': 2})
    model = small.cam_model()
    images = {(10, 10): small.images(1), (4, 6): torch.randn(1, 3, 64, 96)}
    expected = {grid: model.class_maps(x).maps(None) for grid, x in images.items()}

    def run(grid):
        return all(torch.equal(model.class_maps(images[grid]).maps(None), expected[grid]) for _ in range(10))

    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(run, images))
