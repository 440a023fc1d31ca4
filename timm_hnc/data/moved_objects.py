"""The objects of an image on their way through its transform."""

from collections.abc import Callable, Mapping
from typing import Any

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

    def pictures(self) -> Mapping[int, Image.Image]:
        """Grey pictures by class."""
        return self.masks


class MovedBoxes(Image.Image):
    """Boxes, which steps take for an image: what crops, resizes or mirrors it moves the boxes, and no pixels.

    Args:
        corners: (m, 4) x1, y1, x2, y2 in pixels.
        labels: (m,) classes.
        size: (width, height).
    """

    def __init__(self, corners: 'np.ndarray[Any, Any]', labels: 'np.ndarray[Any, Any]', size: tuple[int, int]) -> None:
        super().__init__()
        self.corners, self.labels = corners, labels
        self._size, self._mode = size, 'L'

    def __len__(self) -> int:
        return len(self.labels)

    def moved(self, step: Step, again: Callable[[], None]) -> 'MovedBoxes | MovedPictures':
        """See `MovedPictures.moved`; other steps than those of boxes move pictures of them."""
        if not isinstance(step, _OF_BOXES):
            return MovedPictures(self.pictures()).moved(step, again)
        again()
        found: MovedBoxes = step(self)
        return found

    def pictures(self) -> dict[int, Image.Image]:
        """White boxes on black by class, to whole pixels; of a box that is in the picture at least one."""
        found: dict[int, Image.Image] = {}
        for label, box in zip(self.labels.tolist(), self.corners.round().astype(int).tolist(), strict=True):
            if label not in found:
                found[label] = Image.new('L', self.size)
            x1, y1, x2, y2 = box
            ImageDraw.Draw(found[label]).rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), 255)
        return found

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
