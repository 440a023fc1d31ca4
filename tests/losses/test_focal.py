import numpy as np
import pytest
import torch
from loss_cases import LABELS, draw
from timm.loss import AsymmetricLossSingleLabel
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from timm_hnc.losses.focal import ClassBalancedFocalLoss, FocalLoss


def by_the_paper(logits, target, gamma, weight=None):
    """Sum over classes of t (1 - p)^gamma (-log p), mean over the batch, in NumPy; target is (B, n)."""
    scores = logits.detach().numpy()
    weight = np.ones(scores.shape[1]) if weight is None else weight
    total = 0.0
    for row, soft in zip(scores, np.asarray(target), strict=True):
        p = np.exp(row - row.max())
        p /= p.sum()
        total += sum(soft[c] * weight[c] * (1 - p[c]) ** gamma * -np.log(p[c]) for c in range(len(row)))
    return total / len(scores)


@pytest.mark.parametrize('gamma', [0.0, 0.5, 1.0, 2.0, 5.0])
def test_two_classes_are_the_sigmoid_form(gamma):
    score = draw(50, scale=5)
    labels = torch.arange(50) % 2
    ours = FocalLoss(gamma)(torch.stack([torch.zeros_like(score), score], 1), labels)
    theirs = sigmoid_focal_loss(score, labels.double(), alpha=-1, gamma=gamma, reduction='mean')
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, score)[0] for loss in (ours, theirs)), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('gamma', [0.0, 1.0, 2.0])
def test_timm_has_it_as_a_special_case(gamma):
    logits = draw(4, 5, scale=3)
    ours = FocalLoss(gamma)(logits, LABELS)
    theirs = AsymmetricLossSingleLabel(gamma_pos=gamma, gamma_neg=0, eps=0)(logits, LABELS)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)), rtol=1e-8, atol=1e-12
    )


def test_soft_targets_by_the_formula():
    logits, target = draw(4, 5, scale=3), torch.rand(4, 5, dtype=torch.float64).softmax(1)
    assert FocalLoss(1.5)(logits, target).item() == pytest.approx(by_the_paper(logits, target, 1.5), rel=1e-10)
    weights = ClassBalancedFocalLoss(torch.tensor([5, 100, 20, 1, 7]), 1.5).double()
    expected = by_the_paper(logits, target, 1.5, weights.weight.numpy())
    assert weights(logits, target).item() == pytest.approx(expected, rel=1e-10)


def test_without_focus_it_is_cross_entropy():
    logits = draw(4, 5, scale=10)
    torch.testing.assert_close(FocalLoss(0)(logits, LABELS), functional.cross_entropy(logits, LABELS))
    even = ClassBalancedFocalLoss(torch.full((5,), 12), 0).double()
    torch.testing.assert_close(even(logits, LABELS), functional.cross_entropy(logits, LABELS), rtol=1e-6, atol=0)


@pytest.mark.parametrize('beta', [0.0, 0.9, 0.9999, 1 - 1e-12])
def test_weights_of_classes(beta):
    counts = np.array([5000, 1, 20, 333])
    expected = (1 - beta) / (1 - beta**counts)
    if beta > 0.99999:  # the limit, where the formula loses its digits
        expected = 1 / counts
    expected *= len(counts) / expected.sum()
    weight = ClassBalancedFocalLoss(torch.from_numpy(counts), beta=beta).weight
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-5)
    assert weight.sum().item() == pytest.approx(4, rel=1e-6)


def test_a_class_without_samples_weighs_as_much_as_one_with_a_single():
    empty, single = (ClassBalancedFocalLoss(torch.tensor([50, few, 3])).weight for few in (0, 1))
    assert torch.equal(empty, single)
    assert empty.isfinite().all()


@pytest.mark.parametrize('gamma', [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_certain_predictions(gamma, dtype):
    """Exponents below 1 have an infinite slope where 1 - p is 0."""
    logits = torch.tensor([[100.0, 0, -100], [-100, 0, 100]], dtype=dtype, requires_grad=True)
    right, wrong = (FocalLoss(gamma)(logits, torch.tensor(labels)) for labels in ([0, 2], [2, 0]))
    assert right.item() == pytest.approx(0, abs=1e-30)
    assert wrong.item() == pytest.approx(200, rel=1e-6)
    for value in (right, wrong):
        assert torch.autograd.grad(value, logits)[0].isfinite().all()
