"""Maps against boxes: figures of the published code, and loops over pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import ndimage

from timm_hnc.data.input_geometry import InputFrame, Side
from timm_hnc.metrics.level_boxes import LEVELS, level_boxes
from timm_hnc.metrics.localization import IOUS, Localization, best_ious, energy_inside, points_at

# 24 maps of 5 x 6 whole numbers with two boxes each, of images of 100 x 80 pixels seen as 40 x 48. Box accuracies and
# IoUs are those of github.com/clovaai/wsolevaluation (commit 96f4b886, MIT licence, opencv 4.12) with
# multi_contour_eval; hits and the pointing game those of github.com/facebookresearch/TorchRay (commit 6a198ee6,
# CC BY-NC 4.0). No enlarged value lies within 1e-4 of a step of wsolevaluation's bytes, no highest value within 1e-3
# of the next, so that rounding changes none of them.
REFERENCE = load_file(Path(__file__).parent / 'localization_reference.safetensors')
FRAME = InputFrame(Side(40, times=40, over=100), Side(48, times=48, over=80))


def test_box_accuracy_and_pointing_game_are_those_of_the_published_code():
    localization = Localization(num_classes=6)  # two of which no image has
    for map_, boxes, label in zip(REFERENCE['maps'], REFERENCE['boxes'].double(), REFERENCE['labels'], strict=True):
        localization.update(map_, int(label), boxes, FRAME)
    figures = localization.compute()
    assert [figures[f'box_acc_{iou}'] for iou in IOUS] == pytest.approx(REFERENCE['box_accuracy'].tolist())
    assert figures['max_box_acc_v2'] == pytest.approx(REFERENCE['box_accuracy'].mean().item())
    assert figures['pointing'] == pytest.approx(REFERENCE['pointing'].item())
    assert figures['maps_with_boxes'] == 24


def test_ious_at_every_threshold_and_hits_are_those_of_the_published_code():
    for map_, boxes, ious in zip(REFERENCE['maps'], REFERENCE['boxes'].double(), REFERENCE['ious'], strict=False):
        np.testing.assert_array_equal(best_ious(map_, FRAME.boxes(boxes), FRAME.size), ious)
    hits = [
        points_at(map_, boxes, FRAME)
        for map_, boxes in zip(REFERENCE['maps'], REFERENCE['boxes'].double(), strict=True)
    ]
    assert hits == REFERENCE['hits'].tolist()
    assert 0 < sum(hits) < len(hits)


def numbers(size, kind):
    rng = np.random.default_rng(len(kind) + size[0])
    if kind == 'noise':
        return rng.random(size)
    if kind == 'steps':
        return rng.integers(0, 4, size).astype(float)
    return np.kron(rng.random((-(-size[0] // 4), -(-size[1] // 4))), np.ones((4, 4)))[: size[0], : size[1]]


@pytest.mark.parametrize('corners', [True, False])
@pytest.mark.parametrize('size', [(20, 30), (17, 9), (1, 8), (5, 1), (1, 1)])
@pytest.mark.parametrize('kind', ['noise', 'steps', 'plateaus'])
def test_boxes_of_all_levels_are_those_of_labelling_each(size, kind, corners):
    finer = numbers(size, kind)
    values = (finer / finer.max() * 255).astype(int)
    ranks = finer.ravel().argsort().argsort().reshape(size)
    levels, boxes = level_boxes(values, ranks, corners)
    found = sorted((level, *box) for level, box in zip(levels.tolist(), boxes.tolist(), strict=True))
    expected = []
    for level in range(LEVELS):
        labels, _ = ndimage.label(values > level, np.ones((3, 3)) if corners else None)
        for y, x in ndimage.find_objects(labels):
            expected.append((level, x.start, y.start, x.stop - 1, y.stop - 1))
    assert found == sorted(expected)


def test_energy_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    map_, boxes = torch.from_numpy(rng.normal(size=(4, 5))), torch.from_numpy(rng.random((2, 4)) * 10 + [0, 0, 10, 10])
    values = torch.nn.functional.interpolate(map_[None, None], (24, 32), mode='bilinear')[0, 0].clamp(min=0)
    inside = sum(
        values[y, x].item()
        for y in range(24)
        for x in range(32)
        if any(b[0] <= x + 0.5 <= b[2] and b[1] <= y + 0.5 <= b[3] for b in boxes)
    )
    assert energy_inside(map_, boxes, (24, 32)) == pytest.approx(inside / values.sum().item())


def test_a_map_that_is_the_box():
    localization, map_ = Localization(2), torch.zeros(8, 8)
    map_[2:6, 1:5] = 1
    localization.update(map_, 1, torch.tensor([[1.0, 2, 5, 6]]).double(), InputFrame(Side(8), Side(8)))
    assert localization.compute() == {
        **dict.fromkeys(('max_box_acc_v2', 'box_acc_0.3', 'box_acc_0.5', 'box_acc_0.7', 'pointing', 'energy'), 100),
        'maps_with_boxes': 1,
    }


def test_the_pointing_game_is_played_in_the_stored_image():
    """The left half of an image of 200 x 100, twice as large; the map's highest value is at its right border."""
    frame, map_ = InputFrame(Side(200, 2, 1), Side(200, 2, 1)), torch.zeros(10, 10)
    map_[5, 9] = 1
    for left, hit in ((108, True), (112, False)):  # the point is column 94 or 95
        assert points_at(map_, torch.tensor([[left, 40.0, 140, 60]]).double(), frame) is hit
    boxes = torch.tensor([[50.0, 40, 60, 60], [108, 40, 140, 60]]).double()
    assert points_at(map_, boxes, frame)  # though the input does not show this box
    assert not points_at(map_, boxes, frame, tolerance=5)


@pytest.mark.parametrize(
    ('value', 'grid', 'side'), [(0.0, 4, 32), (float('nan'), 4, 32), (0.37, 7, 224), (0.37, 1, 160)]
)
def test_flat_maps_are_compared_and_not_found(value, grid, side):
    """They are their first pixel, also where interpolation rounds."""
    localization, frame = Localization(1), InputFrame(Side(side), Side(side))
    localization.update(torch.full((grid, grid), value), 0, torch.tensor([[0.0, 0.0, 4.0, 4.0]]), frame)
    assert not points_at(torch.full((grid, grid), value), torch.tensor([[20.0, 20.0, 32.0, 32.0]]), frame)
    figures = localization.compute()
    assert figures['maps_with_boxes'] == 1
    assert figures['box_acc_0.7'] == 0
