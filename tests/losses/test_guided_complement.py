import numpy as np
import pytest
import torch
from loss_cases import LABELS, draw

from timm_hnc.losses.factory import create_loss
from timm_hnc.losses.guided_complement import GuidedComplementEntropyLoss


@pytest.mark.parametrize('alpha', [0.0, 0.2, 1.0])
def test_value_by_the_formula(alpha):
    logits = draw(4, 5, scale=2)
    total = 0.0
    for row, y in zip(logits.detach().numpy(), LABELS.tolist(), strict=True):
        p = np.exp(row) / np.exp(row).sum()
        complement = [p[k] / (1 - p[y]) for k in range(5) if k != y]
        total += p[y] ** alpha * sum(c * np.log(c) for c in complement) / np.log(4)
    value = GuidedComplementEntropyLoss(alpha)(logits, LABELS)
    assert value.item() == pytest.approx(total / 4, rel=1e-10)
    assert -1 <= value.item() <= 0


def test_flat_scores_of_absent_classes_are_the_best():
    logits = torch.full((1, 4), -3.0, dtype=torch.float64)
    logits[0, 1] = 60.0
    assert GuidedComplementEntropyLoss()(logits, torch.tensor([1])).item() == pytest.approx(-1, rel=1e-12)


def test_the_image_class_does_not_swallow_the_others():
    """Where p_y rounds to 1 the paper's c_k = p_k / (1 - p_y) is 0 / 0; its limit is a softmax without y."""
    near, far = (torch.tensor([[y, 0.3, -0.4, 1.1]], requires_grad=True) for y in (20.0, 95.0))
    values = [GuidedComplementEntropyLoss(0.0)(logits, torch.tensor([0])) for logits in (near, far)]
    torch.testing.assert_close(*values)
    gradients = [torch.autograd.grad(value, logits)[0] for value, logits in zip(values, (near, far), strict=True)]
    torch.testing.assert_close(*gradients)
    assert gradients[0][0, 1:].abs().min() > 1e-3


@pytest.mark.parametrize('classes', [1, 2])
def test_few_classes_are_refused(classes):
    with pytest.raises(ValueError, match=f'{classes} classes.*3 or more'):
        GuidedComplementEntropyLoss()(torch.zeros(2, classes), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=f'needs 3 classes or more, got {classes}'):
        create_loss('guided-complement', num_classes=classes, num_features=2)
