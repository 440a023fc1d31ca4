"""Bounding boxes in files beside the images: ImageNet's XML, which is PASCAL VOC's."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from timm_hnc.data.sets.files import Box
from timm_hnc.errors import DataError


class XmlBoxes:
    """Boxes of images from XML files with the images' names.

    Objects of classes that the data set does not have are left out; an image without a file has no boxes.

    Args:
        folder: with <image>.xml or <folder of the image>/<image>.xml, as ImageNet's annotations
            of validation and training images lie.
        reader: of a timm data set whose classes have the names of the objects, such as folders of WordNet ids.

    Raises:
        DataError: there are no such files, or the reader has no names.
    """

    def __init__(self, folder: str | Path, reader: Any) -> None:
        self.folder, self.reader = Path(folder), reader
        self.class_to_idx: dict[str, int] = getattr(reader, 'class_to_idx', None) or {}
        if not next(self.folder.glob('*.xml'), None) and not next(self.folder.glob('*/*.xml'), None):
            raise DataError(f"--boxes-dir '{folder}': no .xml files in it or in its folders.")
        if not self.class_to_idx or not hasattr(reader, 'filename'):
            raise DataError('--boxes-dir: the data set has no names of files and classes, it wants a folder of images.')

    def __call__(self, index: int) -> tuple[list[Box], list[int]]:
        """Boxes (x1, y1, x2, y2) in pixels of the stored image, and the class index of each."""
        name = Path(self.reader.filename(index)).with_suffix('.xml')
        path = next((path for path in (self.folder / name.name, self.folder / name) if path.is_file()), None)
        if path is None:
            return [], []
        try:
            boxes, labels = [], []
            for item in ElementTree.parse(path).getroot().iter('object'):
                label = self.class_to_idx.get((item.findtext('name') or '').strip())
                corners = tuple(float(item.findtext(f'bndbox/{edge}', '')) for edge in ('xmin', 'ymin', 'xmax', 'ymax'))
                if label is not None:
                    boxes.append(corners)
                    labels.append(label)
        except (ElementTree.ParseError, ValueError, OSError) as error:
            raise DataError(f"'{path}' is damaged or no annotation of ImageNet's: {error}") from error
        return boxes, labels  # type: ignore[return-value]  # four corners each
