"""Class activation maps beside their images, laid out as in Fig. 1 and Fig. 5 of the paper."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from timm_hnc.plots.lettering import Colour, font_of, format_ends, format_probability, format_value, write
from timm_hnc.plots.map_image import as_grey, as_picture, blend, map_over_image, shared_scale, size_in, sized

MAX_NEGATIVES = 4
CELL = 160  # longer side of a picture in pixels
INK, FAINT, LINE, EMPTY, PAPER = (20, 20, 20), (95, 95, 95), (150, 150, 150), (242, 242, 242), (255, 255, 255)

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Cell:
    """One class activation map of an image.

    Args:
        map: (h, w) class activation map, in any floating type and on any device.
        name: name of the class.
        probability: the model's probability of the class, in [0, 1].
    """

    map: Tensor
    name: str
    probability: float


@dataclass(frozen=True, eq=False)
class PanelRow:
    """One image and its maps.

    Args:
        image: (C, H, W) floats in [0, 1], not normalised. C = 3 is shown in colour, any other C as the grey mean.
        positive: the map of the image's class, None for an image without a label.
        negatives: up to 4 maps of classes that are not in the image, highest score first.
        caption: under the image.
        scale: lowest and highest value of the colour scale, those of the row's maps if None.
    """

    image: Tensor
    positive: Cell | None
    negatives: Sequence[Cell]
    caption: str = ''
    scale: tuple[float, float] | None = None

    @property
    def cells(self) -> list[Cell]:
        """All maps, that of the image's class first."""
        return [*([] if self.positive is None else [self.positive]), *self.negatives]


