"""The objects of an image on their way through its transform, with the image."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
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
Corners: TypeAlias = tuple[float, ...]
Frame: TypeAlias = tuple[tuple[float, float], ...]


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
        found = {}
        for label, mask in self.masks.items():
            columns, rows = (_averages(side, cells) for side, cells in zip(mask.size, reversed(grid), strict=True))
            cover = rows @ (np.asarray(mask) / np.float32(255)) @ columns.T
            found[label] = cover.clip(0, 1)  # no more by rounding
        return found


class Rectangles(NamedTuple):
    """What boxes cover, as rectangles that do not overlap within their class.

    Args:
        corners: (m, 4) x1, y1, x2, y2 in pixels of the stored image.
        parts: classes, and where the rectangles of each stand.
    """

    corners: Array
    parts: list[tuple[int, slice]]

    @staticmethod
    def of(boxes: Sequence[Corners], labels: Sequence[int]) -> 'Rectangles':
        """Those of boxes and their classes."""
        corners: list[Corners] = []
        parts = []
        for label in dict.fromkeys(labels):
            start = len(corners)
            corners += _apart([tuple(box) for box, other in zip(boxes, labels, strict=True) if other == label])
            parts.append((label, slice(start, len(corners))))
        return Rectangles(np.array(corners).reshape(-1, 4), parts)


class MovedBoxes(Image.Image):
    """Boxes, which steps take for their image: what crops, resizes or mirrors them does the same to the image.

    Args:
        rectangles: of the stored image.
        size: (width, height) of the picture.
        frame: per axis, by how much a coordinate was scaled and then moved to be one of the picture.
        image: of that size, while a step has both.
    """

    def __init__(
        self,
        rectangles: Rectangles,
        size: tuple[int, int],
        frame: Frame = ((1.0, 0.0), (1.0, 0.0)),
        image: Image.Image | None = None,
    ) -> None:
        super().__init__()
        self.rectangles, self.frame, self.image = rectangles, frame, image
        self._size, self._mode = size, 'L'

    def __len__(self) -> int:
        return len(self.rectangles.parts)

    def through(self, step: Step, image: Any) -> 'tuple[Any, MovedBoxes | MovedPictures]':
        """See `MovedPictures.through`; other steps than those of boxes move pictures of them."""
        if not isinstance(step, _OF_BOXES):
            return self.drawn().through(step, image)
        self.image = image
        moved: MovedBoxes = step(self)
        image, self.image, moved.image = moved.image, None, None
        return image, moved

    def drawn(self) -> MovedPictures:
        """Pictures of the boxes by class: how much of a pixel they cover is its grey."""
        width, height = self.size
        (covers,) = _boxes_cover([self], (height, width))
        return MovedPictures({label: Image.fromarray(_bytes(cover)) for label, cover in covers.items()})

    def crop(self, box: Any = None) -> 'MovedBoxes':
        """See PIL's."""
        left, top, right, bottom = box
        (across, x), (down, y) = self.frame
        image = self.image and self.image.crop(box)
        frame = (across, x - left), (down, y - top)
        return MovedBoxes(self.rectangles, (right - left, bottom - top), frame, image)

    def resize(self, size: Any, *how: Any, **named: Any) -> 'MovedBoxes':
        """See PIL's."""
        image = self.image and self.image.resize(size, *how, **named)
        # timm crops nothing at all out of a single pixel, now and then
        width, height = size[0] / max(self.size[0], 1), size[1] / max(self.size[1], 1)
        (across, x), (down, y) = self.frame
        frame = (across * width, x * width), (down * height, y * height)
        return MovedBoxes(self.rectangles, tuple(size), frame, image)

    def transpose(self, method: Image.Transpose) -> 'MovedBoxes':
        """See PIL's; mirroring alone."""
        image = self.image and self.image.transpose(method)
        axis = {Image.Transpose.FLIP_LEFT_RIGHT: 0, Image.Transpose.FLIP_TOP_BOTTOM: 1}[method]
        frame = list(self.frame)
        scale, move = frame[axis]
        frame[axis] = -scale, self.size[axis] - move
        return MovedBoxes(self.rectangles, self.size, tuple(frame), image)


