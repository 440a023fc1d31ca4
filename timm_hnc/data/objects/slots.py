"""Targets that carry masks, as one vector a sample."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from timm_hnc.data.objects.moved import Covers
from timm_hnc.data.objects.sources import ANY_CLASS


class Slots(NamedTuple):
    """How a sample's target and its masks lie in one vector, so that they pass through timm's loaders.

    Args:
        targets: values of the target, 0 for a class index.
        slots: most classes of an image that have masks.
        grid: (height, width) of a mask.
    """

    targets: int
    slots: int
    grid: tuple[int, int]

    def join(self, targets: Sequence[Any], masks: Sequence[Covers]) -> tuple[Tensor, int, int]:
        """The targets of B samples with the (h, w) masks of their classes, a vector each.

        And how many samples have masks of their classes, and how many only of others.
        """
        length, cells = self.targets or 1, self.grid[0] * self.grid[1]
        joined = np.zeros((len(targets), length + self.slots * (1 + cells)), dtype=np.float32)
        joined[:, :length] = torch.stack([torch.as_tensor(target) for target in targets]).reshape(-1, length)
        joined[:, length :: 1 + cells] = -1
        guided = strange = 0
        for row, target, covered in zip(joined, targets, masks, strict=True):
            if ANY_CLASS in covered:
                covered = {int(target): covered[ANY_CLASS]}
            if self.targets:
                present = [label for label in sorted(covered) if label < length and row[label]]
            else:
                present = [label for label in covered if label == target]
            guided += bool(present)
            strange += bool(covered) and not present
            for slot, label in enumerate(present[: self.slots]):
                start = length + slot * (1 + cells)
                row[start] = label
                row[start + 1 : start + 1 + cells] = covered[label].reshape(-1)
        return torch.from_numpy(joined), guided, strange

    def split(self, joined: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A batch of such vectors as targets, (B, P) classes, and (B, P, h, w) masks."""
        length = self.targets or 1
        target, rest = joined[:, :length], joined[:, length:].unflatten(1, (self.slots, -1))
        target = target if self.targets else target[:, 0].long()
        return target, rest[..., 0].long(), rest[..., 1:].unflatten(-1, self.grid)

    @staticmethod
    def padded(labels: Tensor, masks: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """Classes and masks of a batch with empty slots behind them, as many as are wanted in all."""
        empty = slots - labels.shape[1]
        return functional.pad(labels, (0, empty), value=-1), functional.pad(masks, (0, 0) * 2 + (0, empty))

    def join_batch(self, targets: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        """What `split` takes apart; with fewer than P classes the other slots stay empty."""
        labels, masks = self.padded(labels, masks, self.slots)
        filled = torch.cat([labels[..., None], masks.flatten(2)], 2).flatten(1)
        return torch.cat([targets.reshape(len(targets), -1), filled], 1)
