"""Bounding boxes of a data set's objects, in pixels of the stored images."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from timm.data.readers.targets import get_field
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image

from timm_hnc.data.loading.unreadable_images import CheckedReader
from timm_hnc.data.loading.wrapped_dataset import innermost, stored_places
from timm_hnc.data.sets.files import Box
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.options import given

_WORDNET = re.compile(r'n\d{8}')  # ImageNet's names of classes
_SAME_SHAPE = 0.02  # sides of a turned image differ by rounding alone


@dataclass(frozen=True)
class ImageBoxes:
    """The objects of one image.

    Args:
        boxes: (m, 4) x1, y1, x2, y2 in pixels.
        labels: (m,) class indices, -1 for a class that the data set's class map leaves out.
        drawn_on: (width, height) that an XML file gives the image, 0 where it gives none; None of other boxes, whose
            pixels are those of the stored image.
    """

    boxes: Tensor
    labels: Tensor
    drawn_on: tuple[int, int] | None = None

    def inside(self, image_size: tuple[int, int], index: int) -> 'ImageBoxes':
        """They in the stored image of that (width, height).

        Those of XML files are scaled to it, end at its edge, and are left out where nothing of them is in it, or where
        they were drawn on the image turned by 90 degrees, as an EXIF tag has it shown.

        Raises:
            DataError: another ends beyond the image, by more than the pixel by which conventions differ.
        """
        if self.drawn_on is None:
            wrong = self.boxes[(self.boxes[:, 2:] > torch.tensor(image_size) + 1).any(1)]
            _refuse(wrong, index, f'ends outside the image of {image_size[0]} x {image_size[1]} pixels')
            return self
        if _is_turned(image_size, self.drawn_on):
            return ImageBoxes(self.boxes[:0], self.labels[:0])
        scale = [here / there if there else 1.0 for here, there in zip(image_size, self.drawn_on, strict=True)]
        boxes = clip_boxes_to_image(self.boxes * torch.tensor(scale * 2), image_size[::-1])
        seen = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return ImageBoxes(boxes[seen], self.labels[seen])


def _is_turned(image_size: tuple[int, int], drawn_on: tuple[int, int]) -> bool:
    (width, height), (across, down) = image_size, drawn_on
    if not across or not down or (width > height) == (across > down) or width == height:
        return False
    return abs(width * across / (height * down) - 1) < _SAME_SHAPE


def with_own_folder(folder: Path, reader: Any) -> list[Path]:
    """Where files with the names of a reader's images lie: the images' own folder, such as train, may be part of it."""
    root = getattr(reader, 'root', None)
    return [*([folder / Path(root).resolve().name] if root else []), folder]


class XmlBoxes:
    """Boxes of images from XML files with the images' names, ImageNet's, which are PASCAL VOC's.

    Objects of classes that the data set does not have are left out; an image without a file has no boxes. In a folder
    that a WordNet id names, an object with another name than one is of that class: many of ImageNet's dogs have theirs.

    Args:
        folder: with <image>.xml or <folder of the image>/<image>.xml, as ImageNet's annotations
            of validation and training images lie, or with the images' own folder, such as train, before that.
        reader: of a timm data set whose classes have the names of the objects, such as folders of WordNet ids.

    Raises:
        DataError: there are no such files, or the reader has no names.
    """

    def __init__(self, folder: str | Path, reader: Any) -> None:
        self.folder, self.reader = Path(folder), reader
        self.folders = with_own_folder(self.folder, reader)
        self.class_to_idx: dict[str, int] = getattr(reader, 'class_to_idx', None) or {}
        if not any(next(self.folder.glob(f'{depth}*.xml'), None) for depth in ('', '*/', '*/*/')):
            raise DataError(f"--boxes-dir '{folder}': no .xml files in it or in its folders.")
        if not self.class_to_idx or not hasattr(reader, 'filename'):
            raise DataError('--boxes-dir: the data set has no names of files and classes, it wants a folder of images.')

    def __call__(self, index: int) -> tuple[list[Box], list[int], tuple[int, int]]:
        """Boxes (x1, y1, x2, y2), the class index of each, and the (width, height) of the image they were drawn on."""
        name = Path(self.reader.filename(index)).with_suffix('.xml')
        paths = (folder / each for folder in self.folders for each in (name.name, name))
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            return [], [], (0, 0)
        try:
            boxes, labels = [], []
            root = ElementTree.parse(path).getroot()
            width, height = (int(float(root.findtext(f'size/{side}') or 0)) for side in ('width', 'height'))
            for item in root.iter('object'):
                label = self._label((item.findtext('name') or '').strip(), name.parent.name)
                corners = tuple(float(item.findtext(f'bndbox/{edge}', '')) for edge in ('xmin', 'ymin', 'xmax', 'ymax'))
                if label is not None:
                    boxes.append(corners)
                    labels.append(label)
        except (ElementTree.ParseError, ValueError, OSError) as error:
            raise DataError(f"'{path}' is damaged or no annotation of ImageNet's: {error}") from error
        return boxes, labels, (width, height)  # type: ignore[return-value]  # four corners each

    def _label(self, name: str, folder: str) -> int | None:
        if name not in self.class_to_idx and _WORDNET.fullmatch(folder) and not _WORDNET.fullmatch(name):
            name = folder
        return self.class_to_idx.get(name)


class BoxSource:
    """Where a data set keeps its boxes: in files, with a reader of ours, or in a column of Hugging Face's `datasets`.

    Args:
        dataset: from `create_dataset`, possibly wrapped.
        column: of objects, with the fields `bbox` and `category`.
        box_format: 'xyxy' or 'xywh', of that column.
        folder: of ImageNet's XML files, in place of what the data set has.
        flag: what wants them, for messages.

    Raises:
        UsageError: the data set has no boxes, or has them in no column and one is named.
        DataError: the folder has no such files.
    """

    def __init__(
        self,
        dataset: Any,
        column: str = 'objects',
        box_format: str = 'xyxy',
        folder: str | None = None,
        flag: str = '--cam-boxes',
    ) -> None:
        self.indices = stored_places(dataset)
        self.reader: Any = getattr(innermost(dataset), 'reader', None)
        # timm's own readers know no sizes
        self._sizes: Any = self.reader if hasattr(self.reader, 'image_size') else CheckedReader(self.reader)
        self.column, self.box_format = column, box_format
        self._columns: Any = None
        self._read: Callable[[int], tuple[Any, Any, tuple[int, int] | None]] = self._of_column
        if folder or getattr(self.reader, 'boxes', None) is not None:
            self._read = XmlBoxes(folder, self.reader) if folder else self._of_reader
            for name, value, default in (('boxes_key', column, 'objects'), ('boxes_format', box_format, 'xyxy')):
                if value != default:
                    raise UsageError(f'{given(name, value)}: does nothing, the boxes are in no column of the data set.')
        else:
            columns = getattr(getattr(self.reader, 'dataset', None), 'column_names', None) or ()
            if column not in columns:
                found = f'its columns are {", ".join(columns)}' if columns else 'it is no data set with boxes'
                raise UsageError(
                    f"{flag}: no boxes '{column}' in the data set, {found}: see --boxes-key and --boxes-dir."
                )

    def __getitem__(self, index: int) -> ImageBoxes:
        """Boxes of a sample, before its image is looked at.

        Raises:
            DataError: a box has no size, begins outside its image, or is none; XML files may hold the first two.
        """
        index = int(index if self.indices is None else self.indices[index])
        try:
            boxes, labels, drawn_on = self._read(index)
            # of a few numbers, what takes NumPy a microsecond takes torch twenty
            corners = np.array(boxes, dtype=np.float64).reshape(-1, 4)
            classes = np.array(labels, dtype=np.int64)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, DataError):
                raise
            reason = first_lines(error, 120)
            raise DataError(f'the boxes of sample {index} cannot be read ({reason}): see --boxes-key.') from error
        if len(corners) != len(classes) or not np.isfinite(corners).all():
            raise DataError(
                f'sample {index} has {len(corners)} boxes, {len(classes)} classes: expected equally many, of numbers.'
            )
        if self._read == self._of_column and self.box_format != 'xyxy':
            corners = box_convert(torch.from_numpy(corners), self.box_format, 'xyxy').numpy()
        if drawn_on is None:
            wrong = corners[(corners[:, 2:] <= corners[:, :2]).any(1) | (corners < -1).any(1)]
            _refuse(wrong, index, 'has no size or begins outside the image')
        return ImageBoxes(torch.from_numpy(corners), torch.from_numpy(classes), drawn_on)

    def _of_reader(self, index: int) -> tuple[Any, Any, None]:
        return self.reader.boxes[index], self.reader.box_labels[index], None

    def _of_column(self, index: int) -> tuple[Any, Any, None]:
        if self._columns is None:
            self._columns = self.reader.dataset.select_columns([self.column])
        item = self._columns[index]
        if item[self.column] is None:  # as an image without a file of boxes
            return [], [], None
        boxes, categories = get_field(item, f'{self.column}/bbox'), get_field(item, f'{self.column}/category')
        if self.reader.remap_class:
            # by index or else by name, as timm's reader maps the target
            classes, names = self.reader.class_to_idx, self.reader._source_names
            categories = [classes.get(each, classes.get(names.get(each), -1)) for each in categories]
        return boxes, categories, None

    def image_size(self, index: int) -> tuple[int, int] | None:
        """(width, height) of a stored image, None for one that cannot be decoded."""
        return self._sizes.image_size(int(index if self.indices is None else self.indices[index]))


def _refuse(wrong: 'Tensor | np.ndarray[Any, Any]', index: int, what: str) -> None:
    if len(wrong):
        raise DataError(f'sample {index} has the box {wrong.tolist()[0]}, which {what}: see --boxes-format.')
