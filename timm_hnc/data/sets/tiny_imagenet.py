"""Tiny-ImageNet (200 classes, 64 x 64 pixels) in its own layout of folders and text files."""

from pathlib import Path
from typing import Any

from timm_hnc.data.sets.files import Box, FileReader, read_text
from timm_hnc.errors import DataError, UsageError

REMEDY = 'unpack tiny-imagenet-200 again, or see --data-dir'


def read_tiny_imagenet(root: str, split: str) -> FileReader:
    """The reader of a split, with one box an image. Class indices follow the sorted WordNet ids.

    Args:
        root: the folder tiny-imagenet-200, or that in which it lies.
        split: 'train', or 'validation' ('val'); the images of `test` have no labels.
    """
    if split not in ('train', 'validation', 'val'):
        raise UsageError(f"hnc/tiny-imagenet has no split '{split}' with labels: use train or validation.")
    folder = Path(root)
    folder = folder / 'tiny-imagenet-200' if (folder / 'tiny-imagenet-200').is_dir() else folder
    names = sorted(read_text(folder / 'wnids.txt', REMEDY).split())
    class_to_idx = {name: index for index, name in enumerate(names)}
    if split == 'train':
        rows = [
            (f'{name}/images/{image}', name, corners)
            for name in names
            for image, corners in _rows(folder / 'train' / name / f'{name}_boxes.txt', 0)
        ]
        start = folder / 'train'
    else:
        path = folder / 'val' / 'val_annotations.txt'
        rows = [(image, name, corners) for (image, name), corners in _rows(path, 1)]
        start = folder / 'val' / 'images'
        unknown = next((name for _, name, _ in rows if name not in class_to_idx), None)
        if unknown is not None:
            raise DataError(f"'{path}': class {unknown} is not in wnids.txt: {REMEDY}.")
    targets = [class_to_idx[name] for _, name, _ in rows]
    return FileReader(
        start,
        [image for image, _, _ in rows],
        targets,
        class_to_idx,
        [[corners] for _, _, corners in rows],
        [[target] for target in targets],
    )


def _rows(path: Path, names: int) -> list[Any]:
    """(image, corners), or ((image, class), corners) with one more name, of every line.

    The files count both corners among the pixels of the object.
    """
    rows = []
    for number, line in enumerate(read_text(path, REMEDY).splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            x1, y1, x2, y2 = map(float, fields[1 + names :])
        except ValueError as error:
            raise DataError(f"'{path}', line {number}: expected a name and four numbers: {REMEDY}.") from error
        corners: Box = (x1, y1, x2 + 1, y2 + 1)
        rows.append(((fields[0], fields[1]) if names else fields[0], corners))
    return rows
