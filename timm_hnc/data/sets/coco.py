"""MS-COCO (Lin et al., ECCV 2014) as several labels an image, in its own layout."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from timm_hnc.data.sets.files import Box, FileReader, read_text
from timm_hnc.errors import DataError, UsageError, first_lines

YEARS = ('2014', '2017')
SPLITS = ('train', 'validation', 'train2014', 'val2014', 'train2017', 'val2017')
REMEDY = "unpack COCO's annotations again"


def read_coco(root: str, split: str) -> FileReader:
    """The reader of a split, from ROOT/annotations/instances_<split>.json and ROOT/<split>/.

    All images are in, those without an object too. An object counts as present also where it is a crowd, or has a box
    without area (which is left out of the boxes). Class indices follow the order of the category ids (1 to 90, with
    gaps).

    Args:
        root: folder of MS-COCO.
        split: 'train2014', 'val2014', 'train2017' or 'val2017'; 'train' and 'validation' are those of the year that is
            there, of 2014 where both are. They never mix the years: most of val2014 is in train2017.

    Raises:
        UsageError: no such split.
        DataError: the annotations are missing or damaged, or an image is missing.
    """
    if split not in SPLITS:
        raise UsageError(f"hnc/coco has no split '{split}': use {', '.join(SPLITS)}.")
    name = _split_of_a_year(root, split)
    file = _annotations(root, name)
    content = _load(file)
    try:
        categories = _by_id(content['categories'], 'name', 'categories')
        index_of = {number: index for index, number in enumerate(sorted(categories))}
        paths = _by_id(content['images'], 'file_name', 'images')
        objects = _objects(content['annotations'], index_of, paths)
    except KeyError as error:
        raise DataError(f"'{file}' is damaged, an entry lacks {error}: {REMEDY}.") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"'{file}' is damaged, {first_lines(error)}: {REMEDY}.") from error
    boxed = {
        image: [(label, box) for label, box in objects[image] if box[2] > box[0] and box[3] > box[1]] for image in paths
    }
    return FileReader(
        Path(root) / name,
        list(paths.values()),
        [sorted({label for label, _ in objects[image]}) for image in paths],
        {categories[number]: index for number, index in index_of.items()},
        [[box for _, box in found] for found in boxed.values()],
        [[label for label, _ in found] for found in boxed.values()],
    )


def _annotations(root: str, split: str) -> Path:
    return Path(root) / 'annotations' / f'instances_{split}.json'


def _split_of_a_year(root: str, split: str) -> str:
    if split not in ('train', 'validation'):
        return split
    found = {year: sum(_annotations(root, f'{part}{year}').is_file() for part in ('train', 'val')) for year in YEARS}
    return f'{"train" if split == "train" else "val"}{max(YEARS, key=found.__getitem__)}'


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path, 'see --data-dir, --train-split and --val-split (validate: --split)'))
    except ValueError as error:
        raise DataError(f"'{path}' is no JSON ({error}): {REMEDY}.") from error
    for part in ('images', 'annotations', 'categories'):
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or (part != 'annotations' and not entries):
            raise DataError(
                f"'{path}' has no '{part}': it is no file of COCO's object annotations (instances_*.json), {REMEDY}."
            )
    return content


def _by_id(entries: list[dict[str, Any]], key: str, part: str) -> dict[int, str]:
    values = {int(entry['id']): str(entry[key]) for entry in entries}
    if len(values) < len(entries):
        raise ValueError(f'two of its {part} have one id')
    return values


def _objects(
    annotations: list[dict[str, Any]], index_of: dict[int, int], images: dict[int, str]
) -> dict[int, list[tuple[int, Box]]]:
    """Class index and box of every object, by image.

    Raises:
        KeyError: an annotation lacks a field.
        ValueError: an annotation is of a category or image that is not there, or its box is none.
    """
    objects: dict[int, list[tuple[int, Box]]] = defaultdict(list)
    for number, entry in enumerate(annotations):
        name = f'annotation {entry.get("id", number)}' if isinstance(entry, dict) else f"'annotations' entry {number}"
        for key, known, part in (('category_id', index_of, 'categories'), ('image_id', images, 'images')):
            if entry[key] not in known:
                raise ValueError(f'{name} has {key} {entry[key]}, which is not among its {part}')
        if len(entry['bbox']) != 4:
            raise ValueError(f'{name} has the box {entry["bbox"]}, not x, y, width and height')
        x, y, width, height = map(float, entry['bbox'])
        objects[entry['image_id']].append((index_of[entry['category_id']], (x, y, x + width, y + height)))
    return objects
