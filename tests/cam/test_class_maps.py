import copy

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from timm_hnc import ClassMaps


def make(batch=3, height=2, width=3, features=5, classes=4, bias=True, dtype=torch.float64) -> ClassMaps:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return ClassMaps(
        draw(batch, height * width, features),
        draw(classes, features),
        draw(classes) if bias else None,
        (height, width),
    )


def map_by_hand(class_maps: ClassMaps, image: int, class_: int) -> torch.Tensor:
    """Eq. 1, one position after the other in raster order, and the bias."""
    height, width = class_maps.grid
    result = torch.zeros(height, width, dtype=class_maps.positions.dtype)
    for i in range(height):
        for j in range(width):
            vector = class_maps.positions[image, i * width + j]
            result[i, j] = sum(w * f for w, f in zip(class_maps.weight[class_], vector, strict=True))
            if class_maps.bias is not None:
                result[i, j] += class_maps.bias[class_]
    return result


@pytest.mark.parametrize('bias', [True, False])
def test_maps_are_equation_1_and_their_mean_is_the_logit(bias):
    class_maps = make(bias=bias)
    maps = class_maps.maps(None)
    expected = torch.stack([torch.stack([map_by_hand(class_maps, b, o) for o in range(4)]) for b in range(3)])
    torch.testing.assert_close(maps, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(maps.mean((2, 3)), class_maps.logits, rtol=1e-12, atol=1e-12)
    assert class_maps.num_classes == 4


@pytest.mark.parametrize('bias', [True, False])
def test_chosen_maps_and_their_gradients_are_those_of_all_maps(bias):
    class_maps = make(bias=bias)
    classes = torch.tensor([[2, 2], [0, 3], [3, 1]])  # a class twice for an image, and of several images
    leaves = [class_maps.positions, class_maps.weight, *([class_maps.bias] if bias else [])]
    chosen = class_maps.maps(classes)
    picked = torch.stack([class_maps.maps(None)[b, classes[b]] for b in range(3)])
    torch.testing.assert_close(chosen, picked, rtol=1e-12, atol=1e-12)
    factors = torch.randn(chosen.shape, dtype=chosen.dtype)
    ours, theirs = (torch.autograd.grad((maps * factors).sum(), leaves) for maps in (chosen, picked))
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    'classes', [3, [3], [2, 0, 2], (1, 3), range(4), np.int64(1), [np.int32(0)], torch.tensor(2), []]
)
def test_a_number_or_a_list_is_for_every_image(classes):
    class_maps = make()
    each = list(classes) if isinstance(classes, (list, tuple, range)) else [int(classes)]
    maps = class_maps.maps(classes)
    assert maps.shape == (3, len(each), 2, 3)
    picked = class_maps.maps(None)[:, each]
    torch.testing.assert_close(maps, picked, rtol=1e-12, atol=1e-12)
    factors = torch.randn(maps.shape, dtype=maps.dtype)
    leaves = [class_maps.positions, class_maps.weight, class_maps.bias]
    ours, theirs = (torch.autograd.grad((each * factors).sum(), leaves) for each in (maps, picked))
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_indices_may_be_of_any_integer_type(dtype):
    class_maps = make()
    classes = torch.tensor([[2, 2], [0, 3], [3, 1]])
    assert torch.equal(class_maps.maps(classes.to(dtype)), class_maps.maps(classes))


def test_only_the_maps_asked_for_are_computed():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.numel = max(self.numel, out.numel())
            return out

    batch, positions, classes, k = 4, 49, 21843, 5
    class_maps = ClassMaps(torch.randn(batch, positions, 8), torch.randn(classes, 8), torch.randn(classes), (7, 7))
    with Largest() as largest:
        indices, valid = class_maps.topk_negatives(torch.tensor([0, 5, 21842, 7]), k)
        maps = class_maps.maps(indices)
    assert maps.shape == (batch, k, 7, 7)
    assert valid.all()
    assert largest.numel == batch * classes  # the mask of negatives; all maps would be 49 times as many


