"""Class maps of a NaFlex batch, whose images have grids of their own and are padded to one number of patches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from timm_hnc.cam.class_maps import ClassMaps, register_as_output
from timm_hnc.cam.classes import Classes

NaFlexBatch = Mapping[str, Any]
"""What timm's NaFlex loader makes of B images.

- 'patches': (B, L, P * P * C), or (B, L, P, P, C), normalised pixels of every patch;
- 'patch_coord': (B, L, 2), its row and column;
- 'patch_valid': (B, L) bool, False where it is padding.
"""


def on_device(input: Tensor | NaFlexBatch, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Images on the device in the type; of a NaFlex batch its tensors, the patches alone in the type."""
    if isinstance(input, Tensor):
        return input.to(device=device, dtype=dtype)
    tensors = {name: value.to(device) for name, value in input.items() if isinstance(value, Tensor)}
    return {**tensors, 'patches': tensors['patches'].to(dtype)}


@dataclass(eq=False, kw_only=True)
class NaFlexMaps(ClassMaps):
    """Class activation maps of a NaFlex batch: the mean of a map over an image's own patches is the logit.

    What is asked of the whole batch comes with the patches in a row, padding among them as zeros: `scores`, `mean` and
    `log_softmax`, which leave padding out. `of_image` has the maps of an image on its own grid.

    Args:
        valid: (B, L) bool, False for padding.
        coordinates: (B, L, 2) row and column of every patch; None where patches were dropped.

    The other arguments are those of `ClassMaps`, with (L, 1) for a grid.
    """

    valid: Tensor
    coordinates: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.valid.shape != self.positions.shape[:2]:
            expected = tuple(self.positions.shape[:2])
            raise ValueError(f'valid of shape {tuple(self.valid.shape)}: expected {expected}, as positions have.')

    @property
    def num_positions(self) -> Tensor:
        """(B, 1) patches of every image."""
        return self.valid.sum(1, keepdim=True)

    def scores(self, classes: Classes | None = None) -> Tensor:
        """(B, k, L) maps with the patches in a row, 0 for padding; classes as `ClassMaps.maps` takes them."""
        return super().scores(classes).masked_fill(~self.valid[:, None], 0.0)

    def maps(self, classes: Classes | None = None) -> Tensor:
        """The images have grids of their own: see `of_image` and `scores`.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            'the images of a NaFlex batch have grids of their own: of_image(i).maps(classes) has the maps of one, '
            'scores(classes) those of all with their patches in a row.'
        )

    def mean(self, values: Tensor) -> Tensor:
        """The mean over patches of (B, k, L) values, without padding."""
        valid = self.valid[:, None]
        return values.masked_fill(~valid, 0.0).sum(-1) / valid.sum(-1).clamp(min=1).to(values.dtype)

    def log_softmax(self, scores: Tensor) -> Tensor:
        """Logarithm of the softmax over patches of (B, k, L) scores, 0 for padding."""
        padding = ~self.valid[:, None]
        return scores.masked_fill(padding, -torch.inf).log_softmax(-1).masked_fill(padding, 0.0)

    def of_each(self, classes: Tensor) -> list[Tensor]:
        """See `ClassMaps.of_each`."""
        return [self.of_image(index).maps(chosen[None])[0] for index, chosen in enumerate(classes)]

    def of_image(self, index: int) -> ClassMaps:
        """The class maps of one image, a batch of 1, on its own grid.

        Raises:
            ValueError: not every cell of the grid has a patch, as where patches are dropped in training.
        """
        if self.coordinates is None:
            raise ValueError('patches were dropped: no map is whole. Put the model into evaluation mode.')
        self._check_unchanged()
        valid = self.valid[index]
        rows, columns = self.coordinates[index, valid].unbind(-1)
        height, width = int(rows.max()) + 1, int(columns.max()) + 1
        order = (rows * width + columns).argsort()
        positions = self.positions[index, valid][order]
        return ClassMaps(positions[None], self.weight, self.bias, (height, width), self.logits[index][None])


register_as_output(NaFlexMaps, 'positions', 'weight', 'bias', 'logits', 'valid', 'coordinates')
