"""Where a model's input lies in the stored image: against drawn rectangles, and against the sizes of the resizes."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from timm.data import create_transform

from timm_hnc.data.input_geometry import InputFrame, InputGeometry, Side

STATISTICS = {'mean': (0.5, 0.4, 0.3), 'std': (1.0, 1.0, 1.0)}
SIZES = [(200, 120), (90, 160), (64, 64), (97, 96), (1200, 40)]


@pytest.mark.parametrize('size', SIZES[:3])
@pytest.mark.parametrize('mode', ['center', 'squash', 'border'])
@pytest.mark.parametrize('prefetcher', [False, True])
def test_boxes_move_as_drawn_rectangles_do(size, mode, prefetcher):
    transform = create_transform((3, 96, 80), crop_pct=0.9, crop_mode=mode, use_prefetcher=prefetcher, **STATISTICS)
    width, height = size
    box = torch.tensor([[0.3 * width, 0.25 * height, 0.7 * width, 0.8 * height]]).round().double()
    picture = Image.new('RGB', size)
    left, top, right, bottom = map(int, box[0])
    ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), (255, 255, 255))
    seen = np.asarray(transform(picture))[0]
    seen = seen > (127 if prefetcher else 0.0)  # half of white, less the mean
    seen &= np.asarray(transform(Image.new('RGB', size)))[0] < (60 if prefetcher else -0.4)  # padding
    rows, columns = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
    expected = torch.tensor([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]]).double()
    torch.testing.assert_close(InputGeometry(transform).frame(size).boxes(box), expected, rtol=0, atol=1.0)


@pytest.mark.parametrize('interpolation', ['nearest', 'bilinear', 'bicubic'])
@pytest.mark.parametrize('size', SIZES)
def test_resizes_and_crops_are_followed_exactly(size, interpolation):
    width, height = size

    def frame(**options):
        transform = create_transform((3, 96, 96), interpolation=interpolation, **STATISTICS, **options)
        return InputGeometry(transform).frame(size)

    def place(side):
        return [side.to_input(torch.tensor(x, dtype=torch.float64)).item() for x in (0, 7.5, 30)]

    squashed = frame(crop_mode='squash', crop_pct=1.0)
    assert place(squashed.columns) == [x * 96 / width for x in (0, 7.5, 30)]
    assert squashed.window == (0, 0, width, height)
    cropped = frame(crop_mode='center', crop_pct=0.75)  # the short side becomes 128
    long = int(128 * max(size) / min(size))
    wide, high = (128 if length == min(size) else long for length in size)
    assert place(cropped.columns) == [x * wide / width - round((wide - 96) / 2) for x in (0, 7.5, 30)]
    assert place(cropped.rows) == [y * high / height - round((high - 96) / 2) for y in (0, 7.5, 30)]
    padded = frame(crop_mode='border', crop_pct=1.0)
    wide, high = (round(length * 96 / max(size)) for length in size)
    assert place(padded.columns) == [x * wide / width + (96 - wide) // 2 for x in (0, 7.5, 30)]
    assert place(padded.rows) == [y * high / height + (96 - high) // 2 for y in (0, 7.5, 30)]
    trimmed = frame(crop_mode='squash', crop_pct=1.0, crop_border_pixels=4)
    assert trimmed.window == pytest.approx((4, 4, width - 4, height - 4))


def test_what_is_cropped_away_has_no_area():
    transform = create_transform((3, 32, 32), crop_pct=0.5, **STATISTICS)
    moved = InputGeometry(transform).frame((64, 64)).boxes(torch.tensor([[0.0, 0, 5, 5], [0, 0, 64, 64]]).double())
    assert moved[0, 2] - moved[0, 0] == 0
    assert moved[1].tolist() == [0, 0, 32, 32]


@pytest.mark.parametrize('side', [1, 2, 3])
def test_tiny_images_are_resized(side):
    transform = create_transform((3, 64, 64), crop_mode='squash', crop_pct=1.0, **STATISTICS)
    assert InputGeometry(transform).frame((side, 50)).window == pytest.approx((0, 0, side, 50))


def test_there_and_back():
    frame = InputFrame(Side(80, times=90, over=200, offset=5.0), Side(96, times=48, over=120, offset=-24.0))
    x1, y1, x2, y2 = frame.window
    assert frame.boxes(torch.tensor([[x1, y1, x2, y2]]).double()).tolist() == [pytest.approx([0, 0, 80, 96])]
    assert InputFrame(Side(30), Side(20)).size == (20, 30)