def test_given_logits_are_kept():
    logits = torch.randn(3, 4)
    class_maps = make()
    given = ClassMaps(class_maps.positions, class_maps.weight, class_maps.bias, class_maps.grid, logits)
    assert given.logits is logits


@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])
def test_maps_have_the_type_of_the_positions(half):
    class_maps = make(dtype=torch.float32)
    halved = ClassMaps(
        class_maps.positions.to(half), class_maps.weight, class_maps.bias, class_maps.grid, torch.ones(3, 4)
    )
    assert halved.maps(torch.zeros(3, 2, dtype=torch.int64)).dtype == halved.maps(None).dtype == half
    torch.testing.assert_close(halved.maps(None).float(), class_maps.maps(None), rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize(
    ('positions', 'weight', 'grid', 'message'),
    [
        ((2, 6, 5), (4, 5), (2, 2), r'positions of shape \(2, 6, 5\): expected \(batch, 4, features\)'),
        ((2, 5), (4, 5), (1, 2), r'positions of shape \(2, 5\)'),
        ((2, 6, 5), (4, 3), (2, 3), r'weight of shape \(4, 3\): expected \(classes, 5\)'),
        ((2, 6, 5), (4, 5, 1, 1), (2, 3), r'weight of shape \(4, 5, 1, 1\)'),
    ],
)
def test_shapes_that_do_not_fit_are_refused(positions, weight, grid, message):
    with pytest.raises(ValueError, match=message):
        ClassMaps(torch.zeros(positions), torch.zeros(weight), None, grid)


def test_a_bias_or_logits_of_other_classes_are_refused():
    positions, weight = torch.zeros(2, 6, 5), torch.zeros(4, 5)
    with pytest.raises(ValueError, match=r'bias of shape \(3,\): expected \(4,\), a value a class'):
        ClassMaps(positions, weight, torch.zeros(3), (2, 3))
    with pytest.raises(ValueError, match=r'logits of shape \(2, 3\): expected \(batch, 4\)'):
        ClassMaps(positions, weight, None, (2, 3), torch.zeros(2, 3))


def test_contrast_explains_the_difference_of_two_logits():
    class_maps = make()
    first, others = torch.tensor([[2], [0], [3]]), torch.tensor([[0, 1], [3, 2], [0, 1]])
    found = class_maps.contrast(first, others)
    for image in range(3):
        for place, other in enumerate(others[image]):
            expected = map_by_hand(class_maps, image, first[image, 0]) - map_by_hand(class_maps, image, other)
            torch.testing.assert_close(found[image, place], expected)
    difference = class_maps.logits.gather(1, first) - class_maps.logits.gather(1, others)
    torch.testing.assert_close(found.mean((2, 3)), difference)
    torch.testing.assert_close(class_maps.contrast(2, [0, 1])[0], found[0])
    with pytest.raises(ValueError, match='2 classes and 3 others: expected as many, or one of either'):
        class_maps.contrast([0, 1], [0, 1, 2])


@pytest.mark.parametrize('part', ['weight', 'bias'])
def test_maps_are_not_made_with_a_classifier_that_was_trained_meanwhile(part):
    class_maps = make()
    with torch.no_grad():
        kept = copy.deepcopy(ClassMaps(class_maps.positions, class_maps.weight, class_maps.bias, class_maps.grid))
    expected = kept.maps([1])
    getattr(class_maps, part).sum().backward()
    torch.optim.SGD([getattr(class_maps, part)], lr=0.1).step()
    with pytest.raises(ValueError, match=r'weights have changed .* before optimizer\.step\(\)'):
        class_maps.maps([1])
    torch.testing.assert_close(kept.maps([1]), expected)


def test_maps_of_a_pass_without_gradients_have_none_afterwards():
    class_maps = make()
    with torch.no_grad():
        frozen = ClassMaps(class_maps.positions.detach(), class_maps.weight, class_maps.bias, class_maps.grid)
    assert not frozen.maps([1]).requires_grad
    np.testing.assert_allclose(frozen.maps().numpy(), class_maps.maps().detach().numpy())
