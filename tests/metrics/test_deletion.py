"""Deletion and insertion curves against the published code and a loop over single images, and their promises."""

from pathlib import Path

import numpy as np
import pytest
import torch
from running import SMALL, train, validate
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.nn.functional import conv2d

from timm_hnc.metrics.deletion import blur, curve_areas

# Three images of 24 x 24 pixels, orders of their pixels as maps, and areas of the model `Published` for the class that
# it sees, computed by github.com/eclique/RISE (commit d91ea006, MIT licence) with 64 and 53 pixels a step and its blur.
REFERENCE = load_file(Path(__file__).parent / 'rise_reference.safetensors')


class Published(nn.Module):
    """A linear layer in float64."""

    def forward(self, x):
        weight = ((torch.arange(4 * 3 * 24 * 24) * 37 + 11) % 101 - 50).view(4, -1).double() / 4000
        return x.flatten(1).double() @ weight.T


@pytest.mark.parametrize('steps', [9, 11])
def test_areas_are_those_of_the_published_code(steps):
    images, maps = REFERENCE['images'], REFERENCE['maps'].float()
    areas = curve_areas(Published(), images, maps, Published()(images).argmax(1), steps)
    # float32 in the blurred image alone: below 1e-6 a pixel, times weights whose sizes add up to 11, times 1/4 at most
    torch.testing.assert_close(areas.double(), REFERENCE[f'areas_{steps}'], rtol=0, atol=1e-5)


def test_blurred_images_are_those_of_the_published_kernel():
    point = np.zeros((11, 11))
    point[5, 5] = 1
    kernel = torch.from_numpy(gaussian_filter(point, 5.0)).float()
    torch.testing.assert_close(kernel, REFERENCE['kernel'], rtol=1e-6, atol=0)
    images = REFERENCE['images']
    expected = conv2d(images.double(), kernel.double().expand(3, 1, 11, 11), padding=5, groups=3)
    torch.testing.assert_close(
        blur(images).double(), expected, rtol=0, atol=2e-6
    )  # 22 products of float32, sizes up to 3


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
    found, each = curve_areas(Corner(), images, maps, classes, steps, multi_label), 52
    for image, map_, label, areas in zip(images, maps, classes, found.T, strict=True):
        order = np.argsort(-map_.flatten().numpy(), kind='stable')
        blurred = blur(image[None])[0]
        for first, last, area in ((image, torch.zeros_like(image), areas[0]), (blurred, image, areas[1])):
            curve = []
            for step in range(steps + 1):
                changed = first.flatten(1).clone()
                places = order[: step * each]
                changed[:, places] = last.flatten(1)[:, places]
                logits = Corner()(changed.view(1, 3, 16, 16))[0]
                curve.append((logits.sigmoid() if multi_label else logits.softmax(0))[label].item())
            assert area.item() == pytest.approx((sum(curve) - (curve[0] + curve[-1]) / 2) / steps, rel=1e-5)


def test_a_map_that_points_at_the_cause_is_better_than_one_that_does_not():
    right, wrong = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    right[:, :2, :2] = wrong[:, 2:, 2:] = 1
    classes = torch.ones(3, dtype=torch.long)
    good, bad = (curve_areas(Corner(), inputs(), map_, classes, 8) for map_ in (right, wrong))
    assert (good[0] < bad[0]).all()


def test_validate_with_curves(images, tmp_path, capsys):
    run = train('--data-dir', images, *SMALL, '--output', tmp_path, '--experiment', 'run')
    here = ['--checkpoint', run, '--workers', '0', '--device', 'cpu', '--cam-curves', 4]
    small, large = (validate(capsys, *here, '-b', batch) for batch in (7, 25))
    for name in ('cam_deletion_area', 'cam_insertion_area'):
        assert 0 < small[name] < 1
        assert small[name] == pytest.approx(large[name], abs=1e-4)
