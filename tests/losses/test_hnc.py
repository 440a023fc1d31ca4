import math
import random

import pytest
import torch
from timm.data.mixup import mixup_target

from timm_hnc import ClassMaps, HNCLoss, hnc_loss

EACH = pytest.mark.parametrize('variant', ['mse', 'kd', 'var', 'logit'])


def make(batch=3, grid=(2, 3), features=5, classes=6, seed=0, dtype=torch.float64, bias=True) -> ClassMaps:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    bias = draw(classes) if bias else None
    return ClassMaps(draw(batch, grid[0] * grid[1], features), draw(classes, features), bias, grid)


def leaves(class_maps: ClassMaps) -> list[torch.Tensor]:
    return [t for t in (class_maps.positions, class_maps.weight, class_maps.bias) if t is not None]


def from_maps(maps: torch.Tensor) -> ClassMaps:
    """One image's class maps whose maps are the given (n, h, w) numbers: the features are the maps themselves."""
    classes, height, width = maps.shape
    return ClassMaps(maps.flatten(1).T[None], torch.eye(classes, dtype=maps.dtype), None, (height, width))


def negatives_by_the_paper(scores: torch.Tensor, positives: set[int], k: int) -> list[int]:
    """J'_> of section 3.2: t_k is the k-th highest of the negatives' scores; those at or above it."""
    negatives = [o for o in range(len(scores)) if o not in positives]
    if not negatives:
        return []
    threshold = sorted((scores[o].item() for o in negatives), reverse=True)[min(k, len(negatives)) - 1]
    return [o for o in negatives if scores[o].item() >= threshold]


def by_the_paper(class_maps, positives, variant, k, alpha=0.0, reduction='sum'):
    """Eq. 1, 2 and 5 in loops; positives is a set of classes for every image."""
    height, width = class_maps.grid
    total = 0.0
    for image, present in enumerate(positives):
        maps = {}
        for o in range(len(class_maps.weight)):
            bias = 0.0 if class_maps.bias is None else class_maps.bias[o]
            maps[o] = [
                [(class_maps.weight[o] * class_maps.positions[image, i * width + j]).sum() + bias for j in range(width)]
                for i in range(height)
            ]
        scores = torch.stack([sum(sum(row) for row in maps[o]) / (height * width) for o in maps])
        chosen = negatives_by_the_paper(scores, present, k)
        loss = 0.0
        for o in chosen:
            cells = [cell for row in maps[o] for cell in row]
            if variant == 'mse':
                loss = loss + sum((cell - alpha) ** 2 for cell in cells) / (height * width)
            elif variant == 'var':
                loss = loss + sum((cell - scores[o]) ** 2 for cell in cells) / (height * width)
            elif variant == 'logit':
                loss = loss + (scores[o] - alpha) ** 2
            else:
                normaliser = sum(cell.exp() for cell in cells)
                loss = loss - sum((cell.exp() / normaliser).log() for cell in cells) / (height * width)
        total = total + (loss / len(chosen) if reduction == 'mean' and chosen else loss)
    return total / len(positives)


# --- Eq. 2 and Eq. 5 ---


@EACH
@pytest.mark.parametrize('reduction', ['sum', 'mean'])
@pytest.mark.parametrize('seed', range(6))
def test_loss_and_gradients_are_those_of_the_paper(variant, reduction, seed):
    draw = random.Random(seed)
    grid = draw.choice([(1, 1), (1, 4), (3, 2), (2, 3)])
    class_maps = make(draw.randint(1, 4), grid, draw.randint(1, 5), draw.randint(2, 7), seed, bias=draw.random() < 0.7)
    k, alpha = draw.randint(1, 9), draw.choice([0.0, 0.3, -1.5])
    n = class_maps.num_classes
    labels = [draw.randrange(n) for _ in class_maps.positions]
    sets = [set(draw.sample(range(n), draw.randint(0, n - 1))) for _ in labels]  # at least one negative
    dense = torch.tensor([[float(o in present) for o in range(n)] for present in sets])
    for target, positives in ((torch.tensor(labels), [{label} for label in labels]), (dense, sets)):
        loss = hnc_loss(class_maps, target, variant, k, alpha, reduction)
        expected = by_the_paper(class_maps, positives, variant, k, alpha, reduction)
        assert loss.dtype == torch.float64
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
        ours, theirs = (torch.autograd.grad(value, leaves(class_maps), retain_graph=True) for value in (loss, expected))
        for gradient, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-10)


