"""MS-COCO (Lin et al., ECCV 2014) as several labels an image, in its own layout."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from timm_hnc.data.files import Box, FileReader
from timm_hnc.errors import DataError, UsageError

SPLITS = {
    'train': ('train2014', 'train2017'),
    'validation': ('val2014', 'val2017'),
    **{name: (name,) for name in ('train2014', 'val2014', 'train2017', 'val2017')},
}


def read_coco(root: str, split: str) -> FileReader:
    """The reader of a split, from ROOT/annotations/instances_<split>.json and ROOT/<split>/.

    All images are in, those without an object too. An object counts as present also where it is a crowd. Class indices
    follow the order of the category ids (1 to 90, with gaps).

    Args:
        root: folder of MS-COCO.
        split: 'train2014', 'val2014', 'train2017' or 'val2017'; 'train' and 'validation' take the year that is there,
            2014 before 2017.

    Raises:
        UsageError: no such split.
        DataError: the annotations are missing or damaged, or an image is missing.
    """
    if split not in SPLITS:
        raise UsageError(f"hnc/coco has no split '{split}': use {', '.join(SPLITS)}.")
    files = {name: Path(root) / 'annotations' / f'instances_{name}.json' for name in SPLITS[split]}
    name = next((name for name, file in files.items() if file.is_file()), SPLITS[split][0])
    content = _load(files[name])
    try:
        categories = sorted((int(entry['id']), str(entry['name'])) for entry in content['categories'])
        paths = {entry['id']: str(entry['file_name']) for entry in content['images']}
        objects = _objects(content['annotations'], {number: index for index, (number, _) in enumerate(categories)})
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"'{files[name]}' is damaged: an entry lacks {error}.") from error
    unknown = next((image for image in objects if image not in paths), None)
    if unknown is not None:
        raise DataError(f"'{files[name]}' is damaged: an object is in image {unknown}, which is not among its images.")
    return FileReader(
        Path(root) / name,
        list(paths.values()),
        [sorted({label for label, _ in objects[image]}) for image in paths],
        {category: index for index, (_, category) in enumerate(categories)},
        [[box for _, box in objects[image]] for image in paths],
        [[label for label, _ in objects[image]] for image in paths],
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read ({error}): see --data-dir.") from error
    for part in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise DataError(f"'{path}' has no '{part}': it is no file of COCO's object annotations (instances_*.json).")
    return content


def _objects(annotations: list[dict[str, Any]], index_of: dict[int, int]) -> dict[Any, list[tuple[int, Box]]]:
    """Class index and box of every object, by image.

    Raises:
        ValueError: an object is of a category that is not there.
    """
    objects: dict[Any, list[tuple[int, Box]]] = defaultdict(list)
    for entry in annotations:
        if entry['category_id'] not in index_of:
            raise ValueError(f'category {entry["category_id"]} among its categories')
        x, y, width, height = map(float, entry['bbox'])
        objects[entry['image_id']].append((index_of[entry['category_id']], (x, y, x + width, y + height)))
    return objects
