"""Grids of positions: their shape, and resizing maps from one to another."""

from math import ceil

import torch
from torch import Tensor

Grid = tuple[int, int]
Cell = tuple[float, float]


def is_shaped_as(grid: tuple[int, ...], image_size: tuple[int, int]) -> bool:
    """Whether a grid's sides are to each other as those of the image are, but for rounding."""
    (rows, columns), (height, width) = grid, image_size
    return abs(rows * width - columns * height) < max(image_size)


def cell_of(grid: Grid, image_size: tuple[int, int]) -> Cell:
    """(height, width) of a cell in pixels."""
    return image_size[0] / grid[0], image_size[1] / grid[1]


def token_grid(num_tokens: int, image_size: tuple[int, int], cell: Cell | None = None) -> Grid:
    """The (h, w) grid of patch tokens: h * w tokens, shaped as the image is.

    Args:
        num_tokens: of patches alone.
        image_size: (height, width) of the images in pixels.
        cell: (height, width) of a cell on images of another size; as many cells as fit, or one more, are tried first.

    Raises:
        ValueError: no such grid, so some tokens are no patches.

    Example:
        >>> token_grid(12, (96, 128))
        (3, 4)
    """
    if cell is not None and any(isinstance(size, torch.SymInt) for size in image_size):
        rows, columns = (size // round(side) for size, side in zip(image_size, cell, strict=True))
        return rows, columns  # of a graph that is exported for any size, and compared on several
    if cell is not None:
        counts = [{int(size / side), ceil(size / side)} for size, side in zip(image_size, cell, strict=True)]
        fitting = [(height, num_tokens // height) for height in counts[0] if height and num_tokens % height == 0]
        fitting = [grid for grid in fitting if grid[1] in counts[1]]
        if len(fitting) == 1:
            return fitting[0]
    patch = (image_size[0] * image_size[1] / num_tokens) ** 0.5
    rows = image_size[0] / patch
    heights = [h for h in range(max(1, int(rows)), int(rows) + 2) if num_tokens % h == 0]
    for height in sorted(heights, key=lambda h: abs(h - rows)):
        if abs(num_tokens // height - image_size[1] / patch) < 1:
            return height, num_tokens // height
    raise ValueError(f'{num_tokens} tokens of an image of {image_size[0]} x {image_size[1]} pixels form no grid.')


def resize_positions(positions: Tensor, grid: Grid, target: Grid) -> Tensor:
    """(h * w, ...) positions on another grid, each the mean of what it covers by area: the mean over all stays."""
    if grid == target:
        return positions
    rows = _overlap(grid[0], target[0]).to(positions)
    columns = _overlap(grid[1], target[1]).to(positions)
    flat = positions.reshape(*grid, -1)
    return torch.einsum('yh,hwc,xw->yxc', rows, flat, columns).reshape(-1, *positions.shape[1:])


def finest(grids: list[Grid]) -> Grid:
    """The grid with the most cells."""
    return max(grids, key=lambda grid: grid[0] * grid[1])


def _overlap(cells: int, target: int) -> Tensor:
    """(target, cells) shares of every new cell that lie in the old ones; rows sum to 1, columns to target / cells."""
    new = torch.arange(target, dtype=torch.float64)[:, None] / target
    old = torch.arange(cells, dtype=torch.float64)[None] / cells
    shared = torch.minimum(new + 1 / target, old + 1 / cells) - torch.maximum(new, old)
    return shared.clamp(min=0) * target