@EACH
def test_module_is_the_function(variant):
    class_maps, target = make(), mixup_target(torch.tensor([0, 1, 2]), 6, 0.3, smoothing=0.1)
    module = HNCLoss(variant, topk=2, alpha=0.4, reduction='mean')
    expected = hnc_loss(class_maps, target, variant, 2, 0.4, 'mean', target_floor=0.1 / 6)
    assert torch.equal(module(class_maps, target, target_floor=0.1 / 6), expected)
    assert not torch.equal(module(class_maps, target), expected)
    assert repr(module) == f'HNCLoss(variant={variant}, topk=2, alpha=0.4, reduction=mean)'
    assert module.needs == 'class_maps'
    assert not list(module.parameters())


@pytest.mark.parametrize('alpha', [0.0, 0.7])
def test_mse_is_the_sum_of_its_halves(alpha):
    class_maps, target = make(), torch.tensor([0, 1, 2])
    mse, var, logit = (hnc_loss(class_maps, target, variant, 3, alpha) for variant in ('mse', 'var', 'logit'))
    torch.testing.assert_close(var + logit, mse, rtol=1e-12, atol=0)
    whole, halves = (torch.autograd.grad(loss, leaves(class_maps), retain_graph=True) for loss in (mse, var + logit))
    torch.testing.assert_close(halves, whole, rtol=1e-10, atol=1e-12)


def test_logit_makes_no_maps(monkeypatch):
    class_maps = make()
    monkeypatch.setattr(ClassMaps, 'maps', None)
    assert hnc_loss(class_maps, torch.tensor([0, 1, 2]), 'logit', 3) > 0


def test_reduction_and_alpha_by_hand():
    maps = torch.tensor([[[9.0, 9.0]], [[2.0, 4.0]], [[1.0, -1.0]], [[-8.0, -8.0]]], dtype=torch.float64)
    class_maps, target = from_maps(maps), torch.tensor([0])
    assert hnc_loss(class_maps, target, 'mse', topk=2) == (4 + 16) / 2 + (1 + 1) / 2
    assert hnc_loss(class_maps, target, 'mse', topk=2, alpha=1.0) == (1 + 9) / 2 + (0 + 4) / 2
    assert hnc_loss(class_maps, target, 'mse', topk=2, reduction='mean') == ((4 + 16) / 2 + (1 + 1) / 2) / 2
    assert hnc_loss(class_maps, target, 'mse', topk=100) == 10 + 1 + 64
    assert hnc_loss(class_maps, target, 'mse', topk=100, reduction='mean') == (10 + 1 + 64) / 3  # 3 negatives, not 4
    kd = math.log(math.exp(2) + math.exp(4)) - 3 + math.log(math.exp(1) + math.exp(-1)) - 0
    assert hnc_loss(class_maps, target, 'kd', topk=2).item() == pytest.approx(kd, rel=1e-12)
    assert hnc_loss(class_maps, target, 'kd', topk=2, reduction='mean').item() == pytest.approx(kd / 2, rel=1e-12)


def test_mean_over_the_batch():
    class_maps, target = make(batch=3), torch.tensor([0, 4, 2])
    singles = [
        hnc_loss(ClassMaps(class_maps.positions[[b]], class_maps.weight, class_maps.bias, (2, 3)), target[[b]], 'kd', 2)
        for b in range(3)
    ]
    torch.testing.assert_close(hnc_loss(class_maps, target, 'kd', 2), sum(singles) / 3, rtol=1e-12, atol=0)


