"""The objects of an image on their way through its transform, with the image."""

import random
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageDraw
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

# steps that crop, resize and mirror, and nothing else
_OF_BOXES = (
    *(RandomResizedCropAndInterpolation, transforms.Resize),
    *(transforms.RandomHorizontalFlip, transforms.RandomVerticalFlip),
)
Step = Callable[[Any], Any]
Array: TypeAlias = 'np.ndarray[Any, Any]'
Covers: TypeAlias = dict[int, Array]


class MovedPictures:
    """Grey pictures of the objects of each class: whatever is done to an image can be done to them as well.

    Args:
        masks: by class.
    """

    def __init__(self, masks: Mapping[int, Image.Image]) -> None:
        self.masks = masks

    def __len__(self) -> int:
        return len(self.masks)

    def through(self, step: Step, image: Any) -> tuple[Any, 'MovedPictures']:
        """The image and they behind a step of its transform."""
        again = _generators()
        image = step(image)
        moved = {}
        for label, mask in self.masks.items():
            again()
            moved[label] = step(mask)
        return image, MovedPictures(moved)

    def covers(self, grid: tuple[int, int]) -> Covers:
        """(h, w) shares of the cells of a grid that the objects of each class cover."""
        height, width = grid
        small = {label: mask.resize((width, height), Image.Resampling.BOX) for label, mask in self.masks.items()}
        return {label: np.asarray(mask) / np.float32(255) for label, mask in small.items()}


class MovedBoxes(Image.Image):
    """Boxes, which steps take for their image: what crops, resizes or mirrors them does the same to the image.

    Args:
        corners: (m, 4) x1, y1, x2, y2 in pixels.
        labels: (m,) classes.
        size: (width, height).
        image: of that size, while a step has both.
    """

    def __init__(self, corners: Array, labels: Array, size: tuple[int, int], image: Image.Image | None = None) -> None:
        super().__init__()
        self.corners, self.labels, self.image = corners, labels, image
        self._size, self._mode = size, 'L'

    def __len__(self) -> int:
        return len(self.labels)

    def through(self, step: Step, image: Any) -> 'tuple[Any, MovedBoxes | MovedPictures]':
        """See `MovedPictures.through`; other steps than those of boxes move pictures of them."""
        if not isinstance(step, _OF_BOXES):
            return self.drawn().through(step, image)
        self.image = image
        moved: MovedBoxes = step(self)
        image, self.image, moved.image = moved.image, None, None
        return image, moved

    def covers(self, grid: tuple[int, int]) -> Covers:
        """See `MovedPictures.covers`."""
        labels = self.labels.tolist()
        if len(set(labels)) < len(labels):
            return {label: self._union(self.corners[self.labels == label], grid) for label in set(labels)}
        columns, rows = (
            _shares(self.corners[:, axis], self.corners[:, axis + 2], self.size[axis], grid[1 - axis])
            for axis in (0, 1)
        )
        return dict(zip(labels, rows[:, :, None] * columns[:, None], strict=True))

    def _union(self, corners: Array, grid: tuple[int, int]) -> Array:
        """(h, w) shares of cells that at least one of m boxes covers, which may overlap."""
        ends = corners.reshape(-1, 2, 2)  # low and high, x and y
        cuts = np.sort(corners.reshape(-1, 2), 0)  # between two of them a box covers all or nothing
        inside = (ends[:, None, 0] <= cuts[:-1]) & (cuts[1:] <= ends[:, None, 1])
        across, down = inside.astype(np.float32).transpose(2, 0, 1)
        covered = down.T @ across > 0
        columns, rows = (_shares(cuts[:-1, axis], cuts[1:, axis], self.size[axis], grid[1 - axis]) for axis in (0, 1))
        union: Array = rows.T @ covered @ columns
        return union

    def drawn(self) -> MovedPictures:
        """White boxes on black by class, to whole pixels; of a box that is in the picture at least one."""
        found: dict[int, Image.Image] = {}
        for label, box in zip(self.labels.tolist(), self.corners.round().astype(int).tolist(), strict=True):
            if label not in found:
                found[label] = Image.new('L', self.size)
            x1, y1, x2, y2 = box
            ImageDraw.Draw(found[label]).rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), 255)
        return MovedPictures(found)

    def crop(self, box: Any = None) -> 'MovedBoxes':
        """See PIL's."""
        x1, y1, x2, y2 = box
        image = self.image and self.image.crop(box)
        return MovedBoxes(self.corners - (x1, y1, x1, y1), self.labels, (x2 - x1, y2 - y1), image)

    def resize(self, size: Any, *how: Any, **named: Any) -> 'MovedBoxes':
        """See PIL's."""
        width, height = size
        across, down = width / self.width, height / self.height
        image = self.image and self.image.resize(size, *how, **named)
        return MovedBoxes(self.corners * (across, down, across, down), self.labels, (width, height), image)

    def transpose(self, method: Image.Transpose) -> 'MovedBoxes':
        """See PIL's; mirroring alone."""
        corners, side = (
            self.corners.copy(),
            {Image.Transpose.FLIP_LEFT_RIGHT: 0, Image.Transpose.FLIP_TOP_BOTTOM: 1}[method],
        )
        corners[:, [side, side + 2]] = self.size[side] - corners[:, [side + 2, side]]
        return MovedBoxes(corners, self.labels, self.size, self.image and self.image.transpose(method))


def _generators() -> Callable[[], None]:
    """What goes back to the random numbers of now, of the generators that timm's transforms draw from."""
    state = random.getstate(), torch.get_rng_state()

    def again() -> None:
        random.setstate(state[0])
        torch.set_rng_state(state[1])

    return again


def _shares(low: Array, high: Array, side: float, cells: int) -> Array:
    """(m, cells) shares of the cells of a side that lie between two ends, (m,) each."""
    edges = np.arange(cells + 1) * (side / cells)
    between = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
    return np.maximum(between, 0) * (cells / side)
