"""Where a model's input lies in the stored image."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_TRIES = 4  # of a step: does it do the same every time?


@dataclass(frozen=True)
class Side:
    """Width or height: place x of the stored image is place x * times / over - offset of the input.

    Args:
        size: of the input, in pixels.
        times: pixels after all resizes.
        over: pixels before them.
        offset: what is cut off in front, in pixels of the input; negative where it is padded.
    """

    size: int
    times: int = 1
    over: int = 1
    offset: float = 0.0

    def to_input(self, places: Tensor) -> Tensor:
        """Places of the stored image in pixels of the input, some of them outside of it."""
        return places * self.times / self.over - self.offset

    def to_image(self, place: float) -> float:
        """A place of the input in pixels of the stored image."""
        return (place + self.offset) * self.over / self.times


@dataclass(frozen=True)
class InputFrame:
    """How the input of a model shows a stored image."""

    columns: Side
    rows: Side

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the input."""
        return self.rows.size, self.columns.size

    @property
    def window(self) -> tuple[float, float, float, float]:
        """What the input shows, x1, y1, x2, y2 in pixels of the stored image; beyond it where the input is padded."""
        sides = (self.columns, self.rows)
        x1, y1 = (side.to_image(0) for side in sides)
        x2, y2 = (side.to_image(side.size) for side in sides)
        return x1, y1, x2, y2

    def boxes(self, boxes: Tensor) -> Tensor:
        """Boxes in pixels of the input, cut at its borders; what is cropped away has no area.

        Args:
            boxes: (m, 4) x1, y1, x2, y2 in pixels of the stored image.
        """
        edges = [side.to_input(boxes[:, edge]) for edge, side in enumerate((self.columns, self.rows) * 2)]
        height, width = self.size
        limit = torch.tensor([width, height, width, height], dtype=boxes.dtype)
        return torch.stack(edges, 1).clamp(min=0).minimum(limit)


class InputGeometry:
    """How a validation transform shows images: it may crop, pad, and resize all that is there, as timm's do.

    Args:
        transform: a Compose; what comes behind the first step that makes no image of PIL's is not followed.

    Raises:
        ValueError: it is none, or it mirrors images, or moves pixels by chance.
    """

    def __init__(self, transform: Any) -> None:
        if not hasattr(transform, 'transforms'):
            raise ValueError(f'{type(transform).__name__} is no Compose')
        self.steps = list(_single_steps(transform))
        for axis in (0, 1):
            self._check_steps(axis)
        self._known: dict[tuple[int, int], InputFrame] = {}

    def frame(self, image_size: tuple[int, int]) -> InputFrame:
        """How the input shows an image of (width, height)."""
        if image_size not in self._known:
            sides = (self._follow(image_size, axis) for axis in (0, 1))
            self._known[image_size] = InputFrame(*sides)
        return self._known[image_size]

    def _check_steps(self, axis: int) -> None:
        picture = _numbered((64, 48), axis)
        for step in self.steps:
            moved, *again = [step(picture) for _ in range(_TRIES)]
            if not isinstance(moved, Image.Image):
                return
            name = type(step).__name__
            if name.startswith('Random') or any(other.tobytes() != moved.tobytes() for other in again):
                raise ValueError(f'{name} moves pixels by chance')
            numbers = _numbers(moved, axis)
            if numbers[0] > numbers[-1]:
                raise ValueError(f'{name} mirrors images')
            picture = moved

    def _follow(self, image_size: tuple[int, int], axis: int) -> Side:
        """Width (axis 0) or height (1) through all steps."""
        side = Side(image_size[axis])
        for step in self.steps:
            moved = step(_numbered(image_size, axis))
            if not isinstance(moved, Image.Image):
                break
            image_size = moved.size
            side = _after(side, moved, axis)
        return side


def _single_steps(transform: Any) -> Iterator[Any]:
    """The steps of a Compose, in which there may be others."""
    for step in transform.transforms:
        if type(step) is type(transform):
            yield from _single_steps(step)
        else:
            yield step


def _numbered(size: tuple[int, int], axis: int) -> Image.Image:
    """A picture whose colours are the number of the column (axis 0) or of the row (1)."""
    numbers = np.arange(size[axis])[:, None] >> [16, 8, 0]
    picture = np.broadcast_to(numbers[:, None] if axis else numbers, (size[1], size[0], 3))
    return Image.fromarray(picture.astype(np.uint8))


def _numbers(picture: Image.Image, axis: int) -> 'np.ndarray[Any, Any]':
    """What `_numbered` wrote, along the middle of a picture that a step made of it."""
    colours = np.asarray(picture).astype(int).take(picture.size[1 - axis] // 2, axis=axis)
    numbers: np.ndarray[Any, Any] = colours @ [1 << 16, 1 << 8, 1]
    return numbers


def _after(side: Side, moved: Image.Image, axis: int) -> Side:
    """What a side became by a step that made the picture of numbers into this one."""
    size = moved.size[axis]
    shifts = _numbers(moved, axis) - np.arange(size)
    shift = int(shifts[size // 2])
    longest = min(size, side.size)
    resized = longest < 3 and size != side.size  # so few are themselves by chance
    if not resized and (shifts == shift).sum() == longest:  # as many columns as can be are still themselves
        return replace(side, size=size, offset=side.offset + shift)
    return Side(size, side.times * size, side.over * side.size, side.offset * size / side.size)