@EACH
def test_gradcheck(variant):
    target = torch.tensor([[1.0, 0, 0, 0, 0, 0.5], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])  # the last has no negatives
    class_maps = make(grid=(1, 2), features=3)

    def loss(positions, weight, bias):
        return hnc_loss(ClassMaps(positions, weight, bias, (1, 2)), target, variant, 3, alpha=0.2)

    assert torch.autograd.gradcheck(loss, leaves(class_maps))
    assert torch.autograd.gradgradcheck(loss, leaves(class_maps))


# --- section 3.3: gradients with respect to the maps ---


def test_equation_10_the_gradient_of_cross_entropy_is_the_same_everywhere():
    maps = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(from_maps(maps).logits, torch.tensor([2]))
    (gradient,) = torch.autograd.grad(loss, maps)
    beta = 1 / 12
    exponentials = (beta * maps.sum((1, 2))).exp()
    one_hot = torch.tensor([0.0, 0, 1, 0, 0], dtype=torch.float64)
    expected = beta * exponentials / exponentials.sum() - beta * one_hot
    torch.testing.assert_close(gradient, expected[:, None, None].expand(5, 3, 4), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('alpha', [0.0, 0.7])
def test_equations_11_and_12_suppress_peaks(alpha):
    maps = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    target, beta = torch.tensor([2]), 1 / 12
    negatives = negatives_by_the_paper(maps.mean((1, 2)), {2}, 2)
    (mse,) = torch.autograd.grad(hnc_loss(from_maps(maps), target, 'mse', 2, alpha), maps)
    (kd,) = torch.autograd.grad(hnc_loss(from_maps(maps), target, 'kd', 2), maps)
    for o in range(5):
        if o in negatives:
            torch.testing.assert_close(mse[o], 2 * beta * (maps[o] - alpha), rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(kd[o], maps[o].exp() / maps[o].exp().sum() - beta, rtol=1e-10, atol=1e-12)
            assert mse[o].argmax() == kd[o].argmax() == maps[o].argmax()
        else:
            assert not mse[o].any()
            assert not kd[o].any()


# --- Proposition 1 (the paper prints M' for M, and > for >=) ---


@pytest.mark.parametrize('grid', [(1, 1), (1, 2), (3, 2), (7, 7)])
@pytest.mark.parametrize('scale', [0.01, 1.0, 30.0])
def test_proposition_1(grid, scale):
    maps = scale * torch.randn(6, *grid, dtype=torch.float64)
    negatives = negatives_by_the_paper(maps.mean((1, 2)), {1}, 3)
    kd = hnc_loss(from_maps(maps), torch.tensor([1]), 'kd', 3).item()
    cells = {o: maps[o].flatten().tolist() for o in negatives}
    means = {o: sum(cells[o]) / len(cells[o]) for o in negatives}
    log_sum_exp = sum(math.log(sum(map(math.exp, cells[o]))) - means[o] for o in negatives)
    bound = sum(max(cells[o]) - means[o] for o in negatives)
    assert kd == pytest.approx(log_sum_exp, rel=1e-12, abs=1e-12)
    assert kd >= bound - 1e-9
    if grid == (1, 1):
        assert kd == pytest.approx(0, abs=1e-12)
        assert bound == 0
    elif scale < 30:
        assert kd > bound
    assert kd >= 3 * math.log(len(cells[negatives[0]])) - 1e-9  # least where the maps are homogeneous


def test_homogeneous_maps_are_the_minimum():
    maps = (torch.arange(4.0, dtype=torch.float64)[:, None, None]).expand(4, 2, 3).clone().requires_grad_()
    loss = hnc_loss(from_maps(maps), torch.tensor([0]), 'kd', 2)
    (gradient,) = torch.autograd.grad(loss, maps)
    assert loss.item() == pytest.approx(2 * math.log(6), rel=1e-12)
    assert gradient.abs().max() < 1e-12


# --- choice of negatives ---


@EACH
def test_selection_among_ties_takes_k(variant):
    """The paper's threshold takes all five equal classes; k of them are taken here, and any k give the same loss."""
    maps = torch.randn(1, 2, 3, dtype=torch.float64).expand(6, 2, 3)
    one = hnc_loss(from_maps(maps), torch.tensor([3]), variant, 1)
    for k in range(1, 7):
        loss = hnc_loss(from_maps(maps), torch.tensor([3]), variant, k)
        torch.testing.assert_close(loss, min(k, 5) * one, rtol=1e-12, atol=0)
    assert len(negatives_by_the_paper(maps.mean((1, 2)), {3}, 2)) == 5


@EACH
@pytest.mark.parametrize('reduction', ['sum', 'mean'])
def test_images_without_negatives_add_nothing(variant, reduction):
    class_maps = make(batch=2)
    target = torch.tensor([[1.0] * 6, [1.0, 0, 0, 0, 0, 0]])
    loss = hnc_loss(class_maps, target, variant, 3, 0.5, reduction)
    alone = ClassMaps(class_maps.positions[1:], class_maps.weight, class_maps.bias, (2, 3))
    torch.testing.assert_close(loss, hnc_loss(alone, target[1:], variant, 3, 0.5, reduction) / 2)
    gradient, *others = torch.autograd.grad(loss, leaves(class_maps), retain_graph=True)
    assert not gradient[0].any()
    assert all(g.isfinite().all() and g.any() for g in (gradient, *others))
    nothing = hnc_loss(class_maps, torch.ones(2, 6), variant, 3, 0.5, reduction)
    assert nothing == 0
    for gradient in torch.autograd.grad(nothing, leaves(class_maps)):
        assert not gradient.any()


@EACH
def test_one_class(variant):
    class_maps = make(classes=1)
    loss = hnc_loss(class_maps, torch.tensor([0, 0, 0]), variant)
    assert loss == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, leaves(class_maps)))
    absent = hnc_loss(class_maps, torch.zeros(3, 1), variant)
    torch.testing.assert_close(absent, by_the_paper(class_maps, [set()] * 3, variant, 1))


