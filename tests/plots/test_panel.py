import numpy as np
import pytest
import timm
import torch
from PIL import Image

from timm_hnc import CamModel
from timm_hnc.plots import lettering
from timm_hnc.plots.cams import draw_cams
from timm_hnc.plots.colormap import apply_colormap
from timm_hnc.plots.panel import Cell, PanelRow, draw_panel

CELL = 160
GREY = torch.full((1, 40, 40), 0.5)
RAMP = torch.arange(12.0).reshape(3, 4) / 11  # its ends fix the scale of a row to [0, 1]
EMPTY = (242, 242, 242)


def row(image: torch.Tensor, *maps: torch.Tensor, positive: bool = True) -> PanelRow:
    cells = [Cell(map_, f'class {i}', 0.5) for i, map_ in enumerate(maps)]
    return PanelRow(image, cells[0], cells[1:]) if positive else PanelRow(image, None, cells)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def changed(first: Image.Image, second: Image.Image) -> tuple[slice, slice]:
    """The smallest box that holds all pixels in which two pictures of one size differ."""
    ys, xs = np.nonzero((pixels(first) != pixels(second)).any(-1))
    return slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)


def picture_box(image: torch.Tensor, column: int, columns: int = 5) -> tuple[slice, slice]:
    """Where the map of a column is drawn, found by changing nothing but that map (column 0: positive)."""
    low, high = [RAMP] * columns, [RAMP] * columns
    low[column], high[column] = torch.zeros(3, 4), torch.ones(3, 4)
    return changed(draw_panel([row(image, *low)]), draw_panel([row(image, *high)]))