def covers_of(objects: Sequence[MovedPictures | MovedBoxes], grid: tuple[int, int]) -> list[Covers]:
    """(h, w) shares of the cells of a grid that the objects of each class cover, of the images of a batch."""
    boxes = [each for each in objects if isinstance(each, MovedBoxes)]
    of_boxes = iter(_boxes_cover(boxes, grid) if boxes else ())
    return [next(of_boxes) if isinstance(each, MovedBoxes) else each.covers(grid) for each in objects]


def _boxes_cover(images: Sequence[MovedBoxes], grid: tuple[int, int]) -> Iterator[Covers]:
    counts = [len(each.rectangles.corners) for each in images]
    corners = np.concatenate([each.rectangles.corners for each in images])
    # (axis, scale and move and length of the picture, rectangle)
    frames = np.array([[(*each.frame[axis], each.size[axis]) for each in images] for axis in (0, 1)])
    frames = frames.transpose(0, 2, 1).repeat(counts, 2)
    columns, rows = (
        shares(corners[:, axis], corners[:, axis + 2], side, grid[1 - axis], scale, move)
        for axis, (scale, move, side) in enumerate(frames)
    )
    start = 0
    for each, count in zip(images, counts, strict=True):
        end = start + count
        across, down = columns[:, start:end], rows[:, start:end]
        yield {label: down[:, part] @ across[:, part].T for label, part in each.rectangles.parts}
        start = end


def _bytes(values: Array) -> Array:
    return (values * 255).round().astype(np.uint8)


@lru_cache(maxsize=64)
def _averages(side: int, cells: int) -> Array:
    """(cells, side) weights of the pixels of a side in the mean over each cell."""
    places = np.arange(side, dtype=np.float64)
    return shares(places, places + 1, side, cells).astype(np.float32)


def _generators() -> Callable[[], None]:
    """What goes back to the random numbers of now, of the generators that timm's transforms draw from."""
    state = random.getstate(), torch.get_rng_state()

    def again() -> None:
        random.setstate(state[0])
        torch.set_rng_state(state[1])

    return again


def _apart(boxes: Iterable[Corners]) -> list[Corners]:
    """Rectangles that cover what at least one of the boxes covers, none of it twice."""
    found: list[Corners] = []
    for box in boxes:
        parts = [box]
        for other in found:
            parts = [rest for part in parts for rest in _without(part, other)]
        found += parts
    return found


def _without(one: Corners, other: Corners) -> list[Corners]:
    """What a rectangle covers and another does not: above, below, left and right of it."""
    (x1, y1, x2, y2), (left, top, right, bottom) = one, other
    if x2 <= left or right <= x1 or y2 <= top or bottom <= y1:
        return [one]
    middle = max(y1, top), min(y2, bottom)
    rests = (
        *((x1, y1, x2, top), (x1, bottom, x2, y2)),
        *((x1, middle[0], left, middle[1]), (right, middle[0], x2, middle[1])),
    )
    return [rest for rest in rests if rest[0] < rest[2] and rest[1] < rest[3]]


def shares(
    low: Array,
    high: Array,
    side: 'Array | float',
    cells: int,
    scale: 'Array | float' = 1.0,
    move: 'Array | float' = 0.0,
) -> Array:
    """(cells, m) shares of the cells of a side that lie between two ends.

    Args:
        low: (m,) ends.
        high: (m,) the other ends.
        side: length of what the cells divide, one or (m,), as the next two.
        cells: how many.
        scale: what the ends are to be multiplied with to lie on the side.
        move: what is then added to them.
    """
    # where the cells begin and end in the stored image, backwards where it was mirrored
    start, step = -move / scale, side / (cells * scale)
    edges = start + step * np.arange(cells + 1.0)[:, None]
    reached = np.minimum(np.maximum(edges, low), high)
    found: Array = (reached[1:] - reached[:-1]) / step
    return found
