import gc
import weakref

import pytest
import timm
import torch
from small_models import DETACHED_MODELS, MODELS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from timm_hnc import CamModel, ClassMaps, hnc_loss
from timm_hnc.cam.selected import gathered_scores, one_product_is_cheaper, product_scores, selected_scores

SIZES = {'rows': (3, 6, 5, 40, 4), 'product': (3, 4, 20, 9, 6)}  # images, positions, features, classes, chosen


def make(sizes, dtype=torch.float64):
    images, length, features, classes, k = sizes
    generator = torch.Generator().manual_seed(0)
    positions = torch.randn(images, length, features, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(classes, features, generator=generator, dtype=dtype).requires_grad_()
    return positions, weight, torch.randint(classes, (images, k), generator=generator)


def linear_maps(positions, weight, bias=None) -> ClassMaps:
    logits = torch.nn.functional.linear(positions.mean(1), weight, bias)
    return ClassMaps(positions, weight, bias, (1, positions.shape[1]), logits)


def by_hand(positions: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    images = zip(positions.double(), classes, strict=True)
    return torch.stack([torch.einsum('ld,kd->kl', image, weight.double()[chosen]) for image, chosen in images])


@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('way', [gathered_scores, product_scores, 'chosen'])
def test_both_ways_and_their_gradients_are_those_of_float64(sizes, dtype, way):
    positions, weight, classes = make(sizes, dtype)
    logits = torch.nn.functional.linear(positions.mean(1), weight)
    scores = selected_scores(positions, weight, classes, logits) if way == 'chosen' else way(positions, weight, classes)
    expected = by_hand(positions, weight, classes)
    factors = torch.randn(expected.shape, dtype=torch.float64)

    def gradients(scores):
        return torch.autograd.grad((scores * factors).sum() + logits.double().square().sum(), [positions, weight])

    kwargs = {'rtol': 1e-5, 'atol': 1e-4} if dtype == torch.float32 else {'rtol': 1e-12, 'atol': 1e-12}
    torch.testing.assert_close(scores.double(), expected, **kwargs)
    reference = torch.autograd.grad(
        (expected * factors).sum() + logits.double().square().sum(), [positions, weight], retain_graph=True
    )
    torch.testing.assert_close(gradients(scores), reference, **kwargs)


BEHIND_BATCH_NORM = {name: (MODELS | DETACHED_MODELS)[name] for name in ('efficientnet', 'mobilenetv3', 'efficientvit')}


@pytest.mark.parametrize('name', [*BEHIND_BATCH_NORM, 'pooled', 'flattened'])
def test_the_gradient_of_one_image_is_that_of_the_same_image_twice(name):
    """Batch normalization on a CPU reads a gradient of unusual strides as another one; a batch of one may have them."""
    image = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    if name in ('pooled', 'flattened'):
        torch.manual_seed(0)
        pool = [torch.nn.AdaptiveAvgPool2d(1)] if name == 'pooled' else []
        body = [torch.nn.Conv2d(3, 16, 16, 16), torch.nn.BatchNorm2d(16), torch.nn.SiLU()]
        linear = torch.nn.Linear(16 if pool else 16 * 6 * 4, 23)
        model = CamModel(torch.nn.Sequential(*body, *pool, torch.nn.Flatten(), linear).eval(), image_size=(96, 64))
    else:
        model = BEHIND_BATCH_NORM[name].cam_model(num_classes=200)
    first = next(model.parameters())

    def gradient(batch):
        class_maps = model.class_maps(image.expand(batch, -1, -1, -1))
        (found,) = torch.autograd.grad(hnc_loss(class_maps, torch.full((batch,), 3), 'kd', topk=2), first)
        return found

    expected = gradient(2)
    torch.testing.assert_close(gradient(1), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
def test_gradients_of_gradients(sizes):
    positions, weight, classes = make(sizes)
    logits = torch.nn.functional.linear(positions.mean(1), weight)

    def scores(positions, weight):
        return selected_scores(positions, weight, classes, logits)

    assert torch.autograd.gradcheck(scores, (positions, weight))
    assert torch.autograd.gradgradcheck(scores, (positions, weight))


def losses_of(class_maps: ClassMaps) -> dict[str, Tensor]:
    target = torch.tensor([3, 0, 7])
    ce = torch.nn.functional.cross_entropy(class_maps.logits, target)
    mse, kd = (hnc_loss(class_maps, target, variant, topk=4) for variant in ('mse', 'kd'))
    return {'hnc alone': mse, 'with ce': ce + 0.1 * mse, 'hnc twice': ce + mse + kd, 'ce alone': ce}


@pytest.mark.parametrize('name', ['hnc alone', 'with ce', 'hnc twice', 'ce alone'])
@pytest.mark.parametrize('bias', [True, False])
def test_the_weights_gradient_is_dense_and_whole_whatever_else_is_in_the_loss(name, bias):
    positions, weight, _ = make(SIZES['rows'])
    bias = torch.randn(40, dtype=torch.float64, requires_grad=True) if bias else None
    reference = ClassMaps(positions, weight * 1, bias, (1, 6))  # the weight is no leaf: the plain way
    (expected,) = torch.autograd.grad(losses_of(reference)[name], weight)
    class_maps = linear_maps(positions, weight, bias)
    loss = losses_of(class_maps)[name]
    for _ in range(2):  # the second pass through one graph finds nothing of the first
        weight.grad = None
        loss.backward(retain_graph=True)
        assert weight.grad.layout == torch.strided
        torch.testing.assert_close(weight.grad, expected, rtol=1e-12, atol=1e-12)
    (found,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sum()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_a_loss_that_hands_the_logits_no_gradient():
    positions, weight, _ = make(SIZES['rows'])
    class_maps = linear_maps(positions, weight)
    mse = losses_of(class_maps)['hnc alone']
    (expected,) = torch.autograd.grad(mse, weight, retain_graph=True)
    (NoGradient.apply(class_maps.logits) + mse).backward()
    torch.testing.assert_close(weight.grad, expected, rtol=1e-12, atol=1e-12)
    assert expected.any()


def test_a_backward_pass_that_failed_leaves_nothing_for_the_next():
    positions, weight, _ = make(SIZES['rows'])
    class_maps = linear_maps(positions, weight)
    loss = losses_of(class_maps)['with ce']
    (expected,) = torch.autograd.grad(loss, weight, retain_graph=True)
    failing = class_maps.logits.grad_fn.register_prehook(lambda _: (_ for _ in ()).throw(ArithmeticError('stop')))
    with pytest.raises(ArithmeticError):
        loss.backward(retain_graph=True)
    failing.remove()
    weight.grad = None
    loss.backward()
    torch.testing.assert_close(weight.grad, expected)


@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext', 'test_vit'])
@pytest.mark.parametrize('bf16', [False, True])
def test_models_get_the_gradients_of_the_plain_way(name, bf16, monkeypatch):
    torch.manual_seed(0)
    options = {'global_pool': 'avg', 'class_token': False, 'img_size': 96, 'depth': 2} if name == 'test_vit' else {}
    dtype = torch.float32 if bf16 else torch.float64
    model = timm.create_model(name, num_classes=60, **options).to(dtype).train()
    cam_model, target = CamModel(model), torch.tensor([3, 50])
    images = torch.randn(2, 3, 96, 96, dtype=dtype)

    def gradients():
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            maps = cam_model.class_maps(images)
            loss = torch.nn.functional.cross_entropy(maps.logits, target) + hnc_loss(maps, target, topk=5)
        loss.backward()
        return {key: parameter.grad.clone() for key, parameter in model.named_parameters()}

    ours = gradients()
    monkeypatch.setattr('timm_hnc.cam.class_maps.selected_scores', lambda *args: gathered_scores(*args[:3]))
    # bfloat16 rounds once more or less where gradients of two ways are added
    torch.testing.assert_close(ours, gradients(), rtol=2e-2 if bf16 else 1e-9, atol=1e-2 if bf16 else 1e-10)


class Shapes(TorchDispatchMode):
    """How often an operation wrote a new tensor of each shape."""

    def __init__(self):
        super().__init__()
        self.counts: dict[tuple[int, ...], int] = {}
        self._seen: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self._seen:
                self._seen[tensor.untyped_storage().data_ptr()] = tensor
                self.counts[tuple(tensor.shape)] = self.counts.get(tuple(tensor.shape), 0) + 1
        return result


def step(images, length, features, classes, k):
    """A step of cross-entropy and HNC behind a pool and a linear layer, and the shapes that it wrote."""
    positions = torch.randn(images, length, features, requires_grad=True)
    weight = torch.randn(classes, features, requires_grad=True)
    saved: list[Tensor] = []
    target = torch.zeros(images, dtype=torch.long)

    def keep(tensor):
        saved.append(tensor)
        return tensor

    with Shapes() as shapes:
        shapes._seen = {tensor.untyped_storage().data_ptr(): tensor for tensor in (positions, weight)}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            class_maps = linear_maps(positions, weight)
            ce = torch.nn.functional.cross_entropy(class_maps.logits, target)
            of_ce = len(saved)
            loss = ce + hnc_loss(class_maps, target, 'mse', topk=k)
        loss.backward()
    new = {tensor.untyped_storage().data_ptr(): tensor for tensor in saved[of_ce:]}
    for tensor in (positions, weight, class_maps.logits):
        new.pop(tensor.untyped_storage().data_ptr(), None)
    return shapes.counts, sum(tensor.numel() for tensor in new.values())


def test_k_maps_are_made_and_one_gradient_of_the_weight():
    images, length, features, classes, k = 2, 7, 11, 1013, 5
    counts, _ = step(images, length, features, classes, k)
    assert (images, k, length) in counts
    assert not any(classes in shape and length in shape for shape in counts)  # no map of a class not chosen
    assert counts.get((classes, features), 0) + counts.get((features, classes), 0) == 1


@pytest.mark.parametrize('classes', [1013, 4051])
def test_backward_keeps_maps_and_indices_but_no_rows(classes):
    images, length, features, k = 2, 7, 311, 5
    _, kept = step(images, length, features, classes, k)
    assert kept <= images * k * (length + 4) + 8  # a map, its index, whether it counts: whatever the number of classes
    assert kept < images * k * features


def test_nothing_keeps_the_graph_alive():
    gc.collect()
    gc.disable()
    try:
        positions, weight, _ = make(SIZES['rows'])
        hidden = positions * 2
        class_maps = linear_maps(hidden, weight)
        loss = losses_of(class_maps)['with ce']
        watched = weakref.ref(hidden)
        assert watched() is not None
        del hidden, class_maps, loss
        assert watched() is None
    finally:
        gc.enable()


def test_deterministic_algorithms_give_equal_bits():
    def gradients():
        positions, weight, _ = make(SIZES['rows'], torch.float32)
        losses_of(linear_maps(positions, weight))['hnc twice'].backward()
        return positions.grad, weight.grad

    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(), gradients()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ('small', 'options'),
    [
        (MODELS['resnet'], {'layers': (1, 1, 0, 0), 'channels': (16,) * 4}),
        pytest.param(DETACHED_MODELS['convnext'], {}, marks=pytest.mark.slow),
    ],
    ids=['resnet', 'convnext'],
)
def test_compiled_models_give_the_same_loss_and_gradients(small, options):
    model = small.make(num_classes=60, **options).double().train()
    cam_model, target = CamModel(model), torch.tensor([3, 50])
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)

    def loss_of(images, target):
        maps = cam_model(images, return_class_maps=True)
        return torch.nn.functional.cross_entropy(maps.logits, target) + hnc_loss(maps, target, topk=5)

    found = []
    for function in (loss_of, torch.compile(loss_of, backend='aot_eager')):
        model.zero_grad()
        loss = function(images, target)
        loss.backward()
        found.append({'loss': loss.detach(), **{key: each.grad.clone() for key, each in model.named_parameters()}})
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ('k', 'positions', 'features', 'classes', 'product'),
    [
        (100, 49, 2048, 1000, False),
        (100, 49, 2048, 21843, False),
        (300, 49, 2048, 1000, True),
        (10, 49, 2048, 10, True),
        (100, 1, 2048, 1000, True),
        (10, 64, 64, 10, False),
        (100, 64, 64, 100, False),
    ],
)
def test_the_way_follows_from_sizes_alone(k, positions, features, classes, product):
    assert one_product_is_cheaper(k, positions, features, classes) is product