@EACH
def test_a_huge_map_of_a_positive_class_does_not_spoil_the_gradient(variant):
    """Where images have fewer negatives than k, maps of positive classes are computed and left out."""
    maps = torch.tensor([[[1e200, 1e200]], [[1.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    loss = hnc_loss(from_maps(maps), torch.tensor([0]), variant, topk=2)
    (gradient,) = torch.autograd.grad(loss, maps)
    assert gradient[1].isfinite().all()
    assert loss.isfinite()


@EACH
@pytest.mark.parametrize('classes', [5, 1000, 21843])
@pytest.mark.parametrize('multi_label', [False, True])
def test_mixed_and_smoothed_targets_equal_their_sets(variant, classes, multi_label):
    """Mixup's target with its floor gives the loss of the plain sets of classes in it."""
    smoothing, lam = 0.1, 0.3
    class_maps = make(batch=4, classes=classes, features=3)
    if multi_label:
        labels = (torch.rand(4, classes, generator=torch.Generator().manual_seed(1)) < 1.5 / classes).float()
        present, floor = (labels + labels.flip(0)).clamp(max=1), smoothing / 2
    else:
        labels = torch.randint(classes, (4,), generator=torch.Generator().manual_seed(1))
        one_hot = (
            torch.eye(classes)[labels] if classes < 5000 else torch.zeros(4, classes).scatter(1, labels[:, None], 1)
        )
        present, floor = (one_hot + one_hot.flip(0)).clamp(max=1), smoothing / classes
    target = mixup_target(labels, classes, lam, smoothing, multi_label)
    expected = hnc_loss(class_maps, present, variant, topk=7)
    assert torch.equal(hnc_loss(class_maps, target, variant, topk=7, target_floor=floor), expected)
    assert expected > 0
    assert hnc_loss(class_maps, target, variant, topk=7) == 0  # without the floor every class seems present


# --- numbers ---


@EACH
@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])
def test_half_types_are_raised(variant, half):
    class_maps = make(dtype=torch.float32)
    with torch.no_grad():
        class_maps.positions.mul_(20)  # squares of such maps overflow float16
    halves = ClassMaps(class_maps.positions.to(half), class_maps.weight.to(half), class_maps.bias.to(half), (2, 3))
    target = torch.tensor([0, 1, 2])
    loss = hnc_loss(halves, target, variant, 2)
    assert loss.dtype == torch.float32
    negatives = halves.topk_negatives(target, 2)[0]
    raised, logits = halves.maps(negatives).double().flatten(2), halves.logits.gather(1, negatives).double()
    per_map = {
        'mse': raised.square().mean(-1),
        'kd': -raised.log_softmax(-1).mean(-1),
        'var': (raised - raised.mean(-1, keepdim=True)).square().mean(-1),
        'logit': logits.square(),
    }[variant]
    torch.testing.assert_close(loss.double(), per_map.sum(1).mean(), rtol=1e-5, atol=0)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, leaves(class_maps)))


