"""Text and numbers in a picture: short forms, and lines in a font that has their characters."""

import math
import unicodedata
from functools import lru_cache

from PIL import ImageDraw, ImageFont

# Pillow's own font knows little beyond ASCII. For other names the first of these that is installed and has all their
# characters is taken: Linux, Linux (Chinese, Japanese, Korean), macOS, Windows, Windows (Chinese).
OTHER_FONTS = ('DejaVuSans.ttf', 'NotoSansCJK-Regular.ttc', 'Arial Unicode.ttf', 'arial.ttf', 'msyh.ttc')

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]


def write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, width: int, colour: Colour, anchor: str
) -> None:
    """One line of text, shortened to a width in pixels."""
    text = _clean(text)
    font = font_of(text, size)
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


def font_of(text: str, size: int) -> Font:
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


def format_ends(low: float, high: float) -> tuple[str, str]:
    """Both ends of a scale, with as many digits as it takes to tell them apart."""
    for digits in range(2, 8):
        ends = format_value(low, digits), format_value(high, digits)
        if ends[0] != ends[1]:
            break
    return ends


def format_probability(probability: float) -> str:
    """Two digits behind the point."""
    return '<0.01' if probability < 0.01 else f'{probability:.2f}'


def format_value(value: float, digits: int = 2) -> str:
    """A finite number with so many significant digits, and in any case all digits before the point."""
    if value == 0:
        return '0'
    if not 0.01 <= abs(value) < 10 ** max(3, digits):
        mantissa, exponent = f'{value:.{digits - 1}e}'.split('e')
        return f'{mantissa}e{int(exponent)}'
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f'{value:.{decimals}f}'
