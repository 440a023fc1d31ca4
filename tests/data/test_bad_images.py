"""What becomes of images as people have them: read, or skipped and counted, as README's table says."""

import io
import struct
import zlib

import numpy as np
import pytest
from image_data import write_folder
from PIL import Image, ImageDraw

from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.skipped import SkippedImages


def saved(image, format='PNG', **kwargs):
    file = io.BytesIO()
    image.save(file, format, **kwargs)
    return file.getvalue()


def picture(size=(48, 32)):
    """Red on the left, blue on the right."""
    image = Image.new('RGB', size, (200, 20, 20))
    ImageDraw.Draw(image).rectangle([size[0] // 2, 0, *size], fill=(20, 20, 200))
    return image


def bomb():
    """A PNG that says it has 30,000 x 30,000 pixels."""

    def chunk(name, content):
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    header = struct.pack('>IIBBBBB', 30_000, 30_000, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', b'') + chunk(b'IEND', b'')


def deep(kind):
    values = np.linspace(0, 1, 48 * 32).reshape(32, 48)
    if kind == 'float':
        return saved(Image.fromarray(values.astype(np.float32)), 'TIFF')
    return saved(Image.fromarray((values * 65535).astype(np.uint16)), kind)


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(picture(), 'JPEG', exif=exif, quality=95)


READ = {
    'JPEG that is called PNG': saved(picture(), 'JPEG', quality=95),
    'CMYK': saved(picture().convert('CMYK'), 'JPEG', quality=95),
    'palette': saved(picture().convert('P', palette=Image.Palette.ADAPTIVE)),
    'alpha': saved(picture().convert('RGBA')),
    'WebP': saved(picture(), 'WEBP', lossless=True),
    'animated': saved(picture(), 'GIF', save_all=True, append_images=[Image.new('RGB', (48, 32))]),
    'EXIF, as it is stored': rotated(),
    'grey': saved(picture().convert('L')),
    '1x1': saved(Image.new('RGB', (1, 1), (200, 20, 20))),
}
SKIPPED = {
    'truncated': saved(picture(), 'JPEG')[:300],
    'zero bytes': b'',
    'text': b'<html>404 Not Found</html>',
    'bomb': bomb(),
    '16-bit PNG': deep('PNG'),
    '16-bit TIFF': deep('TIFF'),
    'float TIFF': deep('float'),
}


@pytest.fixture
def read(tmp_path):
    """The data set with a file in it, and how many images were skipped."""
    root = write_folder(tmp_path) / 'validation'
    file = sorted(root.rglob('*.png'))[4]
    counter = SkippedImages()

    def index_of(content):
        if content is None:
            dataset = create_dataset('', str(root), 'validation', num_classes=3)
            file.unlink()  # it vanishes while the run goes on
        else:
            file.write_bytes(content)
            dataset = create_dataset('', str(root), 'validation', num_classes=3)
        index = next(i for i in range(len(dataset)) if dataset.filename(i, absolute=True) == str(file))
        return dataset, index, counter

    yield index_of
    counter.stop()


@pytest.mark.parametrize('kind', READ)
def test_read(read, kind):
    dataset, index, skipped = read(READ[kind])
    image, _ = dataset[index]
    assert skipped.count == 0
    assert image.mode == 'RGB'
    assert image.size == ((1, 1) if kind == '1x1' else (48, 32))
    left, right = image.getpixel((0, 0)), image.getpixel((image.width - 1, image.height - 1))
    if kind not in ('grey', '1x1'):
        assert np.allclose(left, (200, 20, 20), atol=12)
        assert np.allclose(right, (20, 20, 200), atol=12)


@pytest.mark.parametrize('kind', [*SKIPPED, 'vanished'])
def test_skipped_and_counted(read, kind, caplog):
    dataset, index, skipped = read(SKIPPED.get(kind))
    image, target = dataset[index]
    neighbour, expected = dataset[index + 1]
    assert skipped.count == 1
    assert f'Skipped sample (index {index}).' in caplog.text
    assert (image.tobytes(), target) == (neighbour.tobytes(), expected)
