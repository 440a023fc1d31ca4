"""CUB-200-2011 (Wah et al., 2011) in its own layout of folders and index files."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from timm_hnc.data.sets.files import Box, FileReader, read_text
from timm_hnc.errors import DataError, UsageError

SPLITS = {'train': True, 'test': False, 'validation': False}
REMEDY = 'unpack CUB-200-2011 again, or see --data-dir'
Value = TypeVar('Value')


def read_cub(root: str, split: str) -> FileReader:
    """The reader of a split. Class indices follow the numbers of the classes (1 to 200).

    Args:
        root: the folder CUB_200_2011, or that in which it lies.
        split: 'train', or 'test'; 'validation' is the test split too, since there is no other.

    Returns:
        A reader with one box an image; none where bounding_boxes.txt is missing.

    Raises:
        UsageError: no such split.
        DataError: a file is missing or damaged, or files do not speak of the same images.
    """
    if split not in SPLITS:
        raise UsageError(f"hnc/cub200 has no split '{split}': use train or test.")
    folder = Path(root)
    folder = folder / 'CUB_200_2011' if (folder / 'CUB_200_2011').is_dir() else folder
    names = _read(folder / 'classes.txt', str)
    index_of = {number: index for index, number in enumerate(sorted(names))}
    paths = _read(folder / 'images.txt', str)
    labels = _read(folder / 'image_class_labels.txt', lambda text: index_of[int(text)], paths)
    in_training = _read(folder / 'train_test_split.txt', {'0': False, '1': True}.__getitem__, paths)
    chosen = [image for image in paths if in_training[image] == SPLITS[split]]
    targets = [labels[image] for image in chosen]
    boxes = None
    if (folder / 'bounding_boxes.txt').is_file():
        known = _read(folder / 'bounding_boxes.txt', _box, paths)
        boxes = [[known[image]] for image in chosen]
    return FileReader(
        folder / 'images',
        [paths[image] for image in chosen],
        targets,
        {names[number]: index for number, index in index_of.items()},
        boxes,
        None if boxes is None else [[target] for target in targets],
    )


def _box(text: str) -> Box:
    x, y, width, height = map(float, text.split())
    if not math.isfinite(x + y + width + height):
        raise ValueError(text)
    return x, y, x + width, y + height


def _read(path: Path, convert: Callable[[str], Value], images: dict[int, Any] | None = None) -> dict[int, Value]:
    """'<id> <value>' lines by id; those of images.txt where these are given."""
    values: dict[int, Value] = {}
    for number, line in enumerate(read_text(path, f'CUB-200-2011 comes with it, {REMEDY}').splitlines(), 1):
        if not line.strip():
            continue
        try:
            word, text = line.split(maxsplit=1)
            key, value = int(word), convert(text.strip())
        except (KeyError, ValueError) as error:
            raise DataError(
                f"'{path}', line {number}: '{line[:60]}' is not what CUB-200-2011 has there: {REMEDY}."
            ) from error
        if key in values:
            raise DataError(f"'{path}', line {number}: {key} is there a second time: {REMEDY}.")
        values[key] = value
    if images is not None:
        for image in sorted(images.keys() ^ values.keys())[:1]:
            file, other = (path, 'images.txt') if image in images else (path.with_name('images.txt'), path.name)
            raise DataError(f"'{file}' has no line for image {image} of {other}: {REMEDY}.")
    return values
