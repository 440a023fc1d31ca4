"""The grid pointing game: images of four classes in a 2 x 2 grid, and how much of a class's map lies in its own cell.

Böhle et al., Convolutional Dynamic Alignment Networks, CVPR 2021: images that are recognised with the most confidence.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CELLS = 4


class Grids(NamedTuple):
    """Images (N, C, 2H, 2W) of four images each, and the classes (N, 4) of their cells in raster order."""

    images: Tensor
    classes: Tensor


def make_grids(images: Tensor, labels: Tensor, logits: Tensor, count: int) -> Grids:
    """2 x 2 grids of four classes each, no image twice, those recognised with the most confidence first.

    Args:
        images: (M, C, H, W).
        labels: (M,).
        logits: (M, n).
        count: grids at most; fewer, even none, where fewer images are recognised.
    """
    confidence, seen = logits.softmax(1).max(1)
    order = [index for index in confidence.argsort(descending=True).tolist() if seen[index] == labels[index]]
    grids: list[list[int]] = []
    for index in order:
        label = labels[index].item()
        free = (each for each in grids if len(each) < CELLS and label not in [labels[one].item() for one in each])
        grid = next(free, None)
        if grid is not None:
            grid.append(index)
        elif len(grids) < count:
            grids.append([index])
    full = [grid for grid in grids if len(grid) == CELLS]
    # the most confident one is not always in the first cell
    turned = [grid[turn % CELLS :] + grid[: turn % CELLS] for turn, grid in enumerate(full)]
    chosen = torch.tensor(turned, dtype=torch.long).view(-1, CELLS)
    cells = images[chosen.to(images.device)]  # (N, 4, C, H, W)
    rows = [torch.cat((cells[:, left], cells[:, left + 1]), -1) for left in (0, 2)]
    return Grids(torch.cat(rows, -2), labels[chosen.to(labels.device)])


def own_shares(maps: Tensor) -> Tensor:
    """Share of every class's positive map that lies in the class's own cell; 0 for a map without positive values.

    Args:
        maps: (N, 4, h, w) of the classes of the cells in raster order, h and w even.

    Returns:
        (N, 4) in [0, 1]; a map that knows nothing has 0.25.
    """
    positive = maps.relu()
    halves = positive.unflatten(-1, (2, -1)).unflatten(-3, (2, -1)).sum((-1, -3))  # (N, 4, 2, 2)
    own = halves.flatten(-2).diagonal(dim1=1, dim2=2)
    return own / positive.sum((-1, -2)).clamp(min=1e-12)
