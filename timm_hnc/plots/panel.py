"""Class activation maps beside their images, laid out as in Fig. 1 and Fig. 5 of the paper."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate

from timm_hnc.plots.colormap import apply_colormap

MAX_NEGATIVES = 4
MIN_CELL_SIZE = 32
MAP_WEIGHT = 0.6  # the rest is the grey image: less hides the level of a map, more hides the object under it
INK, FAINT, LINE, EMPTY, PAPER = (20, 20, 20), (95, 95, 95), (150, 150, 150), (242, 242, 242), (255, 255, 255)

# Pillow's own font knows little beyond ASCII. For other names the first of these that is installed and has all their
# characters is taken: Linux, Linux (Chinese, Japanese, Korean), macOS, Windows, Windows (Chinese).
OTHER_FONTS = ('DejaVuSans.ttf', 'NotoSansCJK-Regular.ttc', 'Arial Unicode.ttf', 'arial.ttf', 'msyh.ttc')

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]
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


@dataclass(eq=False)
class _Layout:
    """Where the parts of a panel lie, in pixels. Only shapes decide it, never values: panels of two epochs align."""

    cell_size: int
    columns: int
    pictures: list[tuple[int, int]]  # (height, width) of the pictures of each row
    has_title: bool

    @classmethod
    def of(cls, rows: Sequence[PanelRow], cell_size: int, has_title: bool) -> '_Layout':
        """The layout of rows: pictures keep the aspect of their image, the longer side as long as a cell."""
        pictures = []
        for row in rows:
            height, width = row.image.shape[-2:]
            scale = cell_size / max(height, width)
            pictures.append((max(1, round(height * scale)), max(1, round(width * scale))))
        return cls(cell_size, 2 + max(len(row.negatives) for row in rows), pictures, has_title)

    def __post_init__(self) -> None:
        cell = self.cell_size
        self.font_size = max(11, round(cell / 10.5))
        self.line = round(self.font_size * 1.25)
        self.margin = max(8, cell // 10)
        self.gap = max(6, cell // 13)
        self.bar_width = max(6, cell // 14)
        self.header = self.margin + (round(1.9 * self.line) if self.has_title else 0)
        # Room for the longest figure beside a colour bar, whatever the figures are.
        self.label_width = math.ceil(_font('0', self.font_size).getlength('-1.2e-38'))
        width = self.left(self.columns) + self.bar_width + self.gap // 2 + self.label_width + self.margin
        self.size = width, self.top(len(self.pictures))

    def left(self, column: int) -> int:
        """Left edge of a column; of the colour bar for the column after the last."""
        return self.margin + column * (self.cell_size + self.gap)

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
        left = self.left(column) + (self.cell_size - width) // 2
        top = self.top(row) + (self.band(row) - height) // 2
        return left, top, left + width, top + height


def draw_panel(rows: Sequence[PanelRow], title: str = '', cell_size: int = 160) -> Image.Image:
    """Draw images with their positive map and their top negative maps, as in Fig. 1 and Fig. 5 of the paper.

    A row is an image, then its positive map, then its negative maps by rank, each over the grey image with the class's
    name and probability below. All maps of a row share one colour scale, from their lowest to their highest value,
    which the bar at its end shows: a flat, low negative map looks flat and low. What is not finite is striped.

    Args:
        rows: the images, at least one.
        title: a line above everything, none if empty.
        cell_size: longer side of a picture in pixels, at least 32.

    Returns:
        The panel, an RGB image. Its size depends only on the shapes in ``rows``, ``cell_size`` and whether there is a
        title.

    Raises:
        TypeError: an image is not of a floating type.
        ValueError: no rows, a cell size too small, an image or map of the wrong shape, or more than 4 negatives.

    Example:
        >>> dog, cat = Cell(torch.rand(4, 4), 'dog', 0.93), Cell(torch.rand(4, 4), 'cat', 0.05)
        >>> draw_panel([PanelRow(torch.rand(3, 32, 32), dog, [cat])], title='epoch 10').mode
        'RGB'
    """
    _check(rows, cell_size)
    layout = _Layout.of(rows, cell_size, bool(title.strip()))
    panel = Image.new('RGB', layout.size, PAPER)
    draw = ImageDraw.Draw(panel)
    if layout.has_title:
        width = layout.size[0] - 2 * layout.margin
        _write(draw, (layout.margin, layout.margin), title, round(layout.font_size * 1.25), width, INK, 'la')
    negatives = [f'negative {rank}' for rank in range(1, layout.columns - 1)]
    for column, text in enumerate(['image', 'positive', *negatives]):
        centre = layout.left(column) + cell_size // 2
        _write(draw, (centre, layout.header), text, layout.font_size, cell_size, FAINT, 'ma')
    for index, row in enumerate(rows):
        _draw_row(panel, layout, index, row)
    return panel


def _check(rows: Sequence[PanelRow], cell_size: int) -> None:
    if not rows:
        raise ValueError('no rows: a panel needs at least one image.')
    if cell_size < MIN_CELL_SIZE:
        raise ValueError(f'cell_size {cell_size}: expected at least {MIN_CELL_SIZE} pixels.')
    for index, row in enumerate(rows):
        if row.image.ndim != 3 or 0 in row.image.shape:
            raise ValueError(
                f'image of row {index} of shape {tuple(row.image.shape)}: expected (channels, height, width).'
            )
        if not row.image.is_floating_point():
            raise TypeError(
                f'image of row {index} of type {row.image.dtype}: expected floats in [0, 1], divide by 255.'
            )
        if len(row.negatives) > MAX_NEGATIVES:
            raise ValueError(f'{len(row.negatives)} negatives in row {index}: expected at most {MAX_NEGATIVES}.')
        for cell in _cells(row):
            if cell.map.ndim != 2 or 0 in cell.map.shape:
                raise ValueError(f'map of "{cell.name}" of shape {tuple(cell.map.shape)}: expected (height, width).')


def _cells(row: PanelRow) -> list[Cell]:
    return [*([] if row.positive is None else [row.positive]), *row.negatives]


def _draw_row(panel: Image.Image, layout: _Layout, index: int, row: PanelRow) -> None:
    draw = ImageDraw.Draw(panel)
    size, box = layout.pictures[index], layout.box(index, 0)
    finite = torch.isfinite(row.image).all(0).cpu()
    colour = _resize(_as_colour(row.image), size).clamp(0, 1)
    _paste(panel, box, (255 * colour.permute(1, 2, 0)).round().to(torch.uint8), _resize_mask(~finite, size), layout)

    grey = (colour * torch.tensor([0.299, 0.587, 0.114], dtype=colour.dtype)[:, None, None]).sum(0)
    scale = row.scale or _shared_scale([cell.map for cell in _cells(row)])
    if row.caption:
        _write_line(draw, layout, index, 0, row.caption, INK)
    if row.positive is None:
        _draw_empty(draw, layout, index)
    for column, cell in enumerate([row.positive, *row.negatives], start=1):
        if cell is not None:
            box = layout.box(index, column)
            _paste(panel, box, *_map_over_image(cell.map, grey, scale), layout)
            _write_below(draw, layout, index, column, cell)
    if _cells(row):
        _draw_bar(panel, layout, index, scale)


def _as_colour(image: Tensor) -> Tensor:
    """(3, H, W) in double precision on the CPU; pixels that are not finite become black and are striped later."""
    image = image.detach().cpu().double()
    image = torch.where(torch.isfinite(image), image, 0)
    return image if len(image) == 3 else image.mean(0, keepdim=True).expand(3, -1, -1)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) to (C, *size), bicubic; antialiased, for images and maps that are larger than a cell."""
    return interpolate(maps[None], size, mode='bicubic', antialias=True, align_corners=False)[0]


