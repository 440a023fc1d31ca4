"""Photographs as people have them, read into plain RGB."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from timm_hnc.errors import DataError, first_lines

_logger = logging.getLogger(__name__)

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')
MAX_SIDE = 4096
# times the short side, which becomes as long as a model's images: the long one grows in proportion
_LONGEST = 50


def find_photos(paths: Iterable[str | Path]) -> list[Path]:
    """Files as they are named, and the images of folders (not of folders in them) in the order of their names.

    Raises:
        DataError: a path does not exist or cannot be read, or a folder has no images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        try:
            if not path.exists():
                raise DataError(f"photo '{path}' does not exist.")
            inside = sorted(path.iterdir()) if path.is_dir() else None
        except OSError as error:
            raise DataError(f"photo '{path}' cannot be read: {first_lines(error)}") from error
        files = [path] if inside is None else [file for file in inside if file.suffix.lower() in SUFFIXES]
        if not files:
            raise DataError(f"folder '{path}' has no images ({', '.join(SUFFIXES)}).")
        found += files
    return found


def load_photos(paths: Iterable[Path]) -> Iterator[tuple[Path, Image.Image]]:
    """Photos as `load_photo` reads them; one that it cannot read is skipped with a warning."""
    problems: list[DataError] = []
    count = 0
    for path in paths:
        count += 1
        try:
            yield path, load_photo(path)
        except DataError as error:
            problems.append(error)
    if problems and len(problems) == count:
        raise problems[0]
    for problem in problems:
        _logger.warning(f'Skipped: {problem}')
    if problems:
        _logger.warning(f'{len(problems)} of {count} photos skipped.')


class _Strip(Exception):
    """A photo is much longer than wide."""


def _formats() -> list[str]:
    """All that Pillow reads itself: PostScript it gives to a program that runs it."""
    Image.init()
    return [name for name in Image.OPEN if name != 'EPS']


def load_photo(path: Path) -> Image.Image:
    """An RGB image: turned as its EXIF data says, transparent places white, 16 bits scaled, only the first frame.

    A photo with a side of more than 4,096 pixels is made smaller while it is read.

    Raises:
        DataError: the file is no image, is damaged, has too many pixels, or is a strip of them.
    """
    try:
        with Image.open(path, formats=_formats()) as image:
            if max(image.size) > _LONGEST * min(image.size):
                raise _Strip
            image.draft('RGB', (MAX_SIDE, MAX_SIDE))
            image.thumbnail((MAX_SIDE, MAX_SIDE)) if max(image.size) > MAX_SIDE else image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except _Strip:
        raise DataError(f"photo '{path}' is more than {_LONGEST} times as long as wide: cut it first.") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"photo '{path}' has too many pixels: make it smaller first.") from error
    except Exception as error:  # Pillow's plugins raise what their parsing of a damaged file ends in
        raise DataError(
            f"photo '{path}' cannot be read: it is no image, or damaged ({type(error).__name__})."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I') or image.mode == 'F':
        # 16 and 32 bits: Pillow would cut them off at 255
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        highest = max(values.max(), 65535.0 if image.mode.startswith('I') else 1e-12)
        image = Image.fromarray((values / highest * 255).clip(0, 255).round().astype(np.uint8))
    if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
        image = image.convert('RGBA')
        paper = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(paper, image)
    return image.convert('RGB')
