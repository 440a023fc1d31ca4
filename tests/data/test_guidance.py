"""Masks of objects that follow their images through the training transforms."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_data import write_cub
from PIL import Image
from timm.data import ImageDataset, create_transform
from torch.nn.functional import avg_pool2d, max_pool2d
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from torchvision.transforms.functional import pil_to_tensor

from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.holdout import split_off
from timm_hnc.data.labels import sample_labels
from timm_hnc.data.loading.in_memory import keep_in_memory
from timm_hnc.data.loading.seeded_batches import SeededBatches
from timm_hnc.data.loading.wrapped_dataset import WrappedDataset
from timm_hnc.data.objects.boxes import BoxSource
from timm_hnc.data.objects.guided import GuidedDataset
from timm_hnc.data.objects.moved import MovedBoxes, MovedPictures, Rectangles, covers_of
from timm_hnc.data.objects.slots import Slots
from timm_hnc.data.objects.sources import Boxes, MaskColumn, MaskFolder, Masks
from timm_hnc.data.sets.decoy_digits import PATCH, PLACES, SIDE, DecoyDigitsReader
from timm_hnc.data.transforms import use_crop
from timm_hnc.errors import DataError, UsageError

SIZE = 64
GEOMETRY = {
    'random resized crop': {'scale': (0.3, 1.0), 'hflip': 0.5, 'vflip': 0.5},
    'keeps the ratio': {'train_crop_mode': 'rkrc', 'hflip': 0.5},
    'random ratio': {'train_crop_mode': 'rkrr', 'scale': (0.5, 1.0), 'hflip': 0.5},
    'no augmentation': {'no_aug': True},
    'padded': {'hflip': 0.5, 'color_jitter': 0.0},
}


class Drawn:
    """A data set of pictures whose object is white on black, and its boxes."""

    def __init__(self, seed, count=200, sides=(40, 120)):  # 1,000 in all five tests of geometry
        generator = random.Random(seed)
        self.images, self.boxes = [], []
        for _ in range(count):
            width, height = generator.randint(*sides), generator.randint(*sides)
            x1, y1 = generator.randint(0, width - 20), generator.randint(0, height - 20)
            x2, y2 = generator.randint(x1 + 8, width), generator.randint(y1 + 8, height)
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[y1:y2, x1:x2] = 255
            self.images.append(Image.fromarray(pixels))
            self.boxes.append([[x1, y1, x2, y2]])
        self.box_labels = [[1] for _ in self.boxes]
        self.reader = self
        self.transform = None

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], 1


class Read(torch.utils.data.Dataset):
    """As timm's ImageDataset reads it."""

    def __init__(self, reader):
        self.reader, self.transform, self.target_transform = reader, None, None

    def __len__(self):
        return len(self.reader)

    def __getitem__(self, index):
        image, target = self.reader[index]
        return self.transform(image), target if self.target_transform is None else self.target_transform(target)


def boxes_of(dataset):
    return Boxes(BoxSource(dataset))


def masks_of_drawn(drawn):
    return Masks(lambda index: drawn.images[index].convert('L'), grey=True)


@pytest.mark.parametrize('name', GEOMETRY)
@pytest.mark.parametrize('kind', ['boxes', 'masks'])
def test_objects_stay_where_they_are_in_the_image_after_every_transform(name, kind):
    """The object is the only thing in the picture: what is white of the image is what the box or mask covers."""
    kwargs = {'color_jitter': None, 'interpolation': 'bilinear', **GEOMETRY[name]}
    transform = create_transform(SIZE, is_training=True, use_prefetcher=True, **kwargs)
    if name == 'padded':
        use_crop('pad', transform, (SIZE, SIZE))
    drawn = Drawn(seed=len(name), count=200 if kind == 'boxes' else 40)
    slots = Slots(0, 1, (SIZE, SIZE))
    source = boxes_of(Read(drawn)) if kind == 'boxes' else masks_of_drawn(drawn)
    dataset = GuidedDataset(Read(drawn), source, slots)
    dataset.transform = transform
    seen = 0
    for image, joined in dataset.__getitems__(range(len(drawn))):
        target, classes, cover = slots.split(joined[None])
        assert (target.item(), classes.item()) == (1, 1)
        white = torch.as_tensor(image)[:1].float() / 255
        if kind == 'masks':  # the image has a band of grey where it was resized, as the mask has
            assert (white[0] - cover[0, 0]).abs().max() < 0.02
        else:  # to a pixel: within one of it the image is as bright and as dark
            brightest, darkest = max_pool2d(white, 3, 1, 1), -max_pool2d(-white, 3, 1, 1)
            assert (cover[0].round() <= (brightest + 0.02).round()).all()
            assert (cover[0].round() >= (darkest - 0.02).round()).all()
        seen += cover.max().item() > 0.5
    assert seen > len(drawn) / 2


