"""CUB-200-2011 (Wah et al., 2011) in its own layout of folders and index files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from timm_hnc.data.files import Box, FileReader
from timm_hnc.errors import DataError, UsageError

SPLITS = {'train': '1', 'test': '0', 'validation': '0'}
Value = TypeVar('Value')


def read_cub(root: str, split: str) -> FileReader:
    """The reader of a split.

    Args:
        root: the folder CUB_200_2011, or that in which it lies.
        split: 'train', or 'test'; 'validation' is the test split too, since there is no other.

    Returns:
        A reader with one box an image; none where bounding_boxes.txt is missing.

    Raises:
        UsageError: no such split.
        DataError: a file is missing or damaged.
    """
    if split not in SPLITS:
        raise UsageError(f"hnc/cub200 has no split '{split}': use train or test.")
    folder = Path(root)
    folder = folder / 'CUB_200_2011' if (folder / 'CUB_200_2011').is_dir() else folder
    names = _read(folder / 'classes.txt', str)
    paths = _read(folder / 'images.txt', str)
    classes = _read(folder / 'image_class_labels.txt', str, paths)
    splits = _read(folder / 'train_test_split.txt', str, paths)
    chosen = [image for image in paths if splits[image] == SPLITS[split]]
    index_of = {number: index for index, number in enumerate(names)}
    unknown = next((image for image in chosen if classes[image] not in index_of), None)
    if unknown is not None:
        raise DataError(f"'{folder / 'image_class_labels.txt'}': image {unknown} is of a class that classes.txt lacks.")
    boxes = None
    if (folder / 'bounding_boxes.txt').is_file():
        known = _read(folder / 'bounding_boxes.txt', _box, paths)
        boxes = [[known[image]] for image in chosen]
    return FileReader(
        folder / 'images',
        [paths[image] for image in chosen],
        [index_of[classes[image]] for image in chosen],
        {name: index for index, name in enumerate(names.values())},
        boxes,
        [[index_of[classes[image]]] for image in chosen] if boxes else None,
    )


def _box(text: str) -> Box:
    x, y, width, height = map(float, text.split())
    return x, y, x + width, y + height


def _read(path: Path, convert: Callable[[str], Value], images: dict[str, Any] | None = None) -> dict[str, Value]:
    """'<id> <value>' lines by id, for each of the images where they are given.

    Raises:
        DataError: the file is missing, a line has another form, or an image is missing.
    """
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read ({error}): CUB-200-2011 comes with it, see --data-dir.") from error
    values = {}
    for number, line in enumerate(lines, 1):
        key, _, text = line.strip().partition(' ')
        if not key:
            continue
        try:
            if not text:
                raise ValueError(line)
            values[key] = convert(text)
        except ValueError as error:
            raise DataError(f"'{path}', line {number}: '{line[:60]}' is not what CUB-200-2011 has there.") from error
    missing = next((image for image in images or () if image not in values), None)
    if missing is not None:
        raise DataError(f"'{path}' has no line for image {missing} of images.txt.")
    return values
