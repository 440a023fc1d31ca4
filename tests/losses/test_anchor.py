import numpy as np
import pytest
import torch
from loss_cases import LABELS, draw
from torch.nn import functional

from timm_hnc.losses.anchor import AnchorLoss


def by_the_paper(logits, labels, gamma, slack, anchors=None):
    """In loops; anchors are those of the logits if not given."""
    q = 1 / (1 + np.exp(-logits))
    total = 0.0
    for image, y in enumerate(labels):
        anchor = (q if anchors is None else anchors)[image, y] - slack
        total -= np.log(q[image, y])
        for k in range(q.shape[1]):
            if k != y:
                total -= (1 + q[image, k] - anchor) ** gamma * np.log(1 - q[image, k])
    return total / len(labels)


@pytest.mark.parametrize(('gamma', 'slack'), [(0.5, 0.05), (2.0, 0.0), (1.0, 0.3), (0.0, 0.1)])
def test_value_and_gradient_by_the_formula(gamma, slack):
    logits = draw(4, 5, scale=2)
    value = AnchorLoss(gamma, slack)(logits, LABELS)
    scores, labels = logits.detach().numpy(), LABELS.tolist()
    assert value.item() == pytest.approx(by_the_paper(scores, labels, gamma, slack), rel=1e-10)
    (gradient,) = torch.autograd.grad(value, logits)
    anchors, step = 1 / (1 + np.exp(-scores)), 1e-6  # held: no gradient flows through the anchor
    for place in np.ndindex(scores.shape):
        up, down = scores.copy(), scores.copy()
        up[place] += step
        down[place] -= step
        slope = (
            by_the_paper(up, labels, gamma, slack, anchors) - by_the_paper(down, labels, gamma, slack, anchors)
        ) / (2 * step)
        assert gradient[place].item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_without_an_exponent_it_is_binary_cross_entropy():
    logits = draw(4, 5, scale=2)
    expected = functional.binary_cross_entropy_with_logits(logits, torch.eye(5).double()[LABELS], reduction='none')
    torch.testing.assert_close(AnchorLoss(gamma=0)(logits, LABELS), expected.sum(1).mean())


@pytest.mark.parametrize('gamma', [0.0, 0.5, 1.0, 3.0])
def test_an_absent_class_as_far_below_the_anchor_as_can_be(gamma):
    logits = torch.tensor([[100.0, -200.0, 0.0]], requires_grad=True)
    value = AnchorLoss(gamma, slack=0)(logits, torch.tensor([0]))
    assert value.item() == pytest.approx(0.5**gamma * np.log(2), rel=1e-4)
    assert torch.autograd.grad(value, logits)[0].isfinite().all()
