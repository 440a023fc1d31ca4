"""Images that Pillow opens and timm does not skip, though nothing good comes of them.

Grey images of 16 bits and more: Pillow cuts their values off at 255, all but black would be white. Images of so many
pixels that Pillow takes them for an attack: its error would end the run.
"""

import struct
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

_PNG, _JPEG = b'\x89PNG\r\n\x1a\n', b'\xff\xd8'
_PNG_HEADER = 26  # width, height, depth and colour type are its last ten bytes
_GREY = (0, 4)  # colour types of PNG
_SMALL_JPEG = 1 << 20  # bytes; 179 million pixels take more


class CheckedReader:
    """A reader of timm to which such images are errors: timm's data set skips them and tells of them.

    Args:
        reader: of samples accessed by index, that gives (file, target, ...).
    """

    def __init__(self, reader: Any) -> None:
        self.unchecked = reader

    def __getitem__(self, index: int) -> Any:
        sample = self.unchecked[index]
        problem = _problem(sample[0]) if hasattr(sample[0], 'seek') else None
        if problem:
            raise OSError(problem)
        return sample

    def __len__(self) -> int:
        return len(self.unchecked)

    def __getattr__(self, name: str) -> Any:
        if name == 'unchecked' or name.startswith('__'):
            raise AttributeError(name)  # while it is unpickled
        return getattr(self.unchecked, name)


def _problem(file: BinaryIO) -> str | None:
    header = file.read(_PNG_HEADER)
    if header.startswith(_PNG) and len(header) == _PNG_HEADER:
        width, height, depth, colour = struct.unpack('>IIBB', header[-10:])
        deep = depth > 8 and colour in _GREY
    elif header.startswith(_JPEG) and file.seek(0, 2) < _SMALL_JPEG:
        width = height = 0
        deep = False
    else:
        file.seek(0)
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            return 'It is no image.'
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f'It cannot be opened: {error}'
        width, height = image.size
        deep = image.mode == 'F' or image.mode.startswith('I')
    file.seek(0)
    if deep:
        return 'It is grey with more than 8 bits a pixel: convert it to 8 bits, or to RGB.'
    if Image.MAX_IMAGE_PIXELS and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        return f'It has {width} x {height} pixels: make it smaller.'
    return None
