"""Where the objects of an image lie: as boxes, or as masks that are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from timm_hnc.data.loading.unreadable_images import decoding
from timm_hnc.data.objects.boxes import BoxSource, with_own_folder
from timm_hnc.data.objects.moved import MovedBoxes, MovedPictures, Rectangles
from timm_hnc.errors import DataError, UsageError

ANY_CLASS = -1
"""In place of a class: the object is of the image's own class, whatever that is."""
_GREYS = ('1', 'L')
_KEPT = 100_000
_NUMBERED = (*_GREYS, 'P', 'I', 'I;16')


class Boxes:
    """Boxes of objects; a process keeps those of the first 100,000 images that it reads, to have them at once later.

    Args:
        source: of the boxes.
    """

    # for messages: what they are, and what is wrong with those that cannot be used
    kind, odd = 'boxes', 'no size, or outside the image'

    def __init__(self, source: BoxSource) -> None:
        self.source = source
        self._kept: dict[int, Rectangles] = {}

    def read(self, index: int, size: tuple[int, int]) -> MovedBoxes:
        """The boxes of the objects of each class in a sample whose image has that (width, height)."""
        return MovedBoxes(self._kept.get(index) or self._checked(index, size), size)

    def _checked(self, index: int, size: tuple[int, int]) -> Rectangles:
        stored = self.source[index]
        found = stored.inside(size, index)
        if len(stored.boxes) and not len(found.boxes):
            raise DataError(f'sample {index} has no box with an area in its image.')
        known = found.labels >= 0
        rectangles = Rectangles.of(found.boxes[known].tolist(), found.labels[known].tolist())
        if len(self._kept) < _KEPT:
            self._kept[index] = rectangles
        return rectangles


class Masks:
    """Masks of the one object of every image; an image without one, or with a black one, has no object.

    Args:
        stored: the mask of a sample, or None: a `MaskFolder` or `MaskColumn`.
        grey: greys are shares and white is all; otherwise whatever is not 0 is the object.
    """

    kind, odd = 'masks', 'another size than the image, colours, or damaged'

    def __init__(self, stored: Callable[[int], Image.Image | None], grey: bool = False) -> None:
        self.stored, self.grey = stored, grey

    def read(self, index: int, size: tuple[int, int]) -> MovedPictures:
        """The mask of the object, of `ANY_CLASS`, in a sample whose image has that (width, height)."""
        try:
            with decoding():
                mask = self.stored(index)
                if mask is None:
                    return MovedPictures({})
                mask.load()
        except OSError as error:
            raise DataError(f'the mask of sample {index} is damaged: {error}') from error
        if mask.size != size or mask.mode not in (_GREYS if self.grey else _NUMBERED):
            raise DataError(f'the mask of sample {index} is {mask.size} and {mask.mode}, expected {size} and grey.')
        mask = mask.convert('L') if self.grey else Image.fromarray((np.asarray(mask) != 0).astype(np.uint8) * 255)
        return MovedPictures({ANY_CLASS: mask} if mask.getbbox() else {})


ObjectSource = Boxes | Masks


class MaskFolder:
    """PNG files with the images' own folders and names.

    Args:
        reader: of a timm data set.
        folder: of the files.

    Raises:
        UsageError: the images have no names.
        DataError: the folder has no such files.
    """

    def __init__(self, reader: Any, folder: str) -> None:
        self.reader = reader
        if not next(Path(folder).rglob('*.png'), None):
            raise DataError(f"--masks-dir '{folder}': no .png files in it or in its folders.")
        try:
            self._name(0)
        except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
            raise UsageError('--masks-dir: the images of the data set have no names, see --masks-key.') from error
        self.folders = with_own_folder(Path(folder), reader)

    def __call__(self, index: int) -> Image.Image | None:
        """The mask of a sample, None where there is no file."""
        paths = (folder / self._name(index) for folder in self.folders)
        path = next((path for path in paths if path.is_file()), None)
        return None if path is None else Image.open(path)

    def _name(self, index: int) -> Path:
        return Path(self.reader.filename(index)).with_suffix('.png')


class MaskColumn:
    """A column of images in a set of Hugging Face's `datasets`.

    Args:
        reader: of a timm data set.
        column: its name.

    Raises:
        UsageError: the data set has no such column.
    """

    def __init__(self, reader: Any, column: str) -> None:
        table: Any = getattr(reader, 'dataset', None)
        names = getattr(table, 'column_names', None) or ()
        if column not in names:
            found = f'its columns are {", ".join(names)}' if names else 'it has none'
            raise UsageError(f"--masks-key: no column '{column}' in the data set, {found}.")
        self.column, self.table = column, table.select_columns([column])

    def __call__(self, index: int) -> Image.Image | None:
        """The mask of a sample, None where the cell is empty."""
        found: Image.Image | None = self.table[index][self.column]
        return found
