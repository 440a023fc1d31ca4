import pytest
import torch
from loss_cases import LABELS, class_maps, draw, draw_factors
from torch.nn import functional

from timm_hnc import ClassMaps
from timm_hnc.losses.attention_consistency import AttentionConsistencyLoss
from timm_hnc.losses.weighted_sigmoid import WeightedSigmoidLoss


@pytest.mark.parametrize('weight', [0.0, 1.0, 0.6])
@pytest.mark.parametrize('multi_label', [False, True])
def test_value_and_gradients_by_the_formula(weight, multi_label):
    factors = draw_factors(batch=8)
    positions, rows, bias = factors
    counts = (torch.tensor([9.0, 3, 1, 7, 2]), 12) if multi_label else (None, None)
    target = torch.eye(5)[LABELS] + torch.eye(5)[[1, 1, 1, 1]] if multi_label else LABELS
    value = AttentionConsistencyLoss(multi_label, *counts, weight=weight)(class_maps(*factors), target)
    scores = positions @ rows.T + bias  # (8, 6, 5), positions row by row of a grid of 2 x 3
    difference = 0.0
    for image in range(4):
        for o in range(5):
            for i in range(2):
                for j in range(3):
                    one, mirrored = scores[image, 3 * i + j, o], scores[4 + image, 3 * i + (2 - j), o]
                    difference = difference + (one - mirrored) ** 2 / (4 * 5 * 2 * 3)
    logits, both = scores.mean(1), torch.cat([target, target])
    criterion = WeightedSigmoidLoss(*counts) if multi_label else functional.cross_entropy
    expected = criterion(logits, both) + weight * difference
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    gradients = (torch.autograd.grad(loss, factors) for loss in (value, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('grid', [(1, 1), (2, 3), (3, 2), (7, 7)])
def test_maps_that_move_with_the_image_cost_nothing(grid):
    positions, rows = draw(4, *grid, 3), draw(5, 3, seed=1)
    views = torch.cat([positions, positions.flip(2)]).flatten(1, 2)
    maps = ClassMaps(views, rows, None, grid)
    value = AttentionConsistencyLoss(weight=100.0)(maps, LABELS)
    expected = functional.cross_entropy(maps.logits[:4], LABELS)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)


def test_several_labels_need_counts():
    for counts, samples in ((None, 10), (torch.ones(3), None)):
        with pytest.raises(ValueError, match=r'counts .* needed'):
            AttentionConsistencyLoss(multi_label=True, class_counts=counts, num_samples=samples)


def test_it_declares_what_it_takes():
    assert AttentionConsistencyLoss.needs == 'two_views'
    assert not AttentionConsistencyLoss.soft_targets
    assert not AttentionConsistencyLoss.needs_features