@pytest.mark.parametrize('kind', ['boxes', 'masks'])
def test_objects_are_not_erased_with_their_images(kind):
    """Without the prefetcher erasing is a step of the transform."""
    drawn = Drawn(seed=3, count=4, sides=(SIZE, SIZE))
    source = boxes_of(Read(drawn)) if kind == 'boxes' else masks_of_drawn(drawn)
    dataset, found = GuidedDataset(Read(drawn), source, Slots(0, 1, (4, 4))), []
    for erased in (0.0, 1.0):
        whole = {'scale': (1, 1), 'ratio': (1, 1), 'hflip': 0, 'color_jitter': None}
        dataset.transform = create_transform(SIZE, is_training=True, re_prob=erased, **whole)
        found.append(dataset.__getitems__(range(len(drawn))))
    for (image, joined), (erased_image, same) in zip(*found, strict=True):
        assert torch.equal(joined, same)
        assert not torch.equal(image, erased_image)


@pytest.mark.parametrize(('targets', 'grid'), [(0, (4, 8)), (5, (7, 12))])
def test_objects_in_memory_go_with_their_images(targets, grid):
    """What is white of the image is what its mask covers, to the pixel, and on a coarser grid its share."""
    drawn = Drawn(seed=5, count=40, sides=(SIZE, SIZE))
    read = Read(drawn)
    if targets:
        read.target_transform = lambda target: torch.eye(targets)[target]
    slots = Slots(targets, 3 if targets else 1, grid)
    guided = GuidedDataset(read, boxes_of(read), slots)
    guided.transform = create_transform(SIZE, is_training=True, use_prefetcher=True, color_jitter=None, hflip=0.5)
    use_crop('pad', guided.transform, (SIZE, SIZE))
    seeded = SeededBatches(BatchSampler(SequentialSampler(drawn), 8, False), seed=1)
    # as timm's prefetching loader and the batch sampler wrap it
    loader = SimpleNamespace(loader=DataLoader(WrappedDataset(guided)))
    with guided.of_pixels() as kept:
        keep_in_memory(loader, seeded, 0.5, 0.5, torch.device('cpu'), kept)
    stored, moved = torch.stack([pil_to_tensor(image)[:1] for image in drawn.images]), 0
    for epoch in range(3):
        seeded.set_epoch(epoch)
        seen = []
        for images, joined in loader.loader:
            seen.append(images[:, :1])
            target, classes, cover = slots.split(joined)
            assert (target[:, 1] if targets else target).eq(1).all()
            assert classes[:, 0].eq(1).all()
            assert classes[:, 1:].eq(-1).all()
            white = images[:, :1] / 255
            tiled = white.repeat_interleave(grid[0], 2).repeat_interleave(grid[1], 3)
            torch.testing.assert_close(cover[:, :1], avg_pool2d(tiled, SIZE), atol=1e-5, rtol=0)
        moved += (torch.cat(seen) != stored).flatten(1).any(1).sum().item()
    assert moved > 100, 'of 120 images most lie elsewhere than they did'
    assert guided.guided_images.value == 40, 'each was read once'
    assert guided[0][1].shape == joined.shape[1:], 'outside it is as before'


@pytest.mark.parametrize('colours', [{}, {'color_jitter': 0.4, 'grayscale_prob': 0.5, 'gaussian_blur_prob': 0.5}])
def test_images_are_those_without_masks(colours):
    transform = create_transform(SIZE, is_training=True, use_prefetcher=True, **{'color_jitter': None, **colours})
    drawn = Drawn(seed=3, count=20)
    plain, guided = Read(drawn), GuidedDataset(Read(drawn), boxes_of(Read(drawn)), Slots(0, 1, (4, 4)))
    plain.transform = guided.transform = transform
    for index in range(20):
        found = []
        for dataset in (plain, guided):
            random.seed(index), np.random.seed(index), torch.manual_seed(index)
            found.append((torch.as_tensor(dataset[index][0]), random.random(), torch.rand(1)))
        assert torch.equal(found[0][0], found[1][0])
        assert found[0][1:] == found[1][1:], 'what is drawn afterwards is the same'