def lightness(rgb: np.ndarray) -> np.ndarray:
    linear = np.where(rgb / 255 <= 0.04045, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(linear @ np.array([0.2126, 0.7152, 0.0722])) - 16


def test_colormap_grows_lighter_in_even_steps():
    colours = apply_colormap(torch.linspace(0, 1, 101)[None])
    assert colours.shape == (1, 101, 3)
    assert colours.dtype == torch.uint8
    light = lightness(colours[0].numpy().astype(float))
    assert (np.diff(light) > 0).all()
    tenths = np.diff(light[::10])
    assert tenths.max() < 1.4 * tenths.min()
    assert light[-1] - light[0] > 70


def test_colormap_at_and_beyond_its_ends():
    colours = apply_colormap(torch.tensor([[-3.0, 0.0, 1.0, 7.0]])).tolist()[0]
    assert colours == [[68, 1, 84], [68, 1, 84], [253, 231, 37], [253, 231, 37]]


def test_size_follows_from_shapes():
    five = [RAMP] * 5
    width, height = draw_panel([row(GREY, *five)]).size
    # At a cell of 160: gap 12, margin 16, two lines of 19 and 4 above them.
    assert draw_panel([row(GREY, *five[:4])]).size == (width - 160 - 12, height)
    assert draw_panel([row(GREY, *five)] * 2).size == (width, height + 160 + 4 + 2 * 19 + 16)
    wide = row(torch.rand(3, 50, 100), *five)
    assert draw_panel([row(GREY, *five), wide]).size == (width, height + 80 + 4 + 2 * 19 + 16)
    assert draw_panel([row(GREY, *five)], title='a title').size == (width, height + 36)
    assert draw_panel([row(GREY, *(-1e-7 * map_ for map_ in five))]).size == (width, height)


@pytest.mark.parametrize(
    ('height', 'width', 'box'),
    [(40, 40, (160, 160)), (60, 80, (120, 160)), (90, 45, (160, 80)), (500, 800, (100, 160))],
)
@pytest.mark.parametrize('grid', [(3, 4), (7, 5), (1, 6)])
def test_hottest_place_lies_where_it_should(height, width, box, grid):
    image = torch.full((3, height, width), 0.5)
    ys, xs = picture_box(image, 1)
    assert (ys.stop - ys.start, xs.stop - xs.start) == box
    hot = torch.zeros(grid)
    place = (grid[0] - 1, 1)
    hot[place] = 5.0
    crop = pixels(draw_panel([row(image, torch.zeros(grid), hot, *[RAMP] * 3)]))[ys, xs].sum(-1)
    peak = np.argwhere(crop == crop.max()).mean(0)
    # Centre of the grid's cell in pixels; on the last rows the peak is a plateau that reaches the edge.
    centre = [(place[i] + 0.5) / grid[i] * box[i] for i in range(2)]
    assert abs(peak[1] - centre[1]) <= 1
    assert abs(peak[0] - centre[0]) <= 0.5 * box[0] / grid[0]


def test_colours_are_the_map_over_the_grey_image():
    image = torch.tensor([1.0, 0.5, 0.0])[:, None, None].expand(3, 20, 20)
    ys, xs = picture_box(image, 0)
    flat = torch.zeros(3, 4)
    crop = pixels(draw_panel([row(image, flat, *[RAMP] * 4)]))[ys, xs]
    grey = 255 * (0.299 + 0.587 * 0.5)
    expected = np.array([0.6 * channel + 0.4 * grey for channel in (68, 1, 84)])
    assert np.abs(crop - expected).max() <= 0.51


def test_one_scale_a_row():
    maps = [RAMP, 0.5 * RAMP, RAMP, 0.5 * RAMP, RAMP]
    drawn = pixels(draw_panel([row(GREY, *maps)]))
    crops = [drawn[picture_box(GREY, column)] for column in range(5)]
    for other in (2, 4):
        assert np.array_equal(crops[0], crops[other])
    assert np.array_equal(crops[1], crops[3])
    assert lightness(crops[0].astype(float)).max() > lightness(crops[1].astype(float)).max() + 10

    # Each row has its own scale: the same maps in other units give the same pictures.
    box = picture_box(GREY, 1)
    scaled = pixels(draw_panel([row(GREY, *(40 * map_ - 3 for map_ in maps))]))
    assert np.abs(scaled[box] - drawn[box]).max() <= 1


def test_equal_maps_do_not_divide_by_zero():
    ys, xs = picture_box(GREY, 0)
    for value in (0.0, 3.25, -1e-30):
        crop = pixels(draw_panel([row(GREY, *[torch.full((3, 4), value)] * 5)]))[ys, xs]
        assert (crop == crop[0, 0]).all()
    noise = 3.25 + 1e-7 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    noisy = pixels(draw_panel([row(GREY, *[noise] * 5)]))[ys, xs]
    assert (noisy == noisy[0, 0]).all(), 'rounding errors are stretched over the whole scale'


def test_missing_positive_is_an_empty_cell():
    drawn = pixels(draw_panel([row(GREY, *[RAMP] * 4, positive=False)]))
    crop = drawn[picture_box(GREY, 0)]
    share = (crop == EMPTY).all(-1).mean()
    assert 0.9 < share < 0.99, 'empty but for its frame and the words'
    reference = pixels(draw_panel([row(GREY, *[RAMP] * 5)]))
    for column in range(1, 5):
        box = picture_box(GREY, column)
        assert np.array_equal(drawn[box], reference[box])
    assert draw_panel([PanelRow(GREY, None, [])]).mode == 'RGB'


def test_fewer_negatives_leave_white_space():
    drawn = pixels(draw_panel([row(GREY, *[RAMP] * 2), row(GREY, *[RAMP] * 5)]))
    assert (drawn[picture_box(GREY, 1)] != 255).any()
    for column in range(2, 5):
        ys, xs = picture_box(GREY, column)
        assert (drawn[ys, xs] == 255).all()


@pytest.mark.parametrize(
    'name',
    ['x' * 5000, 'great white shark, white shark, man-eater', 'Ägyptische Katze ' * 9, 'Черепаха ' * 9, '柴犬🐕' * 30],
)
def test_long_names_stay_in_their_column(name):
    def drawn(text: str) -> Image.Image:
        return draw_panel([PanelRow(GREY, Cell(RAMP, text, 0.5), [Cell(RAMP, '', 0.5)] * 4)])

    _, text = changed(drawn(''), drawn(name))
    _, column = picture_box(GREY, 0)
    assert column.start - 1 <= text.start
    assert text.stop <= column.stop + 1
    assert text.stop - text.start > 0.75 * CELL


@pytest.mark.parametrize('name', ['', ' ', 'two\nlines\r\n', 'nul\0', 'lone \ud83d', '\u200b\u0301', 'العربية', '🐱'])
def test_odd_names_with_and_without_fonts_of_the_machine(name, monkeypatch):
    rows = [row(GREY, *[RAMP] * 2), PanelRow(GREY, Cell(RAMP, name, 0.5), [])]
    size = draw_panel(rows, title=name or 'title').size
    monkeypatch.setattr(lettering, 'OTHER_FONTS', ('no such font.ttf',))
    assert draw_panel(rows, title=name or 'title').size == size


@pytest.mark.parametrize('channels', [1, 2, 3, 5])
def test_channels_dtypes_and_maps_that_need_gradients(channels):
    half = RAMP.to(torch.bfloat16).requires_grad_()
    drawn = draw_panel([row(torch.rand(channels, 8, 8).half(), half, RAMP.double())])
    assert drawn.mode == 'RGB'


def test_channels_other_than_three_are_shown_as_their_mean():
    image = torch.rand(5, 9, 9, generator=torch.Generator().manual_seed(0))
    mean = image.mean(0, keepdim=True)
    assert np.array_equal(pixels(draw_panel([row(image, RAMP)])), pixels(draw_panel([row(mean, RAMP)])))


@pytest.mark.parametrize(
    ('probability', 'text'), [(0.934, '0.93'), (1.0, '1.00'), (0.01, '0.01'), (0.0099, '<0.01'), (0.0, '<0.01')]
)
def test_probabilities(probability, text):
    assert lettering.format_probability(probability) == text


@pytest.mark.parametrize(
    ('low', 'high', 'texts'),
    [
        (-3.0, 12.345, ('-3.0', '12')),
        (0.0, 0.9, ('0', '0.90')),
        (-0.0123, 123456.0, ('-0.012', '1.2e5')),
        (12.31, 12.38, ('12.3', '12.4')),
        (-1234.0, -1233.0, ('-1234', '-1233')),
        (999.7, 1234.0, ('1000', '1.2e3')),
    ],
)
def test_ends_of_the_scale_can_be_told_apart(low, high, texts):
    assert lettering.format_ends(low, high) == texts


@pytest.mark.parametrize(
    ('image', 'error', 'message'),
    [
        (GREY[0], ValueError, r'\(40, 40\)'),
        (GREY.to(torch.uint8), TypeError, 'uint8'),
    ],
)
def test_what_cannot_be_drawn_is_named(image, error, message):
    with pytest.raises(error, match=message):
        draw_panel([row(image, RAMP)])


def test_names_of_classes_are_as_many_as_classes_or_their_numbers():
    model = CamModel(timm.create_model('test_resnet', num_classes=4).eval())
    batch = torch.randn(1, 3, 64, 64), torch.rand(1, 3, 64, 64), torch.tensor([2])
    assert draw_cams(model, *batch, None).tobytes() == draw_cams(model, *batch, ['0', '1', '2', '3']).tobytes()
    with pytest.raises(ValueError, match='2 class names for 4 classes'):
        draw_cams(model, *batch, ['a', 'b'])
    with pytest.raises(ValueError, match='2 images for 1 inputs'):
        draw_cams(model, batch[0], torch.rand(2, 3, 64, 64), batch[2], None)
    with pytest.raises(TypeError, match='the model is a ResNet: wrap it'):
        draw_cams(model.model, *batch, None)
    with pytest.raises(ValueError, match='the model is in training mode'):
        draw_cams(model.train(), *batch, None)
