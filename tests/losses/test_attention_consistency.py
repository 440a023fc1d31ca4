from pathlib import Path

import pytest
import torch
from loss_cases import LABELS, class_maps, draw, draw_factors
from safetensors.torch import load_file
from torch.nn import functional

from timm_hnc import ClassMaps
from timm_hnc.losses.attention_consistency import AttentionConsistencyLoss
from timm_hnc.losses.weighted_sigmoid import WeightedSigmoidLoss

# what the authors' code made of these features: hguosc/visual_attention_consistency, commit
# 7c5b0dcfc444d7e6cecadd793b799b4a7ef9da7d, tmp/ms-coco-fs288: the criterion, the maps of resnet.py and the difference
# between large images and their mirror images with its weight in main.py. It names no licence, and nothing of it stands
# here.
REFERENCE = load_file(Path(__file__).parent / 'attention_consistency_reference.safetensors')


def test_by_default_it_is_the_authors_loss():
    features, rows, bias = (REFERENCE[name].clone().requires_grad_() for name in ('features', 'weight', 'bias'))
    maps = ClassMaps(features.flatten(2).mT, rows, bias, tuple(features.shape[2:]))
    loss = AttentionConsistencyLoss(True, REFERENCE['counts'], REFERENCE['samples'].item()).double()
    value = loss(maps, REFERENCE['target'].double())
    # the criterion's weights are rounded to float32
    torch.testing.assert_close(value, REFERENCE['loss'], rtol=1e-6, atol=0)
    for name, gradient in zip(
        ('features', 'weight', 'bias'), torch.autograd.grad(value, (features, rows, bias)), strict=True
    ):
        torch.testing.assert_close(gradient, REFERENCE[f'{name}_gradient'], rtol=1e-6, atol=1e-7)


def test_the_mean_over_classes_keeps_the_balance():
    maps, target = class_maps(*draw_factors(batch=8)), torch.eye(5)[LABELS]
    counts = (torch.tensor([9.0, 3, 1, 7, 2]), 12)
    summed, averaged = (AttentionConsistencyLoss(True, *counts, reduction=r)(maps, target) for r in ('sum', 'mean'))
    torch.testing.assert_close(summed, 5 * averaged, rtol=1e-12, atol=0)


def by_the_formula(positions, rows, bias):
    """The mean squared difference of maps, in loops; positions row by row of a grid of 2 x 3."""
    scores = positions @ rows.T + bias  # (8, 6, 5)
    difference = 0.0
    for image in range(4):
        for o in range(5):
            for i in range(2):
                for j in range(3):
                    one, mirrored = scores[image, 3 * i + j, o], scores[4 + image, 3 * i + (2 - j), o]
                    difference = difference + (one - mirrored) ** 2 / (4 * 5 * 2 * 3)
    return difference


@pytest.mark.parametrize('weight', [0.0, 1.0, 0.6])
@pytest.mark.parametrize('reduction', ['mean', 'sum', None])
def test_value_and_gradients_by_the_formula(weight, reduction):
    factors = draw_factors(batch=8)
    positions, rows, bias = factors
    if reduction:
        counts, options = (torch.tensor([9.0, 3, 1, 7, 2]), 12), {'reduction': reduction}
        target = torch.eye(5)[LABELS] + torch.eye(5)[[1, 1, 1, 1]]
        criterion = WeightedSigmoidLoss(*counts, reduction)
    else:
        counts, options, target, criterion = (None, None), {}, LABELS, functional.cross_entropy
    loss = AttentionConsistencyLoss(reduction is not None, *counts, weight=weight, **options)
    value = loss(class_maps(*factors), target)
    logits = (positions @ rows.T + bias).mean(1)
    # the maps hold the classifier's weights constant
    consistency = by_the_formula(positions, rows.detach(), bias) / (5 if reduction == 'mean' else 1)
    expected = criterion(logits, torch.cat([target, target])) + weight * consistency
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


def test_cross_entropy_has_no_reduction_over_classes():
    with pytest.raises(ValueError, match='reduction = mean: for several labels only'):
        AttentionConsistencyLoss(reduction='mean')


def test_it_declares_what_it_takes():
    assert AttentionConsistencyLoss.needs == 'two_views'
    assert not AttentionConsistencyLoss.soft_targets
    assert not AttentionConsistencyLoss.needs_features
