import pytest
import torch
from loss_cases import LABELS, draw
from torch.distributions import Categorical
from torch.nn import functional

from timm_hnc.losses.max_entropy import MaxEntropyLoss


@pytest.mark.parametrize('gamma', [0.0, 0.5, 1.0, 10.0])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_cross_entropy_minus_entropy(gamma, smoothing):
    logits = draw(4, 5, scale=2)
    loss = MaxEntropyLoss(gamma)
    loss.smoothing = smoothing
    expected = functional.cross_entropy(logits, LABELS, label_smoothing=smoothing)
    expected = expected - gamma * Categorical(logits=logits).entropy().mean()
    value = loss(logits, LABELS)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (value, expected)), rtol=1e-6, atol=1e-7)


def test_mixed_targets():
    logits, target = draw(4, 5), torch.rand(4, 5, dtype=torch.float64).softmax(1)
    loss = MaxEntropyLoss(0.0)
    loss.smoothing = 0.1  # is in such targets already
    torch.testing.assert_close(loss(logits, target), functional.cross_entropy(logits, target))
