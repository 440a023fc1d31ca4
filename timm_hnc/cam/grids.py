"""Grids of positions: their shape, and resizing maps from one to another."""

import torch
from torch import Tensor

Grid = tuple[int, int]


def token_grid(num_tokens: int, image_size: tuple[int, int]) -> Grid:
    """The (h, w) grid of patch tokens: h * w tokens, shaped as the image is.

    Raises:
        ValueError: no such grid, so some tokens are no patches.

    Example:
        >>> token_grid(12, (96, 128))
        (3, 4)
    """
    patch = (image_size[0] * image_size[1] / num_tokens) ** 0.5
    rows = image_size[0] / patch
    heights = [h for h in range(max(1, int(rows)), int(rows) + 2) if num_tokens % h == 0]
    for height in sorted(heights, key=lambda h: abs(h - rows)):
        if abs(num_tokens // height - image_size[1] / patch) < 1:
            return height, num_tokens // height
    raise ValueError(f'{num_tokens} tokens of an image of {image_size[0]} x {image_size[1]} pixels form no grid.')


def num_prefix_tokens(num_tokens: int, image_size: tuple[int, int], at_most: int = 16) -> int:
    """The fewest tokens in front of patch tokens that leave a grid.

    Raises:
        ValueError: no grid with that many tokens or fewer in front of it.
    """
    for prefix in range(min(at_most, num_tokens - 1) + 1):
        try:
            token_grid(num_tokens - prefix, image_size)
        except ValueError:
            continue
        return prefix
    raise ValueError(f'{num_tokens} tokens of an image of {image_size[0]} x {image_size[1]} pixels form no grid.')


def resize_positions(positions: Tensor, grid: Grid, target: Grid) -> Tensor:
    """Positions on another grid, each the mean of what it covers, weighted by area: the mean over all stays the same.

    Args:
        positions: (h * w, ...).
        grid: (h, w) of the positions.
        target: the new (h, w).
    """
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
