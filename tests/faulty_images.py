"""Images on which Pillow raises what their content says, where one of its plugins might."""

import struct
import zlib

import pytest
from PIL import Image, ImageFile

_START = b'FAULTY'
ERRORS = {
    error.__name__: error
    for error in (
        *(ValueError, SyntaxError, struct.error, OverflowError, Image.DecompressionBombError, NotImplementedError),
        *(MemoryError, IndexError, KeyError, TypeError, AttributeError, EOFError, zlib.error, RuntimeError),
    )
}


def faulty(error: str, where: str = 'load') -> bytes:
    """A file on which Pillow raises the error as it opens or as it loads it."""
    return b' '.join([_START, where.encode(), error.encode()])


class _Faulty(ImageFile.ImageFile):
    format = _START.decode()

    def _open(self):
        _, self.where, error = self.fp.read().decode().split()
        self.error = ERRORS[error]('some bytes are wrong')
        if self.where == 'open':
            raise self.error
        self._size, self._mode = (32, 32), 'RGB'

    def load(self):
        raise self.error


@pytest.fixture
def faulty_format(monkeypatch):
    """Pillow knows such files."""
    monkeypatch.setitem(Image.OPEN, _Faulty.format, (_Faulty, lambda start: start.startswith(_START)))
    monkeypatch.setattr(Image, 'ID', [*Image.ID, _Faulty.format])