class _Layout:
    """Where the parts of a panel lie, in pixels. Only shapes decide it, never values: panels of two epochs align."""

    font_size, line, margin, gap, bar_width = 15, 19, 16, 12, 11

    def __init__(self, rows: Sequence[PanelRow], has_title: bool) -> None:
        self.has_title = has_title
        self.columns = 2 + max(len(row.negatives) for row in rows)
        self.pictures = [size_in(CELL, row.image) for row in rows]
        self.header = self.margin + (round(1.9 * self.line) if has_title else 0)
        # Room for the longest figure beside a colour bar, whatever the figures are.
        self.label_width = math.ceil(font_of('0', self.font_size).getlength('-1.2e-38'))
        width = self.left(self.columns) + self.bar_width + self.gap // 2 + self.label_width + self.margin
        self.size = width, self.top(len(self.pictures))

    def left(self, column: int) -> int:
        """Left edge of a column; of the colour bar for the column after the last."""
        return self.margin + column * (CELL + self.gap)

    def band(self, row: int) -> int:
        """Height of the part of a row that holds pictures: at least three lines, for the figures of the colour bar."""
        return max(self.pictures[row][0], 3 * self.line)

    def top(self, row: int) -> int:
        """Upper edge of a row; the panel's lower edge for the row after the last."""
        above = sum(self.band(i) + self.gap // 3 + 2 * self.line + self.margin for i in range(row))
        return self.header + round(1.5 * self.line) + above

    def box(self, row: int, column: int) -> Box:
        """(left, top, right, bottom) of a picture, centred in its column."""
        height, width = self.pictures[row]
        left = self.left(column) + (CELL - width) // 2
        top = self.top(row) + (self.band(row) - height) // 2
        return left, top, left + width, top + height


def draw_panel(rows: Sequence[PanelRow], title: str = '', labelled: bool = True, contrast: bool = False) -> Image.Image:
    """Draw images with their positive map and their top negative maps, as in Fig. 1 and Fig. 5 of the paper.

    A row is an image, then its positive map, then its negative maps by rank, each over the grey image with the class's
    name and probability below. All maps of a row share one colour scale, from their lowest to their highest value,
    which the bar at its end shows: a flat, low negative map looks flat and low.

    Args:
        rows: the images, at least one.
        title: a line above everything, none if empty.
        labelled: the classes of the images are known; else maps are headed by rank, not as positive and negative.
        contrast: the maps behind the first are the first minus that of a class.

    Returns:
        The panel, an RGB image. Its size depends only on the shapes in ``rows`` and whether there is a title.

    Raises:
        TypeError: an image is not of a floating type.
        ValueError: an image is of the wrong shape.

    Example:
        >>> dog, cat = Cell(torch.rand(4, 4), 'dog', 0.93), Cell(torch.rand(4, 4), 'cat', 0.05)
        >>> draw_panel([PanelRow(torch.rand(3, 32, 32), dog, [cat])], title='epoch 10').mode
        'RGB'
    """
    _check(rows)
    layout = _Layout(rows, bool(title.strip()))
    panel = Image.new('RGB', layout.size, PAPER)
    draw = ImageDraw.Draw(panel)
    if layout.has_title:
        width = layout.size[0] - 2 * layout.margin
        write(draw, (layout.margin, layout.margin), title, round(layout.font_size * 1.25), width, INK, 'la')
    ranks = range(1, layout.columns - 1)
    maps = ['positive', *(f'negative {rank}' for rank in ranks)]
    if not labelled:
        maps = ['top 1', *(f'{"top 1 - " if contrast else ""}top {rank + 1}' for rank in ranks)]
    for column, text in enumerate(['image', *maps]):
        centre = layout.left(column) + CELL // 2
        write(draw, (centre, layout.header), text, layout.font_size, CELL, FAINT, 'ma')
    for index, row in enumerate(rows):
        _draw_row(panel, layout, index, row)
    return panel


def _check(rows: Sequence[PanelRow]) -> None:
    for index, row in enumerate(rows):
        if row.image.ndim != 3 or 0 in row.image.shape:
            raise ValueError(
                f'image of row {index} of shape {tuple(row.image.shape)}: expected (channels, height, width).'
            )
        if not row.image.is_floating_point():
            raise TypeError(
                f'image of row {index} of type {row.image.dtype}: expected floats in [0, 1], divide by 255.'
            )


def _draw_row(panel: Image.Image, layout: _Layout, index: int, row: PanelRow) -> None:
    draw = ImageDraw.Draw(panel)
    colour = sized(row.image, CELL)
    panel.paste(as_picture(colour), layout.box(index, 0)[:2])

    grey = as_grey(colour)
    scale = row.scale or shared_scale([cell.map for cell in row.cells])
    if row.caption:
        _write_line(draw, layout, index, 0, row.caption, INK)
    if row.positive is None:
        _draw_empty(draw, layout, index)
    for column, cell in enumerate([row.positive, *row.negatives], start=1):
        if cell is not None and scale is not None:
            picture = map_over_image(cell.map, grey, scale)
            panel.paste(Image.fromarray(picture.numpy()), layout.box(index, column)[:2])
            _write_line(draw, layout, index, column, cell.name, INK)
            _write_line(draw, layout, index, column, format_probability(cell.probability), FAINT, line=1)
    if scale is not None:
        _draw_bar(panel, layout, index, scale)


def _draw_empty(draw: ImageDraw.ImageDraw, layout: _Layout, index: int) -> None:
    left, top, right, bottom = layout.box(index, 1)
    draw.rectangle((left, top, right - 1, bottom - 1), EMPTY, LINE)
    write(draw, ((left + right) // 2, (top + bottom) // 2), 'no label', layout.font_size, right - left, FAINT, 'mm')


def _write_line(
    draw: ImageDraw.ImageDraw, layout: _Layout, index: int, column: int, text: str, colour: Colour, line: int = 0
) -> None:
    x = layout.left(column) + CELL // 2
    baseline = layout.top(index) + layout.band(index) + layout.gap // 3 + layout.font_size + line * layout.line
    write(draw, (x, baseline), text, layout.font_size, CELL, colour, 'ms')


def _draw_bar(panel: Image.Image, layout: _Layout, index: int, scale: tuple[float, float]) -> None:
    draw = ImageDraw.Draw(panel)
    left, top = layout.left(layout.columns), layout.top(index)
    height, width = layout.band(index), layout.bar_width
    values = torch.linspace(1, 0, height, dtype=torch.float64)[:, None].expand(-1, width)
    if scale[0] == scale[1]:
        values = torch.full_like(values, 0.5)
    # Over mid-grey, as the maps lie over the image: a colour in a cell is then found on the bar.
    colours = blend(values, torch.full_like(values, 0.5))
    panel.paste(Image.fromarray(colours.numpy()), (left, top))
    draw.rectangle((left, top, left + width - 1, top + height - 1), outline=LINE)
    x, font = left + width + layout.gap // 2, font_of('0', layout.font_size)
    if scale[0] == scale[1]:
        draw.text((x, top + height // 2), format_value(scale[0]), INK, font, 'lm')
    else:
        low, high = format_ends(*scale)
        write(draw, (x, top + round(0.72 * layout.font_size)), high, layout.font_size, layout.label_width, INK, 'ls')
        write(draw, (x, top + height), low, layout.font_size, layout.label_width, INK, 'ls')