def _resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w) bool to ``size``: when shrinking, a pixel is marked if any pixel under it is."""
    rows, columns = size
    smaller = min(rows, mask.shape[0]), min(columns, mask.shape[1])
    shrunk = adaptive_max_pool2d(mask[None, None].double(), smaller)
    return interpolate(shrunk, size, mode='nearest-exact')[0, 0] > 0


def _shared_scale(maps: Sequence[Tensor]) -> tuple[float, float] | None:
    """The lowest and highest finite value of several maps, None if there is none; equal if only rounding parts them."""
    flat = [map_.detach().cpu().double().flatten() for map_ in maps]
    values = torch.cat(flat) if flat else torch.zeros(0)
    values = values[torch.isfinite(values)]
    if not len(values):
        return None
    low, high = values.min().item(), values.max().item()
    # The rounding of a float32 sum over some thousand features is no structure: stretched over the whole scale it
    # would make a perfectly flat map look like noise.
    return (low, low) if high - low <= 1e-6 * max(abs(low), abs(high)) else (low, high)


def _map_over_image(map_: Tensor, grey: Tensor, scale: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    """(H, W, 3) uint8 of a map blended over the grey image (H, W), and the (H, W) mask of where it is not finite."""
    map_ = map_.detach().cpu().double()
    broken = ~torch.isfinite(map_)
    size = (grey.shape[0], grey.shape[1])
    if scale is None or broken.all():
        return _blend(torch.zeros_like(grey), grey), torch.ones_like(grey, dtype=torch.bool)
    # Under a striped place stands the map's mean, which bends the values around it the least.
    filled = torch.where(broken, map_[~broken].mean(), map_)
    low, high = scale
    values = (filled - low) / (high - low) if high > low else torch.full_like(filled, 0.5)
    return _blend(_resize(values[None], size)[0], grey), _resize_mask(broken, size)


def _blend(values: Tensor, grey: Tensor) -> Tensor:
    mixed = MAP_WEIGHT * apply_colormap(values) + (1 - MAP_WEIGHT) * 255 * grey[..., None]
    return mixed.round().clamp(0, 255).to(torch.uint8)


def _paste(panel: Image.Image, box: Box, picture: Tensor, broken: Tensor, layout: _Layout) -> None:
    """Put an (H, W, 3) picture in its place; where ``broken`` (H, W) it is striped, with a word on why."""
    if broken.any():
        height, width = broken.shape
        diagonal = torch.arange(height)[:, None] + torch.arange(width)
        stripes = torch.where(diagonal // max(3, layout.cell_size // 26) % 2 == 0, 30, 235).to(torch.uint8)
        picture = torch.where(broken[..., None], stripes[..., None], picture)
    panel.paste(Image.fromarray(picture.numpy()), box[:2])
    if broken.any():
        _write_tag(ImageDraw.Draw(panel), box, 'not finite', layout)


def _write_tag(draw: ImageDraw.ImageDraw, box: Box, text: str, layout: _Layout) -> None:
    """A word on a white plate in the lower left corner of a picture, if it fits in."""
    font, (left, top, right, bottom) = _font(text, layout.font_size), box
    pad = layout.font_size // 3
    width, height = math.ceil(font.getlength(text)) + 2 * pad, layout.line
    if width <= right - left and height <= bottom - top:
        draw.rectangle((left, bottom - height, left + width, bottom - 1), PAPER)
        draw.text((left + pad, bottom - height // 2), text, INK, font, 'lm')


def _draw_empty(draw: ImageDraw.ImageDraw, layout: _Layout, index: int) -> None:
    left, top, right, bottom = layout.box(index, 1)
    draw.rectangle((left, top, right - 1, bottom - 1), EMPTY, LINE)
    _write(draw, ((left + right) // 2, (top + bottom) // 2), 'no label', layout.font_size, right - left, FAINT, 'mm')


def _write_below(draw: ImageDraw.ImageDraw, layout: _Layout, index: int, column: int, cell: Cell) -> None:
    _write_line(draw, layout, index, column, cell.name, INK)
    _write_line(draw, layout, index, column, _format_probability(cell.probability), FAINT, line=1)


def _write_line(
    draw: ImageDraw.ImageDraw, layout: _Layout, index: int, column: int, text: str, colour: Colour, line: int = 0
) -> None:
    x = layout.left(column) + layout.cell_size // 2
    baseline = layout.top(index) + layout.band(index) + layout.gap // 3 + layout.font_size + line * layout.line
    _write(draw, (x, baseline), text, layout.font_size, layout.cell_size, colour, 'ms')


def _draw_bar(panel: Image.Image, layout: _Layout, index: int, scale: tuple[float, float] | None) -> None:
    draw = ImageDraw.Draw(panel)
    left, top = layout.left(layout.columns), layout.top(index)
    height, width = layout.band(index), layout.bar_width
    values = torch.linspace(1, 0, height, dtype=torch.float64)[:, None].expand(-1, width)
    if scale is not None and scale[0] == scale[1]:
        values = torch.full_like(values, 0.5)
    # Over mid-grey, as the maps lie over the image: a colour in a cell is then found on the bar.
    colours = _blend(values, torch.full_like(values, 0.5))
    broken = torch.full((height, width), scale is None)
    box = (left, top, left + width, top + height)
    _paste(panel, box, colours, broken, layout)
    draw.rectangle((left, top, left + width - 1, top + height - 1), outline=LINE)
    x, font = left + width + layout.gap // 2, _font('0', layout.font_size)
    if scale is None:
        draw.text((x, top + height // 2), 'n/a', INK, font, 'lm')
    elif scale[0] == scale[1]:
        draw.text((x, top + height // 2), _format_value(scale[0]), INK, font, 'lm')
    else:
        low, high = _format_ends(*scale)
        _write(draw, (x, top + round(0.72 * layout.font_size)), high, layout.font_size, layout.label_width, INK, 'ls')
        _write(draw, (x, top + height), low, layout.font_size, layout.label_width, INK, 'ls')


def _format_ends(low: float, high: float) -> tuple[str, str]:
    """Both ends of a scale, with as many digits as it takes to tell them apart."""
    for digits in range(2, 8):
        ends = _format_value(low, digits), _format_value(high, digits)
        if ends[0] != ends[1]:
            break
    return ends


def _format_probability(probability: float) -> str:
    return '<0.01' if probability < 0.01 else f'{probability:.2f}'


def _format_value(value: float, digits: int = 2) -> str:
    """A finite number with so many significant digits, and in any case all digits before the point."""
    if value == 0:
        return '0'
    if not 0.01 <= abs(value) < 10 ** max(3, digits):
        mantissa, exponent = f'{value:.{digits - 1}e}'.split('e')
        return f'{mantissa}e{int(exponent)}'
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f'{value:.{decimals}f}'


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, width: int, colour: Colour, anchor: str
) -> None:
    """One line of text, shortened to a width in pixels."""
    text = _clean(text)
    font = _font(text, size)
    draw.text(place, _shorten(text, font, width), colour, font, anchor)


def _shorten(text: str, font: Font, width: int) -> str:
    """The text, or as much of its beginning as fits into so many pixels with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    text = text[:width]  # no letter is narrower than a pixel: this only spares the loop for very long texts
    while text and font.getlength(text.rstrip(' ,') + '…') > width:
        text = text[:-1]
    return text.rstrip(' ,') + '…'


def _clean(text: str) -> str:
    """One line without control characters and lone surrogates, which a font refuses or draws as boxes."""
    text = ''.join(' ' if unicodedata.category(char) in ('Cc', 'Cs', 'Zl', 'Zp') else char for char in text)
    return unicodedata.normalize('NFC', ' '.join(text.split()))


def _font(text: str, size: int) -> Font:
    """Pillow's own font, or for a text with characters that it lacks one of the machine's that has them."""
    own = _own_font(size)
    if text.isascii() or _has_all(own, text):
        return own
    # These are drawn larger than Pillow's at the same nominal size.
    found = (_installed(name, round(0.93 * size)) for name in OTHER_FONTS)
    return next((font for font in found if font is not None and _has_all(font, text)), own)


@lru_cache(maxsize=32)
def _own_font(size: int) -> Font:
    return ImageFont.load_default(size)


@lru_cache(maxsize=32)
def _installed(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _has_all(font: Font, text: str) -> bool:
    """Whether no character of the text comes out as the box that stands for a missing one."""

    def shape(char: str) -> tuple[tuple[int, int], bytes]:
        mask = font.getmask(char)
        return mask.size, bytes(mask)

    missing = shape('\uffff')
    return all(shape(char) != missing for char in set(text))
