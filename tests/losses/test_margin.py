import math

import pytest
import torch
from loss_cases import LABELS, class_maps, draw, draw_factors, of_features
from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss, SphereFaceLoss
from torch.nn import functional

from timm_hnc.losses.margin import AdditiveAngularMarginLoss, ASoftmaxLoss, LargeMarginCosineLoss

LOSSES = [ASoftmaxLoss(), LargeMarginCosineLoss(), AdditiveAngularMarginLoss()]
OURS_AND_THEIRS = {
    **{
        f'a-softmax-{m}': (ASoftmaxLoss(m, base=0, min_weight=0), lambda *s, m=m: SphereFaceLoss(*s, margin=m))
        for m in (1, 2, 3, 4, 5)
    },
    'lmc': (LargeMarginCosineLoss(), CosFaceLoss),
    'lmc-0.2': (LargeMarginCosineLoss(0.2, 30), lambda *s: CosFaceLoss(*s, margin=0.2, scale=30)),
    'aam': (AdditiveAngularMarginLoss(), lambda *s: ArcFaceLoss(*s, margin=math.degrees(0.5))),
    'aam-1.5': (AdditiveAngularMarginLoss(1.5, 10), lambda *s: ArcFaceLoss(*s, margin=math.degrees(1.5), scale=10)),
}


@pytest.mark.parametrize('name', OURS_AND_THEIRS)
@pytest.mark.parametrize('seed', range(3))
def test_pytorch_metric_learning_has_the_same_values_and_gradients(name, seed):
    ours, theirs = OURS_AND_THEIRS[name]
    vectors, rows = draw(300, 3, seed=seed, scale=3), draw(5, 3, seed=seed + 10, scale=2)
    labels = torch.randint(0, 5, (300,))
    cosine = functional.cosine_similarity(vectors, rows[labels])
    assert cosine.min() < -0.95  # angles beyond pi - margin are among them
    assert cosine.max() > 0.95
    theirs = theirs(5, 3).double()
    theirs.W.data.copy_(rows.detach().T)
    value, expected = ours(of_features(vectors, rows, draw(5)), labels), theirs(vectors, labels)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    gradients = torch.autograd.grad(value, [vectors, rows])
    references = torch.autograd.grad(expected, [vectors, theirs.W])
    torch.testing.assert_close(gradients[0], references[0], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(gradients[1], references[1].T, rtol=1e-7, atol=1e-9)


# --- A-Softmax's annealing ---


def sphere_face(vectors, rows, labels, margin, annealing):
    """In loops, with psi by its definition over the intervals of the angle."""
    total = 0.0
    for x, y in zip(vectors.tolist(), labels.tolist(), strict=True):
        length = math.hypot(*x)
        cosines = [sum(a * b for a, b in zip(x, row, strict=True)) / length / math.hypot(*row) for row in rows.tolist()]
        angle = math.acos(cosines[y])
        [k] = [k for k in range(margin) if k * math.pi / margin <= angle < (k + 1) * math.pi / margin]
        psi = (-1) ** k * math.cos(margin * angle) - 2 * k
        scores = [length * c for c in cosines]
        scores[y] = (annealing * length * cosines[y] + length * psi) / (1 + annealing)
        total += math.log(sum(math.exp(s) for s in scores)) - scores[y]
    return total / len(labels)


def test_annealing_of_the_authors():
    """lambda = max(5, 1000 / (1 + 0.12 iteration)), the first iteration being 1."""
    vectors, rows = draw(4, 3, scale=3), draw(5, 3, seed=1)
    loss = ASoftmaxLoss()
    maps = of_features(vectors, rows)
    for iteration in range(1, 4):
        value = loss(maps, LABELS).item()
        expected = sphere_face(vectors, rows, LABELS, 4, 1000 / (1 + 0.12 * iteration))
        assert value == pytest.approx(expected, rel=1e-7)
    loss.step.fill_(10**6)
    for _ in range(3):
        assert loss(maps, LABELS).item() == pytest.approx(sphere_face(vectors, rows, LABELS, 4, 5), rel=1e-7)


def test_steps_are_counted_in_training_and_saved():
    loss = ASoftmaxLoss()
    maps = of_features(draw(4, 3), draw(5, 3, seed=1))
    values = [loss(maps, LABELS).item() for _ in range(4)]
    assert len(set(values)) == 4
    assert loss.step == 4
    again = ASoftmaxLoss()
    again.load_state_dict(loss.state_dict())
    assert loss.eval()(maps, LABELS) == loss(maps, LABELS)
    assert loss.step == 4
    assert again(maps, LABELS) == loss.train()(maps, LABELS)
    assert loss.step == again.step == 5


def test_annealed_to_nothing_it_is_the_softmax_of_rows_of_length_1():
    vectors, rows = draw(4, 3), draw(5, 3, seed=1)
    expected = functional.cross_entropy(vectors @ functional.normalize(rows).T, LABELS)
    for loss in (ASoftmaxLoss(margin=1), ASoftmaxLoss(4, base=1e12, gamma=0)):
        torch.testing.assert_close(loss(of_features(vectors, rows), LABELS), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize('margin', [2, 3, 4, 7])
def test_the_targets_score_falls_with_the_angle_and_never_jumps(margin):
    angle = torch.linspace(0.001, math.pi - 0.001, 4000, dtype=torch.float64)
    for loss in (ASoftmaxLoss(margin, base=0, min_weight=0), AdditiveAngularMarginLoss(margin / 10)):
        score = loss.with_margin(angle.cos()[:, None]).squeeze(1)
        change = score.diff()
        if isinstance(loss, ASoftmaxLoss):
            assert change.max() <= 1e-9
            assert change.abs().max() < 0.01
        else:
            assert (change < 0).float().mean() > 0.999


# --- corners ---


# with these the softmax is not so sure of itself that no gradient reaches the angle
UNSURE = [ASoftmaxLoss(base=0, min_weight=0), AdditiveAngularMarginLoss(scale=2.0)]


@pytest.mark.parametrize('loss', LOSSES + UNSURE, ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('length', [1.0, 1e-3, 1e3])
def test_cosines_of_1_and_minus_1(loss, dtype, length):
    rows = torch.eye(3, dtype=dtype, requires_grad=True)
    vectors = (length * torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0]], dtype=dtype)).requires_grad_()
    value = loss.eval()(of_features(vectors, rows), torch.tensor([0, 0, 2]))
    nearby = loss(of_features(vectors + 1e-4 * length, rows), torch.tensor([0, 0, 2]))
    assert value.isfinite()
    torch.testing.assert_close(value, nearby, rtol=0.01, atol=0.01)
    for gradient in torch.autograd.grad(value, [vectors, rows]):
        assert gradient.isfinite().all()


