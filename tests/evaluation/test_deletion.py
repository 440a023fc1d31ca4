"""Deletion and insertion curves against a loop over single images, and their promises."""

import numpy as np
import pytest
import torch
from running import SMALL, WITHOUT_PICTURES, train, validate
from torch import nn
from torchvision.transforms.v2.functional import gaussian_blur

from timm_hnc.evaluation.deletion import curve_areas


class Corner(nn.Module):
    """Class 1 is how bright the left upper quarter is, class 0 the rest."""

    def forward(self, x):
        return torch.stack([x[:, :, 8:, 8:].mean((1, 2, 3)), 4 * x[:, :, :8, :8].mean((1, 2, 3))], 1)


def inputs(count=3):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.5


@pytest.mark.parametrize('multi_label', [False, True])
def test_areas_are_those_of_a_loop(multi_label):
    images, steps = inputs(), 5
    maps = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([0, 1, 1])
    found = curve_areas(Corner(), images, maps, classes, steps, multi_label)
    for image, map_, label, areas in zip(images, maps, classes, found.T, strict=True):
        order = np.argsort(-map_.flatten().numpy(), kind='stable')
        blurred = gaussian_blur(image, [11, 11], [5.0, 5.0])
        for first, last, area in ((image, torch.zeros_like(image), areas[0]), (blurred, image, areas[1])):
            curve = []
            for step in range(steps + 1):
                changed = first.flatten(1).clone()
                places = order[: int(np.ceil(step * 256 / steps))]
                changed[:, places] = last.flatten(1)[:, places]
                logits = Corner()(changed.view(1, 3, 16, 16))[0]
                curve.append((logits.sigmoid() if multi_label else logits.softmax(0))[label])
            assert area == pytest.approx(np.trapezoid(curve, dx=1 / steps), rel=1e-5)


def test_a_map_that_points_at_the_cause_is_better_than_one_that_does_not():
    right, wrong = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    right[:, :2, :2] = wrong[:, 2:, 2:] = 1
    classes = torch.ones(3, dtype=torch.long)
    good, bad = (curve_areas(Corner(), inputs(), map_, classes, 8) for map_ in (right, wrong))
    assert (good[0] < bad[0]).all()


def test_validate_with_curves(images, tmp_path, capsys):
    run = train('--data-dir', images, *SMALL, *WITHOUT_PICTURES, '--output', tmp_path, '--experiment', 'run')
    here = ['--checkpoint', run, '--workers', '0', '--device', 'cpu', '--cam-curves', 4]
    small, large = (validate(capsys, *here, '-b', batch) for batch in (7, 25))
    for name in ('cam_deletion_area', 'cam_insertion_area'):
        assert 0 < small[name] < 1
        assert small[name] == pytest.approx(large[name], abs=1e-4)
