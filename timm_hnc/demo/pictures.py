"""The pictures of the page: a map over its photograph, and rows of maps with their names, as HTML."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, Template
from PIL import Image
from torch import Tensor

from timm_hnc.demo.sights import Mistake
from timm_hnc.plots.lettering import format_ends, format_probability, format_value
from timm_hnc.plots.map_image import as_grey, blend, data_uri, levels, map_uri, shared_scale, sized
from timm_hnc.plots.panel import CELL, Cell, PanelRow

Scale = tuple[float, float]
_SIDE = 512  # longer side of the picture of one map, in pixels


def scale_of(cells: Sequence[Cell], rows: Sequence[PanelRow], mistakes: Sequence[Mistake | None]) -> Scale:
    """The lowest and the highest value of everything that is drawn."""
    maps = [cell.map for cell in [*cells, *(cell for row in rows for cell in row.cells)]]
    maps += [each.difference for each in mistakes if each]
    return shared_scale(maps) or (0.0, 0.0)


def map_picture(image: Tensor, cell: Cell, scale: Scale, threshold: float, opacity: float) -> Image.Image:
    """A map over the grey image, and the image in its own colours where the map is low.

    Args:
        image: (C, H, W) in [0, 1].
        cell: with the map.
        scale: lowest and highest value of the colours.
        threshold: the share of the scale from which on the map is shown; 0 shows all of it.
        opacity: of the map, in [0, 1].
    """
    colour = sized(image, _SIDE)
    values = levels(cell.map, scale, (colour.shape[1], colour.shape[2]))
    shown = torch.ones_like(values, dtype=torch.bool) if threshold == 0 else values >= threshold
    plain = (255 * colour.permute(1, 2, 0)).round().to(torch.uint8)
    return Image.fromarray(torch.where(shown[..., None], blend(values, as_grey(colour), opacity), plain).numpy())


def rows_of_maps(row: PanelRow, known: bool, mistake: Mistake | None, scale: Scale) -> str:
    """HTML: the map of the class that is there or predicted beside the next ones; why it was taken for something else.

    Args:
        row: of the photograph.
        known: somebody said what is in the photograph.
        mistake: None where there is none.
        scale: lowest and highest value of the colours of both.
    """
    grey = as_grey(sized(row.image, CELL))
    ranks = range(1, 1 + len(row.negatives))
    others = [f'absent {rank}' if known else f'top {rank + 1}' for rank in ranks]
    heads = ['expected' if known else 'predicted', *others]
    return _template().render(
        cells=[_shown(head, cell, grey, scale) for head, cell in zip(heads, row.cells, strict=True)],
        mistake=_explained(mistake, grey, scale) if mistake else None,
        ends=format_ends(*scale) if scale[0] < scale[1] else None,
        bar=data_uri(_bar(), 'PNG'),
    )


def _explained(mistake: Mistake, grey: Tensor, scale: Scale) -> dict[str, Any]:
    predicted, expected = mistake.predicted, mistake.expected
    return {
        'predicted': predicted.name,
        'expected': expected.name,
        'difference': format_value(mistake.difference.mean().item()),
        'cells': [
            _shown('predicted', predicted, grey, scale),
            _shown('expected', expected, grey, scale),
            {'head': 'difference', 'picture': map_uri(mistake.difference, grey, scale)},
        ],
    }


def _shown(head: str, cell: Cell, grey: Tensor, scale: Scale) -> dict[str, str]:
    picture = map_uri(cell.map, grey, scale)
    return {'head': head, 'name': cell.name, 'probability': format_probability(cell.probability), 'picture': picture}


def _bar() -> Image.Image:
    """The colours of the maps from low to high, over mid-grey as they lie over the photograph."""
    values = torch.linspace(0, 1, 160, dtype=torch.float64)[None].expand(10, -1)
    return Image.fromarray(blend(values, torch.full_like(values, 0.5)).numpy())


@cache
def _template() -> Template:
    templates = Environment(loader=PackageLoader('timm_hnc.demo'), autoescape=True, trim_blocks=True)
    return templates.get_template('maps.html')
