"""What becomes of images as people have them: read, or skipped and counted, as README's table says."""

import io
import struct
import zlib

import numpy as np
import pytest
from faulty_images import ERRORS, faulty
from image_data import write_folder, write_parquet, write_shards, write_tar
from PIL import Image, ImageDraw

from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.loading.loader_errors import read as read_loader
from timm_hnc.data.loading.skipped_images import SkippedImages
from timm_hnc.data.objects.boxes import BoxSource
from timm_hnc.errors import DataError


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


@pytest.mark.parametrize('where', ['open', 'load'])
@pytest.mark.parametrize('error', ERRORS)
def test_whatever_pillow_raises_the_image_is_skipped_and_counted(read, faulty_format, caplog, error, where):
    dataset, index, skipped = read(faulty(error, where))
    with pytest.raises((ERRORS[error], OSError)):
        Image.open(dataset.filename(index, absolute=True)).load()
    image, target = dataset[index]
    neighbour, expected = dataset[index + 1]
    assert skipped.count == 1
    assert f'Skipped sample (index {index}). ' in caplog.text
    assert (image.tobytes(), target) == (neighbour.tobytes(), expected)


@pytest.mark.parametrize('empty', [None, {'bytes': b'', 'path': None}], ids=['null', 'no bytes'])
def test_rows_without_an_image_are_skipped_and_counted(tmp_path, empty):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    rows = {'image': [empty, {'bytes': saved(picture()), 'path': None}, empty], 'label': [0, 1, 2]}
    (tmp_path / 'set').mkdir()
    features = Features({'image': ImageFeature(), 'label': Value('int64')})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / 'set' / 'train.parquet')
    dataset = create_dataset(f'hfds/{tmp_path / "set"}', str(tmp_path / 'cache'), 'train', num_classes=3)
    skipped = SkippedImages()
    try:
        assert [dataset[index][1] for index in range(3)] == [1, 1, 1]
    finally:
        skipped.stop()
    assert skipped.count == 3, 'the last image is followed by the first'
    assert dataset.reader.image_size(0) is None


@pytest.fixture
def with_the_image(tmp_path, monkeypatch):
    """Writes every form of data set with that content for its fifth image."""
    import image_data

    original = image_data.samples

    def changed(content):
        def samples(split, seed=0):
            found = original(split, seed)
            return [(name, label, content if number == 4 else png) for number, (name, label, png) in enumerate(found)]

        monkeypatch.setattr(image_data, 'samples', samples)
        return tmp_path

    return changed


@pytest.fixture
def with_a_faulty_image(faulty_format, with_the_image):
    return with_the_image(faulty('NotImplementedError'))


SKIPPING = {
    'folder': lambda root: ('', write_folder(root)),
    'tar': lambda root: ('', write_tar(root / 'train.tar', 'train')),
    'hfds': lambda root: (f'hfds/{write_parquet(root / "set")}', root / 'cache'),
}


@pytest.mark.parametrize('kind', SKIPPING)
def test_every_kind_of_data_that_is_read_by_index_skips_it(with_a_faulty_image, kind):
    skipped = SkippedImages()
    name, root = SKIPPING[kind](with_a_faulty_image)
    dataset = create_dataset(name, str(root), 'train', num_classes=3)
    found = [(image.tobytes(), target) for image, target in (dataset[index] for index in range(len(dataset)))]
    assert len(found) == 59
    assert found[4] == found[5]
    assert skipped.count == 1
    skipped.stop()


def test_folders_of_torchvision_and_streams_end_in_one_line(with_a_faulty_image):
    root = with_a_faulty_image
    folder = create_dataset('torch/image_folder', str(write_folder(root / 'folder')), 'train', num_classes=3)
    name = f'hfids/{write_parquet(root / "set")}'
    stream = create_dataset(name, str(root / 'cache'), 'train', num_classes=3, num_samples=59, batch_size=8)
    for samples in ((folder[index] for index in range(len(folder))), stream):
        with pytest.raises(DataError, match='the data cannot be read: NotImplementedError: some bytes are wrong'):
            list(read_loader(samples))
    Image.new('I;16', (32, 32), 4000).save(next((root / 'folder' / 'train' / 'red').glob('*.png')))
    with pytest.raises(DataError, match='the data cannot be read: It is grey with more than 8 bits a pixel'):
        list(read_loader(folder[index] for index in range(39, len(folder))))


@pytest.mark.parametrize(
    ('kind', 'write'), [('hfids', lambda root: f'hfids/{write_parquet(root / "data")}'), ('wds', lambda _: 'wds/x')]
)
def test_grey_images_of_16_bits_in_streams_end_in_one_line(with_the_image, kind, write):
    root = with_the_image(deep('PNG'))
    where = write_shards(root / 'shards') if kind == 'wds' else root / 'cache'
    stream = create_dataset(write(root), str(where), 'train', num_classes=3, num_samples=59, batch_size=8)
    with pytest.raises(DataError, match='the data cannot be read: It is grey with more than 8 bits a pixel'):
        list(read_loader(stream))


@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_images_of_streams_are_of_the_mode_that_is_asked_for(with_the_image, mode):
    root = with_the_image(READ['alpha'])
    options = {'num_classes': 3, 'num_samples': 59, 'batch_size': 8, 'input_img_mode': mode}
    for name, where in (
        ('wds/x', write_shards(root / 'shards')),
        (f'hfids/{write_parquet(root / "data")}', root / 'c'),
    ):
        assert {image.mode for image, _ in create_dataset(name, str(where), 'train', **options)} == {mode}


def test_the_size_of_a_faulty_image_is_not_known(read, faulty_format, tmp_path):
    dataset, index, _ = read(faulty('SyntaxError'))
    dataset.reader.unchecked.boxes, dataset.reader.unchecked.box_labels = [[]] * 25, [[]] * 25
    source = BoxSource(dataset)
    assert source.image_size(index) is None
    assert source.image_size(index + 1) == (32, 32)


def test_the_end_of_a_loading_process_is_no_damaged_image(read, monkeypatch):
    """torch tells of it at any moment of the process that reads, in the middle of an image as well."""
    dataset, index, skipped = read(READ['grey'])

    def interrupted(*_):
        raise RuntimeError('DataLoader worker (pid 4711) is killed by signal: Killed.')

    monkeypatch.setattr(Image.Image, 'convert', interrupted)
    with pytest.raises(RuntimeError, match='DataLoader worker'):
        dataset[index]
    assert skipped.count == 0
