"""A timm reader of image files with targets and boxes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from timm.data.readers.reader import Reader

from timm_hnc.errors import DataError, first_lines

Box = tuple[float, float, float, float]


@dataclass(eq=False, repr=False)
class FileReader(Reader):
    """Images of a folder, each with its target and, where they are known, its boxes.

    Args:
        folder: that the paths start from.
        paths: of the images.
        targets: a class index or a list of them, an image each.
        class_to_idx: names of the classes.
        boxes: (x1, y1, x2, y2) in pixels of the stored image, a list for every image; None where nobody knows.
        box_labels: class index of every box.

    Raises:
        DataError: an image is missing.
    """

    folder: Path
    paths: list[str]
    targets: list[Any]
    class_to_idx: dict[str, int]
    boxes: list[list[Box]] | None = None
    box_labels: list[list[int]] | None = None

    def __post_init__(self) -> None:
        missing = next((path for path in self.paths if not (self.folder / path).is_file()), None)
        if missing is not None:
            raise DataError(f"image '{self.folder / missing}' is missing, the index files name it: see --data-dir.")

    def __getitem__(self, index: int) -> tuple[BinaryIO, Any]:
        return open(self.folder / self.paths[index], 'rb'), self.targets[index]

    def __len__(self) -> int:
        return len(self.paths)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.folder / self.paths[index]
        return path.name if basename else str(path) if absolute else self.paths[index]


def read_text(path: Path, remedy: str) -> str:
    """The text of an index file; `remedy` is what to do where it cannot be read."""
    try:
        return path.read_text(encoding='utf-8')
    except FileNotFoundError as error:
        raise DataError(f"'{path}' is missing: {remedy}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read ({first_lines(error)}): {remedy}.") from error
