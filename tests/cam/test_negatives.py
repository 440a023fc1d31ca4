import random

import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target

from timm_hnc import ClassMaps
from timm_hnc.cam.negatives import negative_classes, topk_negatives, topk_positives


def brute_force(logits: list[float], positives: set[int], k: int) -> list[int]:
    """The k absent classes with the highest logits."""
    absent = [o for o in range(len(logits)) if o not in positives]
    return sorted(absent, key=lambda o: -logits[o])[:k]


def chosen(logits: torch.Tensor, target: torch.Tensor, k: int, target_floor: float = 0.0) -> list[list[int]]:
    indices, valid = topk_negatives(logits, target, k, target_floor)
    assert indices.shape == valid.shape == (len(logits), min(k, logits.shape[1]))
    return [row[keep].tolist() for row, keep in zip(indices, valid, strict=True)]


@pytest.mark.parametrize('seed', range(40))
def test_random_batches_against_brute_force(seed):
    draw = random.Random(seed)
    batch, classes, k = draw.randint(1, 5), draw.randint(1, 12), draw.randint(1, 15)
    logits = torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = [draw.randrange(classes) for _ in range(batch)]
    expected = [brute_force(row, {label}, k) for row, label in zip(logits.tolist(), labels, strict=True)]
    assert chosen(logits, torch.tensor(labels), k) == expected
    sets = [set(draw.sample(range(classes), draw.randint(0, classes))) for _ in range(batch)]
    values = [[draw.uniform(0.001, 1) if o in present else 0.0 for o in range(classes)] for present in sets]
    expected = [brute_force(row, present, k) for row, present in zip(logits.tolist(), sets, strict=True)]
    assert chosen(logits, torch.tensor(values), k) == expected


def test_smallest_cases():
    logits = torch.tensor([[3.0]])
    assert chosen(logits, torch.tensor([0]), 1) == [[]]  # one class: it is the positive one
    assert chosen(logits, torch.tensor([[0.0]]), 1) == [[0]]  # or no label at all
    assert chosen(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]]), 100) == [[]]


def test_ties_are_broken_somehow_and_k_are_taken():
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 2.0, 0.0]])
    (classes,) = chosen(logits, torch.tensor([2]), 2)
    assert len(set(classes)) == 2
    assert set(classes) <= {1, 3, 4}
    (classes,) = chosen(torch.zeros(1, 9), torch.tensor([4]), 8)
    assert sorted(classes) == [0, 1, 2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize('target', [torch.tensor([1, 0]), torch.eye(4)[:2], torch.eye(4, dtype=torch.int64)[:2] == 1])
def test_the_choice_has_no_gradient(target):
    logits = torch.randn(2, 4, requires_grad=True)
    indices, valid = topk_negatives(logits, target, 2)
    assert not indices.requires_grad
    assert not valid.requires_grad
    assert indices.dtype == torch.int64
    assert valid.dtype == torch.bool


def test_class_maps_choose_by_their_own_logits():
    logits = torch.tensor([[0.0, 5.0, 1.0, 3.0]])
    class_maps = ClassMaps(torch.randn(1, 4, 2), torch.randn(4, 2), None, (2, 2), logits)
    indices, valid = class_maps.topk_negatives(torch.tensor([1]), 2)
    assert indices.tolist() == [[3, 2]]
    assert valid.tolist() == [[True, True]]


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.3])
@pytest.mark.parametrize('classes', [2, 10, 1000, 21843])
def test_mixed_single_labels_leave_exactly_the_absent_classes(classes, smoothing):
    generator = torch.Generator().manual_seed(classes)
    for lam in (0.0001, 0.25, 1 / 3, 0.5, 0.7316, 0.99, 1.0):
        labels = torch.randint(classes, (6,), generator=generator)
        target = mixup_target(labels, classes, lam, smoothing)
        negative = negative_classes(target, classes, target_floor=smoothing / classes)
        for row, label, other in zip(negative, labels.tolist(), labels.flip(0).tolist(), strict=True):
            assert set((~row).nonzero().flatten().tolist()) == ({label, other} if lam < 1 else {label})


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.3])
@pytest.mark.parametrize('classes', [3, 80, 21843])
def test_mixed_label_sets_leave_exactly_the_absent_classes(classes, smoothing):
    generator = torch.Generator().manual_seed(classes)
    for lam in (0.0001, 1 / 3, 0.5, 0.7316, 1.0):
        labels = (torch.rand(6, classes, generator=generator) < 2 / classes).float()
        labels[0] = 0  # an image without labels
        target = mixup_target(labels, classes, lam, smoothing, multi_label=True)
        negative = negative_classes(target, classes, target_floor=smoothing / 2)
        absent = (labels == 0) & (labels.flip(0) == 0) if lam < 1 else labels == 0
        assert torch.equal(negative, absent)


