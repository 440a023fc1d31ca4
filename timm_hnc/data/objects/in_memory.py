"""Masks of objects beside images in memory, cropped and mirrored as those are."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from timm_hnc.data.loading.in_memory import KeptTargets
from timm_hnc.data.objects.moved import shares
from timm_hnc.data.objects.slots import Slots


class KeptMasks(KeptTargets):
    """Targets, and masks of the pixels of the images that they belong to.

    Args:
        slots: how a target and the masks on the grid of the class maps are joined.
    """

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots

    def add(self, targets: Tensor, images: Tensor) -> None:
        """See `KeptTargets.add`; the targets are joined with masks of the images' size."""
        pixels = self.slots._replace(grid=(images.shape[-2], images.shape[-1]))
        values, labels, masks = pixels.split(targets)
        used = max(1, int((labels >= 0).sum(1).max()))
        self._parts.append((values, labels[:, :used].clone(), masks[:, :used].mul(255).round_().byte()))

    def close(self) -> None:
        """See `KeptTargets.close`."""
        most = max(labels.shape[1] for _, labels, _ in self._parts)
        self._parts = [(values, *self.slots.padded(labels, masks, most)) for values, labels, masks in self._parts]
        super().close()

    def batch(self, indices: Tensor, crop: Callable[[Tensor], Tensor]) -> Tensor:
        """See `KeptTargets.batch`; they are joined with the masks."""
        values, labels, masks = (column[indices] for column in self._columns)
        masks = crop(masks).float() / 255
        (height, width), (down, across) = masks.shape[2:], self.slots.grid
        rows, columns = _by_cells(height, down, masks.device), _by_cells(width, across, masks.device)
        return self.slots.join_batch(values, labels, rows @ masks @ columns.T)


@lru_cache
def _by_cells(side: int, cells: int, device: torch.device) -> Tensor:
    """(cells, side) what makes means over cells out of values of pixels."""
    pixels = np.arange(side, dtype=np.float64)
    return torch.from_numpy(shares(pixels, pixels + 1, side, cells)).to(device, torch.float32)