@pytest.mark.parametrize('seed', range(20))
def test_what_boxes_cover_is_what_their_union_covers(seed):
    """Of boxes with whole corners: beside their pixels, counted. Some boxes of a class overlap, some lie outside."""
    rng = np.random.default_rng(seed)
    labels, sizes, several = np.array([2, 7, 2, 2, 7]), ((40, 24), (20, 48)), []
    for _ in sizes:
        starts = rng.integers(-6, 36, (5, 2))
        several.append(np.concatenate([starts, starts + rng.integers(1, 20, (5, 2))], 1))
    first, second = (
        MovedBoxes(Rectangles.of(corners.tolist(), labels.tolist()), size)
        for corners, size in zip(several, sizes, strict=True)
    )
    found = covers_of([first, MovedBoxes(Rectangles.of([], []), (9, 9)), MovedPictures({}), second], (3, 5))
    assert [each.keys() for each in found] == [{2, 7}, set(), set(), {2, 7}]
    for corners, (width, height), covers in zip(several, sizes, (found[0], found[3]), strict=True):
        for label, cover in covers.items():
            pixels = np.zeros((height, width))
            for x1, y1, x2, y2 in corners[labels == label].clip(min=0):
                pixels[y1:y2, x1:x2] = 1
            expected = pixels.reshape(3, height // 3, 5, width // 5).mean((1, 3))
            np.testing.assert_allclose(cover, expected, atol=1e-12)


@pytest.mark.parametrize('box', [(5.3, 2.8, 31.6, 20.1), (30.4, 0.0, 32.0, 24.0), (0.0, 0.0, 0.4, 24.0)])
@pytest.mark.parametrize('grid', [(8, 8), (5, 7), (3, 11)])
def test_pictures_of_boxes_cover_what_boxes_do(box, grid):
    """Also of boxes that are no whole pixels, and over cells that are none."""
    boxes = MovedBoxes(Rectangles.of([box], [3]), (32, 24))
    [(exact, drawn)] = zip(covers_of([boxes], grid), covers_of([boxes.drawn()], grid), strict=True)
    assert exact[3].sum() > 0
    np.testing.assert_allclose(drawn[3], exact[3], atol=0.5 / 255 + 0.03)  # a pixel spreads over the cells it is in
    assert drawn[3].mean() == pytest.approx(exact[3].mean(), abs=1 / 255)


def test_a_box_in_an_image_of_one_pixel():
    """Timm's crop of it may be empty, and goes on."""
    crop = create_transform(8, is_training=True, use_prefetcher=True).transforms[0]
    for seed in range(10):
        random.seed(seed)
        image, moved = MovedBoxes(Rectangles.of([(0, 0, 1, 1)], [3]), (1, 1)).through(crop, Image.new('RGB', (1, 1)))
        assert image.size == moved.size == (8, 8)
        assert covers_of([moved], (2, 2))[0][3].shape == (2, 2)


def test_masks_of_several_labels_lie_in_slots():
    slots = Slots(targets=5, slots=2, grid=(1, 2))
    masks = {label: torch.full((1, 2), label / 10) for label in (1, 3, 4)}
    targets = torch.tensor([[0, 1.0, 1, 1, 1], [1, 0, 0, 0, 0]])
    joined, *counts = slots.join(targets, [masks, masks])
    assert counts == [1, 1]
    assert slots.join(targets[:1], [{5: masks[1], 99: masks[1]}])[1:] == (0, 1), 'of classes that the model has not'
    assert slots.join(targets[:1], [{}])[1:] == (0, 0)
    target, classes, cover = slots.split(joined)
    assert target.tolist() == [[0, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert classes.tolist() == [[1, 3], [-1, -1]], 'of classes without boxes there are none'
    torch.testing.assert_close(cover[0], torch.tensor([[[0.1, 0.1]], [[0.3, 0.3]]]))


def test_a_share_of_the_images_is_chosen_by_the_seed():
    def guided(share, seed):
        drawn = Drawn(seed=1, count=150)
        dataset = GuidedDataset(Read(drawn), boxes_of(Read(drawn)), Slots(0, 1, (2, 2)), share, seed)
        dataset.transform = create_transform(16, is_training=False, use_prefetcher=True)
        chosen = [dataset.slots.split(dataset[index][1][None])[1].item() == 1 for index in range(150)]
        assert dataset.guided_images.value == sum(chosen)
        return chosen

    first, again, other = guided(0.3, 5), guided(0.3, 5), guided(0.3, 6)
    assert first == again != other
    assert 25 < sum(first) < 65
    assert all(guided(1.0, 5))
    assert all(more for more, fewer in zip(guided(0.6, 5), first, strict=True) if fewer), 'more contains fewer'


def test_odd_boxes_are_counted_and_left_out():
    drawn = Drawn(seed=1, count=7)
    drawn.boxes[1] = [[5, 5, 5, 9]]
    drawn.boxes[2] = [[-9, 0, 5, 9]]
    drawn.boxes[3] = [[0, 0, 999, 9]]
    drawn.boxes[4] = [[0, 0, float('nan'), 9]]
    drawn.box_labels[5:] = [[-1], [0]]
    dataset = GuidedDataset(Read(drawn), boxes_of(Read(drawn)), Slots(0, 1, (2, 2)))
    dataset.transform = create_transform(16, is_training=False, use_prefetcher=True)
    classes = [dataset.slots.split(dataset[index][1][None])[1].item() for index in range(7)]
    assert classes == [1, -1, -1, -1, -1, -1, -1]
    assert (dataset.odd_images.value, dataset.strange_images.value, dataset.guided_images.value) == (4, 1, 1)


def test_boxes_are_those_of_the_image_that_was_read(tmp_path):
    """Behind a held-out split, and where timm puts the next image in the place of a damaged one."""
    root = write_cub(tmp_path / 'birds')
    train = create_dataset('hnc/cub200', str(root), 'train', 3)
    damaged = sorted(root.rglob('*.jpg')) or sorted(root.rglob('*.png'))
    damaged[0].write_bytes(b'no image')
    kept = split_off(train, 0.3, seed=1)[0]
    guided = GuidedDataset(kept, boxes_of(train), Slots(0, 1, (32, 32)))
    guided.transform = create_transform(32, is_training=False, use_prefetcher=True, crop_pct=1.0)
    for index in range(len(guided)):
        target, classes, cover = guided.slots.split(guided[index][1][None])
        assert classes.tolist() == [[target.item()]]
        read = guided._reader.last
        x1, y1, x2, y2 = BoxSource(train)[read].boxes[0].tolist()
        expected = torch.zeros(32, 32)
        expected[round(y1) : round(y2), round(x1) : round(x2)] = 1
        assert (cover[0, 0] - expected).abs().mean() < 0.02


def test_labels_are_those_that_are_left(tmp_path):
    """Frequencies of classes leave out what is held out, with boxes as without."""
    kept = split_off(create_dataset('hnc/cub200', str(write_cub(tmp_path / 'birds')), 'train', 3), 0.4, seed=1)[0]
    guided = GuidedDataset(kept, boxes_of(kept), Slots(0, 1, (2, 2)))
    assert sample_labels(guided) == sample_labels(kept)
    assert len(sample_labels(guided)) == len(kept)


# --- masks ---


@pytest.fixture
def masked(tmp_path):
    """A folder of images of 20 x 10, named after the masks that lie in another: of their left quarter, or odd."""
    kinds = {
        'grey': Image.new('L', (20, 10)),
        'two-colours': Image.new('1', (20, 10)),
        'numbered': Image.new('P', (20, 10)),
        'deep': Image.new('I;16', (20, 10)),
    }
    others = {
        'black': Image.new('L', (20, 10)),
        'coloured': Image.new('RGB', (20, 10), 'white'),
        'small': Image.new('L', (10, 10), 255),
    }
    for mask in kinds.values():
        mask.paste(1, (0, 0, 5, 10))
    for name in (*kinds, *others, 'damaged', 'none'):
        path = tmp_path / 'images' / 'train' / 'b' / f'{name}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (20, 10)).save(path)
    for name, mask in (kinds | others).items():
        path = tmp_path / 'masks' / 'train' / 'b' / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
    (tmp_path / 'masks' / 'train' / 'b' / 'damaged.png').write_bytes(b'no image')
    return tmp_path


def masks_of(masked, folder='masks', grey=False):
    """(mean of the left quarter, of the rest) by name, None without an object, 'odd' for what cannot be used."""
    reader, found = ImageDataset(str(masked / 'images' / 'train')).reader, {}
    masks = Masks(MaskFolder(reader, str(masked / folder)), grey)
    for index in range(len(reader)):
        name = reader.filename(index, basename=True).removesuffix('.jpg')
        try:
            pictures = masks.read(index, (20, 10)).masks
        except DataError:
            found[name] = 'odd'
            continue
        values = [np.asarray(picture, float) for picture in pictures.values()]
        found[name] = (values[0][:, :5].mean(), values[0][:, 5:].mean()) if values else None
    return found


def test_masks_of_a_folder_have_the_names_of_the_images(masked):
    object_is_left = dict.fromkeys(['grey', 'two-colours', 'numbered', 'deep'], (255, 0))
    expected = object_is_left | {'black': None, 'none': None, 'coloured': 'odd', 'small': 'odd', 'damaged': 'odd'}
    assert masks_of(masked) == expected
    assert masks_of(masked, 'masks/train') == expected, 'the folder of the split may be left out'
    greys = masks_of(masked, grey=True)
    assert (greys['grey'], greys['two-colours']) == ((1, 0), (255, 0)), 'a grey is a share'
    assert (greys['numbered'], greys['deep']) == ('odd', 'odd')


def test_a_mask_belongs_to_the_class_of_its_image(masked):
    dataset = ImageDataset(str(masked / 'images' / 'train'))
    masks = Masks(MaskFolder(dataset.reader, str(masked / 'masks')))
    guided = GuidedDataset(dataset, masks, Slots(0, 1, (1, 4)))
    guided.transform = create_transform((10, 20), is_training=False, use_prefetcher=True, crop_pct=1.0)
    covers = []
    for index in range(len(guided)):
        target, classes, cover = guided.slots.split(guided[index][1][None])
        if classes.item() >= 0:
            assert classes.item() == target.item() == 0
            covers.append(cover.flatten().tolist())
    assert covers == [[1, 0, 0, 0]] * 4
    assert (guided.guided_images.value, guided.odd_images.value) == (4, 3)


def test_masks_of_a_column():
    datasets = pytest.importorskip('datasets')
    mask = Image.new('L', (6, 6))
    mask.paste(255, (0, 0, 3, 6))
    images = [Image.new('RGB', (6, 6))] * 2
    kinds = datasets.Features({'image': datasets.Image(), 'mask': datasets.Image(), 'name': datasets.Value('string')})
    columns = {'image': images, 'mask': [mask, None], 'name': ['a', 'b']}
    reader = Read(None)
    reader.dataset = datasets.Dataset.from_dict(columns, features=kinds)
    masks = Masks(MaskColumn(reader, 'mask'))
    [picture] = masks.read(0, (6, 6)).masks.values()
    assert np.array_equal(picture, mask)
    assert len(masks.read(1, (6, 6))) == 0
    with pytest.raises(DataError, match='the mask of sample 0 is damaged'):
        Masks(MaskColumn(reader, 'name')).read(0, (6, 6))
    with pytest.raises(
        UsageError, match="--masks-key: no column 'masks' in the data set, its columns are image, mask, name"
    ):
        MaskColumn(reader, 'masks')
    with pytest.raises(UsageError, match=r'--masks-key: no column .* in the data set, it has none'):
        MaskColumn(Read(None), 'masks')


def test_masks_that_are_not_there(masked):
    (masked / 'empty').mkdir()
    with pytest.raises(DataError, match=r'--masks-dir .*: no .png files in it'):
        MaskFolder(ImageDataset(str(masked / 'images' / 'train')).reader, str(masked / 'empty'))
    with pytest.raises(UsageError, match='--masks-dir: the images of the data set have no names, see --masks-key'):
        MaskFolder(Read(None), str(masked / 'masks'))


# --- the decoy ---


def test_decoy_digits():
    clean, decoy = DecoyDigitsReader('clean-train'), DecoyDigitsReader('train')
    assert len(clean) == len(decoy) == 1437
    validation = DecoyDigitsReader('validation')
    assert len(set(PLACES)) == 10
    agreeing = 0
    for reader, of_class in ((decoy, True), (validation, False)):
        for index in range(80):
            pixels = pil_to_tensor(Image.open(reader[index][0]))[0]
            assert pixels.shape == (SIDE, SIDE)
            frame = pixels.clone()
            (x1, y1, x2, y2), label = reader.boxes[index][0], reader.targets[index]
            frame[y1:y2, x1:x2] = 0
            [(y, x)] = [place for place in PLACES if (frame[place[0] :, place[1] :][:PATCH, :PATCH] == 255).all()]
            assert frame.sum() == 255 * PATCH**2, 'there is nothing else in the frame'
            assert not of_class or (y, x) == PLACES[label]
            agreeing += not of_class and (y, x) == PLACES[label]
            assert pixels[y1:y2, x1:x2].sum() > 0
    assert 1 <= agreeing < 24, 'a tenth by chance'
    with pytest.raises(UsageError, match="hnc/decoy-digits has no split 'test': expected one of train, validation"):
        create_dataset('hnc/decoy-digits', None, 'test', 10)
