"""The objects of an image on their way through its transform."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
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
    """Grey pictures of the objects of each class: whatever is done to an image can be done to them.

    Args:
        masks: by class.
    """

    def __init__(self, masks: Mapping[int, Image.Image]) -> None:
        self.masks = masks

    def __len__(self) -> int:
        return len(self.masks)

    def moved(self, step: Step, again: Callable[[], None]) -> 'MovedPictures':
        """They behind a step of the transform; `again` goes back to the random numbers that the image had."""
        moved = {}
        for label, mask in self.masks.items():
            again()
            moved[label] = step(mask)
        return MovedPictures(moved)

    def covers(self, grid: tuple[int, int]) -> Covers:
        """(h, w) shares of the cells of a grid that the objects of each class cover."""
        height, width = grid
        small = {label: mask.resize((width, height), Image.Resampling.BOX) for label, mask in self.masks.items()}
        return {label: np.asarray(mask) / np.float32(255) for label, mask in small.items()}


class MovedBoxes(Image.Image):
    """Boxes, which steps take for an image: what crops, resizes or mirrors it moves the boxes, and no pixels.

    Args:
        corners: (m, 4) x1, y1, x2, y2 in pixels.
        labels: (m,) classes.
        size: (width, height).
    """

    def __init__(self, corners: Array, labels: Array, size: tuple[int, int]) -> None:
        super().__init__()
        self.corners, self.labels = corners, labels
        self._size, self._mode = size, 'L'

    def __len__(self) -> int:
        return len(self.labels)

    def moved(self, step: Step, again: Callable[[], None]) -> 'MovedBoxes | MovedPictures':
        """See `MovedPictures.moved`; other steps than those of boxes move pictures of them."""
        if not isinstance(step, _OF_BOXES):
            return self.drawn().moved(step, again)
        again()
        found: MovedBoxes = step(self)
        return found

    def covers(self, grid: tuple[int, int]) -> Covers:
        """See `MovedPictures.covers`: what several boxes cover is what each does, where no two of a class overlap."""
        if _overlap(self.corners, self.labels):
            return self.drawn().covers(grid)
        covers: Covers = {}
        columns, rows = (_shares(self.corners[:, axis::2], self.size[axis], grid[1 - axis]) for axis in (0, 1))
        for label, cover in zip(self.labels.tolist(), rows[:, :, None] * columns[:, None], strict=True):
            covers[label] = covers[label] + cover if label in covers else cover
        return covers

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
        return MovedBoxes(self.corners - (x1, y1, x1, y1), self.labels, (x2 - x1, y2 - y1))

    def resize(self, size: Any, *_: Any, **__: Any) -> 'MovedBoxes':
        """See PIL's."""
        width, height = size
        across, down = width / self.width, height / self.height
        return MovedBoxes(self.corners * (across, down, across, down), self.labels, (width, height))

    def transpose(self, method: Image.Transpose) -> 'MovedBoxes':
        """See PIL's; mirroring alone."""
        corners, side = (
            self.corners.copy(),
            {Image.Transpose.FLIP_LEFT_RIGHT: 0, Image.Transpose.FLIP_TOP_BOTTOM: 1}[method],
        )
        corners[:, [side, side + 2]] = self.size[side] - corners[:, [side + 2, side]]
        return MovedBoxes(corners, self.labels, self.size)


def _overlap(corners: Array, labels: Array) -> bool:
    """Whether two boxes of a class do."""
    if len(set(labels.tolist())) == len(labels):
        return False
    low = np.maximum(corners[:, None, :2], corners[None, :, :2])
    high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
    shared = (low < high).all(-1) & (labels[:, None] == labels)
    return int(shared.sum()) > len(labels)


def _shares(ends: Array, side: float, cells: int) -> Array:
    """(m, cells) shares of the cells of a side that lie between two ends, (m, 2)."""
    edges = np.arange(cells + 1) * (side / cells)
    between = np.minimum(ends[:, 1:], edges[1:]) - np.maximum(ends[:, :1], edges[:-1])
    return np.maximum(between, 0) * (cells / side)
