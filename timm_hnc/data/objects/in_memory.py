"""Masks of objects beside images in memory, cropped and mirrored as those are."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from timm_hnc.data.loading.in_memory import KeptTargets
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
        self._parts.append((values, labels, masks.mul_(255).round_().byte()))

    def close(self, device: torch.device) -> None:
        """See `KeptTargets.close`."""
        used = max(1, *(int((labels >= 0).sum(1).max()) for _, labels, _ in self._parts))
        self._parts = [(values, labels[:, :used], masks[:, :used]) for values, labels, masks in self._parts]
        super().close(device)

    def batch(self, indices: Tensor, crop: Callable[[Tensor], Tensor]) -> Tensor:
        """See `KeptTargets.batch`; they are joined with the masks."""
        values, labels, masks = (column[indices] for column in self._columns)
        covers = functional.interpolate(crop(masks).float() / 255, self.slots.grid, mode='area')
        return self.slots.join_batch(values, labels, covers)
