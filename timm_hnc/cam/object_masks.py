"""Where the objects of an image's classes lie, on the grid of class maps."""

from typing import NamedTuple

import torch
from torch import Tensor

from timm_hnc.cam.grids import resize_positions
from timm_hnc.cam.number_types import without_autocast


class ObjectMasks(NamedTuple):
    """Of every image, up to P classes and the share of every cell that their objects cover.

    Args:
        classes: (B, P) class indices, -1 where there is none.
        cover: (B, P, h, w) between 0 and 1.
    """

    classes: Tensor
    cover: Tensor

    @property
    def valid(self) -> Tensor:
        """(B, P) bool, where there is a class."""
        return self.classes >= 0

    def on(self, grid: tuple[int, int]) -> Tensor:
        """(B, P, h, w) the cover on another grid."""
        if self.cover.shape[-2:] == grid:
            return self.cover
        positions = self.cover.flatten(2).movedim(2, 0)
        height, width = self.cover.shape[-2:]
        with without_autocast(positions):
            return resize_positions(positions, (height, width), grid).movedim(0, 2).unflatten(2, grid)

    def with_mirrored(self) -> 'ObjectMasks':
        """Of a batch and behind it its mirror images."""
        return ObjectMasks(torch.cat([self.classes] * 2), torch.cat([self.cover, self.cover.flip(-1)]))