def test_features_near_zero_have_the_gradient_of_a_linear_layer():
    """|x| cos is x w: nothing is divided by a length of almost zero."""
    rows = functional.normalize(draw(5, 3))
    loss = ASoftmaxLoss(margin=1)
    for length in (0.0, 1e-20, 1e-9, 1e-3):
        vectors = (length * draw(4, 3, seed=1)).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(of_features(vectors, rows), LABELS), vectors)
        assert gradient.isfinite().all()
        assert gradient.norm(dim=1).max() <= 0.51


# --- what is exported ---


@pytest.mark.parametrize('loss', LOSSES, ids=lambda loss: type(loss).__name__)
def test_what_is_exported_ranks_classes_by_their_cosine(loss):
    positions, rows, bias = draw_factors(batch=30)
    cosine = functional.cosine_similarity(positions.mean(1)[:, None], rows[None], dim=-1)
    for given in (bias, None):
        plain = loss.as_plain(class_maps(positions, rows, given))
        assert torch.equal(plain.logits.argsort(1), cosine.argsort(1))
        assert (plain.bias is None) == (given is None)
        assert given is None or not plain.bias.any()
        torch.testing.assert_close(plain.weight.norm(dim=1), torch.ones(5, dtype=torch.float64))
    assert loss.changes_scores


@pytest.mark.parametrize('loss', LOSSES, ids=lambda loss: type(loss).__name__)
def test_lengths_of_rows_and_biases_play_no_part(loss):
    positions, rows, bias = draw_factors()
    lengths = torch.tensor([0.1, 1, 3, 10, 100], dtype=torch.float64)[:, None]
    expected = loss.eval()(class_maps(positions, rows, bias), LABELS)
    torch.testing.assert_close(loss(class_maps(positions, rows * lengths, 9 * bias), LABELS), expected)
    torch.testing.assert_close(loss(class_maps(positions, rows, None), LABELS), expected)
