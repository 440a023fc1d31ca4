"""Whether positions lie where their part of the image lies."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from timm_hnc.cam.heads.detached_head import Branch

Point = tuple[float, float]
_SHARES = ((1 / 4, 1 / 3), (1 / 2, 1 / 2), (3 / 4, 1 / 5), (1 / 5, 4 / 5), (4 / 5, 2 / 3))  # cells that are changed
_NEAR = 0.12  # of the image, for a mean distance: by chance it is 0.3 to 0.7
# where a point of the image lies in a map that is as it should be, then in one that is flipped or turned
_TURNS: tuple[Callable[[float, float], Point], ...] = (
    lambda down, right: (down, right),
    lambda down, right: (down, 1 - right),
    lambda down, right: (1 - down, right),
    lambda down, right: (1 - down, 1 - right),
    lambda down, right: (right, down),
    lambda down, right: (1 - right, down),
    lambda down, right: (right, 1 - down),
    lambda down, right: (1 - right, 1 - down),
)


def in_order(features_of: Callable[[Tensor], Tensor], image: Tensor, branch: Branch) -> bool:
    """Whether what changes in a cell of an image changes the features there.

    Of tokens, a cell's own must change most. A position of a feature map sees more around it, and in some networks with
    random weights all of the image: refused is only what changes where it would in a map that is flipped or turned.

    Args:
        features_of: features of (B, C, H, W) images.
        image: (1, C, H, W).
        branch: where positions lie in the features.
    """
    height, width = image.shape[-2:]
    rows, columns = branch.live(features_of(image), (height, width)).grid
    shares = _SHARES if len(branch.dims) == 2 else _SHARES[:3]
    cells = sorted({(int(down * rows), int(right * columns)) for down, right in shares})
    changed = image.repeat(len(cells), 1, 1, 1)
    for each, (row, column) in zip(changed, cells, strict=True):
        down = slice(row * height // rows, (row + 1) * height // rows)
        right = slice(column * width // columns, (column + 1) * width // columns)
        each[:, down, right] = -3 * each[:, down, right]
    positions = _positions(features_of(torch.cat([image, changed])), branch)
    changes = (positions[1:] - positions[:1]).norm(dim=2)
    if len(branch.dims) == 1:
        return changes.argmax(1).tolist() == [row * columns + column for row, column in cells]
    changes = changes / changes.mean(1, keepdim=True).clamp(min=torch.finfo(changes.dtype).tiny)
    places = (changes - changes.mean(0)).argmax(1).tolist()  # whatever changes, some positions change more than others
    found = [((place // columns + 0.5) / rows, (place % columns + 0.5) / columns) for place in places]
    wanted = [((row + 0.5) / rows, (column + 0.5) / columns) for row, column in cells]
    as_it_is, *turned = (_distance(found, [turn(*each) for each in wanted]) for turn in _TURNS)
    return not (min(turned) < _NEAR and min(turned) < as_it_is / 2)


def _positions(features: Tensor, branch: Branch) -> Tensor:
    """(B, positions, d) features."""
    if len(branch.dims) == 1:
        return features[:, branch.prefix :]
    return features.flatten(2).mT if branch.dims == (2, 3) else features.flatten(1, 2)


def _distance(points: list[Point], others: list[Point]) -> float:
    """Mean distance of points in shares of the image."""
    return sum(math.dist(*pair) for pair in zip(points, others, strict=True)) / len(points)
