"""Images that timm would not skip, though nothing good comes of them: they are errors that its data sets skip.

Damaged ones, on which Pillow raises whatever its parsing of them ends in: timm skips on OSError alone. Grey images of
16 bits and more: Pillow cuts their values off at 255, all but black would be white.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

from PIL import Image
from timm.data import ImageDataset

from timm_hnc.data.loading.loader_errors import is_of_a_worker
from timm_hnc.data.loading.wrapped_dataset import WrappedReader
from timm_hnc.errors import DataError, first_lines


def check_images(dataset: Any) -> None:
    """Let the decoding of timm's and torchvision's data sets raise OSErrors alone, whatever is wrong with an image.

    timm's `ImageDataset` skips such an image, counts it (`SkippedImages`) and puts the next one in its place. What
    decodes its images itself (torchvision's folders, streams) raises the error.
    """
    if isinstance(dataset, ImageDataset):
        dataset.reader = CheckedReader(dataset.reader, dataset.input_img_mode, dataset.load_bytes)
        dataset.load_bytes = True  # timm leaves decoding to what the reader gives
    elif hasattr(dataset, 'reader'):
        dataset.reader = CheckedReader(dataset.reader, _take_mode(dataset.reader))
    elif callable(getattr(dataset, 'loader', None)):
        dataset.loader = partial(_load, dataset.loader)


class CheckedReader(WrappedReader):
    """A reader of timm that raises OSErrors for what cannot be used.

    Args:
        reader: gives (file, target, ...) by index, or (image, target) as a stream.
        mode: of Pillow, that images are converted to; as they are if None.
        undecoded: files are looked at, not decoded.
    """

    def __init__(self, reader: Any, mode: str | None = None, undecoded: bool = False) -> None:
        super().__init__(reader)
        self.mode = mode
        self.undecoded = undecoded

    def __getitem__(self, index: int) -> Any:
        """The sample of that index, its file replaced by one whose read() gives the decoded image."""
        file, *rest = self._sample(index)
        if rest[0] is None:  # of which timm makes class -1
            raise ValueError(f'sample {index} has no label, see --target-key.')
        if not hasattr(file, 'seek'):
            return file, *rest
        if self.undecoded:
            with decoding():
                _open(file)
            file.seek(0)
            return file, *rest
        try:  # not decoding(): to enter and leave a generator is a part of a CIFAR image's time that can be seen
            with file:
                return _Decoded(_open(file), self.mode), *rest
        except Exception as error:
            if not _is_of_pillow(error):
                raise
            raise _unreadable(error) from error

    def __iter__(self) -> Iterator[Any]:
        with decoding(RuntimeError, DataError):  # a reader's own words, and ours
            for image, *rest in self.unchecked:
                yield (_of_8_bits(image).convert(self.mode) if self.mode else image), *rest

    def _sample(self, index: int) -> Any:
        try:
            return self.unchecked[index]
        except (TypeError, AssertionError) as error:  # timm's reader of Hugging Face's `datasets` looks into it
            if not self._has_image(index):
                raise OSError('The row has no image.') from error
            raise

    def _has_image(self, index: int) -> bool:
        if not hasattr(self.unchecked, 'image_key'):
            return True
        image = self.unchecked.dataset[index][self.unchecked.image_key] or {}
        return bool(image.get('bytes') or image.get('path'))

    def image_size(self, index: int) -> tuple[int, int] | None:
        """(width, height) of a stored image, None for one that is skipped."""
        try:
            file, *_ = self._sample(index)
            with decoding(), file:
                image = _open(file)
                image.load()
                return image.size
        except OSError:
            return None


@contextmanager
def decoding(*others: type[Exception]) -> Iterator[None]:
    """Around the decoding of an image; `others` are errors that are none of Pillow's, and stay what they are.

    Raises:
        OSError: the image is damaged, in whatever way Pillow says so.
    """
    try:
        yield
    except Exception as error:
        if type(error) in others or not _is_of_pillow(error):
            raise
        raise _unreadable(error) from error


class _Decoded:
    """In place of a file, which timm reads where it opens none itself: the decoded image."""

    def __init__(self, image: Image.Image, mode: str | None) -> None:
        if mode:
            image = image.convert(mode)
        else:
            image.load()
        self.read = lambda: image


def _is_of_pillow(error: Exception) -> bool:
    """Whether it may be one of its plugins': ValueError, SyntaxError, struct.error, NotImplementedError, ..."""
    return not isinstance(error, OSError) and not is_of_a_worker(error)


def _unreadable(error: Exception) -> OSError:
    return OSError(f'{type(error).__name__}: {first_lines(error)}')


def _load(loader: Callable[[str], Any], path: str) -> Any:
    with decoding(), _open(path):
        return loader(path)


def _open(file: BinaryIO | str) -> Image.Image:
    return _of_8_bits(Image.open(file))


def _of_8_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith(('F', 'I')):
        raise OSError('It is grey with more than 8 bits a pixel: convert it to 8 bits, or to RGB.')
    return image


def _take_mode(reader: Any) -> str | None:
    """The mode that a stream of Pillow's images converts them to, which it then leaves to us; None of other streams."""
    if not {'ReaderWds', 'ReaderHfids'} & {kind.__name__ for kind in type(reader).mro()}:
        return None
    mode, reader.input_img_mode = reader.input_img_mode, ''
    return mode
