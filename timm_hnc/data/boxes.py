"""Bounding boxes of a data set's objects, in pixels of the stored images and of a model's input."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.readers.targets import get_field
from torch import Tensor
from torchvision.ops import box_convert

from timm_hnc.data.box_files import XmlBoxes
from timm_hnc.errors import DataError, UsageError, first_lines

FORMATS = ('xyxy', 'xywh')


@dataclass(frozen=True)
class ImageBoxes:
    """The objects of one image.

    Args:
        boxes: (m, 4) x1, y1, x2, y2 in pixels.
        labels: (m,) class indices.
    """

    boxes: Tensor
    labels: Tensor


class BoxSource:
    """Where a data set keeps its boxes: in files, with a reader of ours, or in a column of Hugging Face's `datasets`.

    Args:
        dataset: from `create_dataset`, possibly wrapped.
        column: of objects, with the fields `bbox` and `category`.
        box_format: 'xyxy' or 'xywh', of that column.
        folder: of ImageNet's XML files, in place of what the data set has.

    Raises:
        UsageError: the data set has no boxes.
        DataError: the folder has no such files.
    """

    def __init__(
        self, dataset: Any, column: str = 'objects', box_format: str = 'xyxy', folder: str | None = None
    ) -> None:
        self.indices: Any = None
        while hasattr(dataset, 'dataset'):
            chosen = getattr(dataset, 'indices', None)
            self.indices = (
                chosen if self.indices is None else chosen[self.indices] if chosen is not None else self.indices
            )
            dataset = dataset.dataset
        self.reader: Any = getattr(dataset, 'reader', None)
        self.column, self.box_format = column, box_format
        self._read = self._of_column
        if folder:
            self._read = XmlBoxes(folder, self.reader)
        elif getattr(self.reader, 'boxes', None) is not None:
            self._read = self._of_reader
        else:
            columns = getattr(getattr(self.reader, 'dataset', None), 'column_names', None) or ()
            if column not in columns:
                found = f'its columns are {", ".join(columns)}' if columns else 'it is no data set with boxes'
                raise UsageError(
                    f"--cam-boxes: no boxes '{column}' in the data set, {found}: see --boxes-key and --boxes-dir."
                )

    def __getitem__(self, index: int) -> ImageBoxes:
        """Boxes of a sample, in pixels of the stored image.

        Raises:
            DataError: a box lies outside its image, has no size, or is none.
        """
        index = int(index if self.indices is None else self.indices[index])
        try:
            boxes, labels = self._read(index)
            tensor = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
            classes = torch.tensor(labels, dtype=torch.long)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, DataError):
                raise
            reason = first_lines(error, 120)
            raise DataError(f'the boxes of sample {index} cannot be read ({reason}): see --boxes-key.') from error
        if len(tensor) != len(classes) or not tensor.isfinite().all():
            raise DataError(
                f'sample {index} has {len(tensor)} boxes and {len(classes)} classes, expected equally many, of numbers.'
            )
        if self._read == self._of_column and self.box_format != 'xyxy':
            tensor = box_convert(tensor, self.box_format, 'xyxy')
        self._check(tensor, index)
        return ImageBoxes(tensor, classes)

    def _of_reader(self, index: int) -> tuple[Any, Any]:
        return self.reader.boxes[index], self.reader.box_labels[index]

    def _of_column(self, index: int) -> tuple[Any, Any]:
        item = self.reader.dataset.select_columns([self.column])[index]
        return get_field(item, f'{self.column}/bbox'), get_field(item, f'{self.column}/category')

    def image_size(self, index: int) -> tuple[int, int] | None:
        """(width, height) of a stored image, None for one that cannot be decoded."""
        return self.reader.image_size(int(index if self.indices is None else self.indices[index]))

    def _check(self, boxes: Tensor, index: int) -> None:
        wrong = boxes[(boxes[:, 2:] <= boxes[:, :2]).any(1) | (boxes < -1).any(1)]
        if len(wrong):
            raise DataError(
                f'sample {index} has the box {wrong.tolist()[0]}, which has no size or begins outside the image: '
                'see --boxes-format.'
            )


def check_inside(boxes: Tensor, image_size: tuple[int, int], index: int) -> None:
    """Refuse boxes that end beyond their image, but for the pixel by which conventions differ.

    Raises:
        DataError: naming sample and box.
    """
    wrong = boxes[(boxes[:, 2:] > torch.tensor(image_size) + 1).any(1)]
    if len(wrong):
        raise DataError(
            f'sample {index} has the box {wrong.tolist()[0]}, which ends outside the image of {image_size[0]} x '
            f'{image_size[1]} pixels: see --boxes-format.'
        )


class InputGeometry:
    """How a validation transform moves points of an image, whatever it is made of: found out by moving coordinates.

    Args:
        transform: of a timm validation loader.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform
        self._known: dict[tuple[int, int], tuple[Tensor, Tensor, tuple[int, int]]] = {}

    def boxes(self, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Boxes of an image in pixels of the input, cut at its borders; what is cropped away has no area.

        Args:
            boxes: (m, 4) x1, y1, x2, y2 in pixels of the stored image.
            image_size: its (width, height).
        """
        if image_size not in self._known:
            self._known[image_size] = self._measure(image_size)
        start, step, (width, height) = self._known[image_size]
        moved = (boxes - start.repeat(2)) / step.repeat(2)
        limit = torch.tensor([width, height, width, height], dtype=boxes.dtype)
        return moved.clamp(min=0).minimum(limit)

    def _measure(self, image_size: tuple[int, int]) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Where the input begins in the image, how far one of its pixels reaches, and its (width, height)."""
        width, height = image_size
        # red grows to the right, green downwards, blue tells the image from what is padded around it
        colours = np.full((height, width, 3), 255.0)
        colours[..., 0] *= (np.arange(width) + 0.5) / width
        colours[..., 1] *= ((np.arange(height) + 0.5) / height)[:, None]
        picture = Image.fromarray(colours.round().astype(np.uint8))
        for step in self.transform.transforms:
            moved = step(picture)
            if not isinstance(moved, Image.Image):
                break
            picture = moved
        values = np.asarray(picture).astype(float)
        fits = [_line(values, axis, length) for axis, length in enumerate(image_size)]
        starts, steps = zip(*fits, strict=True)
        return torch.tensor(starts, dtype=torch.float64), torch.tensor(steps, dtype=torch.float64), picture.size


def _line(values: np.ndarray, axis: int, length: int) -> tuple[float, float]:
    """Where the first pixel begins along an axis (0: to the right), and how far a pixel reaches, in image pixels."""
    seen = values[..., 2] == 255
    places = np.flatnonzero(seen.any(axis))
    places = places[len(places) // 10 : len(places) - len(places) // 10]  # interpolation bends the borders
    means = np.array([np.take(values[..., axis], p, 1 - axis)[np.take(seen, p, 1 - axis)].mean() for p in places])
    found = means / 255 * length
    if len(places) < 2:
        return float(found[0] - 0.5 * length), float(length)
    slope, start = np.polyfit(places + 0.5, found, 1)
    return float(start), float(slope)


def sample_order(loader: Any) -> Iterator[int]:
    """Indices of the samples that a validation loader of this process yields, in their order."""
    return iter(loader.sampler)