@pytest.mark.parametrize('mode', ['batch', 'pair', 'elem'])
@pytest.mark.parametrize('alphas', [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)], ids=['mixup', 'cutmix', 'both'])
@pytest.mark.parametrize('multi_label', [False, True])
def test_targets_of_timm_mixup(mode, alphas, multi_label):
    np.random.seed(0)
    classes, smoothing, batch = 50, 0.1, 8
    mixup = Mixup(*alphas, mode=mode, label_smoothing=smoothing, num_classes=classes, multi_label=multi_label)
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        if multi_label:
            labels = (torch.rand(batch, classes, generator=generator) < 0.05).float()
            present, floor = labels == 1, smoothing / 2
        else:
            labels = torch.randint(classes, (batch,), generator=generator)
            present, floor = torch.eye(classes)[labels] == 1, smoothing / classes
        _, target = mixup(torch.randn(batch, 3, 16, 16), labels)
        negative = negative_classes(target, classes, floor)
        assert negative[~(present | present.flip(0))].all()  # the absent ones all are
        # a partner counts unless its share vanishes (a cutmix box of no area, a lambda of 0 or 1)
        share = target - floor
        assert not negative[(present | present.flip(0)) & (share > 1e-4)].any()


def test_without_its_floor_a_smoothed_target_has_no_negatives():
    target = mixup_target(torch.tensor([1, 2]), 10, 0.6, smoothing=0.1)
    assert not negative_classes(target, 10).any()


@pytest.mark.parametrize(
    ('target', 'message'),
    [
        (torch.tensor([0.0, 1.0]), r'target of shape \(2,\) and type torch.float32: expected \(batch,\) integer'),
        (torch.zeros(2, 5), r'target of shape \(2, 5\).*\(batch, 4\) values'),
        (torch.zeros(2, 1, dtype=torch.int64), r'target of shape \(2, 1\)'),
        (torch.zeros(2, 4, 1), r'target of shape \(2, 4, 1\)'),
        (torch.tensor(1), r'target of shape \(\)'),
        (torch.tensor([0, 1, 2]), 'target of 3 images: expected 2'),
        (torch.tensor([0]), 'target of 1 images: expected 2'),
        (torch.zeros(3, 4), 'target of 3 images: expected 2'),
    ],
)
def test_wrong_targets_are_refused(target, message):
    with pytest.raises(ValueError, match=message):
        topk_negatives(torch.randn(2, 4), target, 2)


def test_a_target_of_more_images_than_logits_is_refused_even_where_it_would_broadcast():
    with pytest.raises(ValueError, match='target of 3 images: expected 1'):
        topk_negatives(torch.randn(1, 4), torch.tensor([0, 1, 2]), 2)


@pytest.mark.parametrize('k', [0, -1])
def test_k_below_one_is_refused(k):
    with pytest.raises(ValueError, match=f'k = {k}: at least one'):
        topk_negatives(torch.randn(2, 4), torch.tensor([0, 1]), k)


@pytest.mark.parametrize('unknown', [-100, 5])
def test_of_an_unknown_class_nothing_is_absent_and_nothing_present(unknown):
    logits, target = torch.randn(2, 5), torch.tensor([3, unknown])
    assert topk_negatives(logits, target, 5)[1].sum(1).tolist() == [4, 0]
    assert topk_positives(logits, target, 1)[1].tolist() == [[True], [False]]


def test_of_several_labels_those_below_zero_are_neither_absent_nor_present():
    logits, target = torch.randn(2, 4), torch.tensor([[1.0, 0.0, -1.0, 0.0], [-1.0, -1.0, -1.0, 1.0]])
    for choose, value in ((topk_negatives, 0), (topk_positives, 1)):
        indices, valid = choose(logits, target, 4)
        found = torch.zeros(2, 4, dtype=torch.bool).scatter(1, indices, valid)
        assert torch.equal(found, target == value)


@pytest.mark.parametrize(
    ('target', 'error', 'message'),
    [
        (torch.tensor([True, False]), ValueError, r'target of shape \(2,\) and type torch.bool'),
        ([3, 1], TypeError, 'the target is a list: expected a tensor'),
    ],
)
def test_targets_that_are_none(target, error, message):
    with pytest.raises(error, match=message):
        topk_negatives(torch.randn(2, 5), target, 5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_classes_that_rounding_lifts_above_the_smoothing_are_absent(dtype):
    smoothed = (0.9 * torch.eye(10) + 0.01)[[1, 4]].to(dtype)
    shares = torch.rand(200, 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    mixed = smoothed[:1] * shares + smoothed[1:] * (1 - shares)  # as timm's mixup does it
    assert topk_negatives(torch.randn(200, 10), mixed, 10, 0.01)[1].sum(1).tolist() == [8] * 200


@pytest.mark.parametrize('dtype', [torch.uint8, torch.uint16])
def test_classes_beyond_the_type_of_the_target(dtype):
    logits, target = torch.randn(2, 256), torch.tensor([3, 200], dtype=dtype)
    assert topk_negatives(logits, target, 256)[1].sum(1).tolist() == [255, 255]
    assert topk_positives(logits, target, 1)[0].flatten().tolist() == [3, 200]