def test_squares_are_not_taken_in_float16():
    maps = torch.full((3, 2, 2), 300.0, dtype=torch.float16)  # 300 ** 2 > 65504
    assert hnc_loss(from_maps(maps), torch.tensor([0]), 'mse') == 2 * 300.0**2


@EACH
def test_under_autocast(variant):
    class_maps, target = make(batch=4, features=16, dtype=torch.float32), torch.tensor([0, 1, 2, 3])
    expected = hnc_loss(class_maps, target, variant, 6)
    with torch.autocast('cpu', torch.bfloat16):
        loss = hnc_loss(class_maps, target, variant, 6)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)
    assert (loss != expected) == (variant != 'logit')  # autocast took part in the maps; the logits were there before


@EACH
def test_float32_and_float64_stay(variant):
    target = torch.tensor([0, 1, 2])
    single, double = (hnc_loss(make(dtype=dtype), target, variant, 2) for dtype in (torch.float32, torch.float64))
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)


def test_large_maps_do_not_overflow_the_softmax():
    maps = torch.tensor([[[0.0, 0.0]], [[1e4, 0.0]]])
    assert hnc_loss(from_maps(maps), torch.tensor([0]), 'kd').item() == pytest.approx(1e4 / 2)


# --- errors ---


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'variant': 'kl'}, "variant 'kl' of the HNC loss is unknown: expected one of mse, kd"),
        ({'topk': 0}, 'topk = 0: the HNC loss looks at a whole number of negative classes, 1 or more'),
        ({'topk': 2.5}, 'topk = 2.5'),
        ({'topk': '3'}, "topk = '3'"),
        ({'alpha': None}, 'alpha = None'),
        ({'topk': math.inf}, 'topk = inf'),
        ({'topk': -3}, 'topk = -3'),
        ({'alpha': math.nan}, 'alpha = nan.*finite'),
        ({'alpha': math.inf}, 'alpha = inf.*finite'),
        ({'alpha': torch.zeros(2)}, 'alpha = tensor.*finite'),
        ({'topk': 10**400}, 'looks at a whole number'),
        ({'reduction': 'none'}, "reduction 'none' is unknown: expected one of sum, mean"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HNCLoss(**options)
    with pytest.raises(ValueError, match=message):
        hnc_loss(make(), torch.tensor([0, 1, 2]), **options)


@pytest.mark.parametrize('floor', [-1, 1, math.nan])
def test_a_floor_that_no_smoothing_makes(floor):
    with pytest.raises(ValueError, match=f'target_floor = {floor!r}: expected 0 or more and below 1'):
        hnc_loss(make(), torch.tensor([0, 1, 2]), target_floor=floor)


def test_logits_are_no_class_maps():
    with pytest.raises(TypeError, match='class_maps are a Tensor: expected what cam_model'):
        hnc_loss(make().logits, torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(
    'target', [torch.zeros(3, 5), torch.zeros(3), torch.zeros(3, 1).long(), torch.zeros(2).long(), torch.zeros(1, 6)]
)
def test_wrong_targets_are_refused(target):
    with pytest.raises(ValueError, match=r'target of .*: expected'):
        hnc_loss(make(), target)
