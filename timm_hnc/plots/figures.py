"""What figures drawn with matplotlib share: import, colours, size of letters, and a picture of the result."""

from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from timm_hnc.errors import UsageError

# Okabe and Ito (2008), told apart by colour-blind readers; dash patterns help where there are more lines
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
DASHES = ('-', '--', ':', '-.')
COLOUR_MAP = 'viridis'


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of so many inches that needs no display.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if find_spec('matplotlib') is None:
        raise UsageError('this picture needs matplotlib: pip install "timm_hnc[plots]".')
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout='constrained')


def as_label(name: str) -> str:
    """A name for a legend, which leaves out what begins with _ and reads what is between two $."""
    name = name.replace('$', r'\$')
    return f' {name}' if name.startswith('_') else name


def shortened(text: str, letters: int) -> str:
    """A text of at most so many letters: what is too long loses its middle."""
    half = (letters - 3) // 2
    return text if len(text) <= letters else f'{text[:half]}...{text[-half:]}'


def style_of(number: int) -> dict[str, str]:
    """Colour and dashes of the line of that number."""
    return {'color': COLOURS[number % len(COLOURS)], 'linestyle': DASHES[number // len(COLOURS) % len(DASHES)]}


def as_image(figure: Any, dots_per_inch: int = 130) -> Image.Image:
    """The figure as an RGB picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dots_per_inch)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # once: saving a figure draws it twice where it has a layout
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
