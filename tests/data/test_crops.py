import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import InterpolationMode, RandomCrop, Resize

from timm_hnc.data.transforms import padded_crop, use_crop


def image(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(1, 256, (size[1], size[0], 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize(('side', 'padding'), [(32, 4), (64, 8), (224, 28), (36, 4), (28, 4)])
def test_equals_padding_with_zeros_and_cropping_by_hand(side, padding):
    picture = image((side, side))
    pixels = np.asarray(picture)
    by_hand = np.zeros((side + 2 * padding, side + 2 * padding, 3), dtype=np.uint8)
    by_hand[padding:-padding, padding:-padding] = pixels
    resize, crop = padded_crop((side, side))
    offsets = set()
    for seed in range(8):
        torch.manual_seed(seed)
        top, left = (torch.randint(0, 2 * padding + 1, (1,)).item() for _ in range(2))
        offsets.add((top, left))
        torch.manual_seed(seed)
        result = np.asarray(crop(resize(picture)))
        assert np.array_equal(result, by_hand[top : top + side, left : left + side])
    assert len(offsets) > 4


def test_images_of_other_sizes_are_resized_to_the_short_side_first():
    resize, crop = padded_crop((32, 32), 'bicubic')
    assert resize.interpolation == InterpolationMode.BICUBIC
    picture = image((80, 64))
    resized = resize(picture)
    assert resized.size == (40, 32)
    assert np.array_equal(np.asarray(resized), np.asarray(Resize(32, InterpolationMode.BICUBIC)(picture)))
    assert crop(resized).size == (32, 32)


def test_height_and_width_are_padded_in_proportion():
    _, crop = padded_crop((32, 64))
    assert isinstance(crop, RandomCrop)
    assert (crop.size, crop.padding, crop.fill) == ((32, 64), (8, 4), 0)


def test_takes_the_place_of_timms_random_resized_crop():
    transform = create_transform((3, 32, 32), is_training=True, hflip=0.5, color_jitter=0.0, auto_augment='rand-m2')
    before = [type(step).__name__ for step in transform.transforms]
    use_crop('pad', transform, (3, 32, 32), 'random')
    after = [type(step).__name__ for step in transform.transforms]
    assert after == ['Resize', 'RandomCrop', *before[1:]]
    assert transform(image((40, 32))).shape == (3, 32, 32)
    assert transform.transforms[0].interpolation == InterpolationMode.BILINEAR
    with pytest.raises(ValueError, match="no random resized crop to replace by 'pad'"):
        use_crop('pad', transform, (3, 32, 32))


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'nearest'])
def test_squashed_images_are_those_of_timms_evaluation(interpolation):
    statistics = dict(interpolation=interpolation, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    training = create_transform((3, 32, 48), is_training=True, hflip=0.0, color_jitter=None, **statistics)
    use_crop('squash', training, (3, 32, 48), interpolation)
    evaluation = create_transform((3, 32, 48), crop_mode='squash', crop_pct=1.0, **statistics)
    for size in ((80, 64), (20, 90), (48, 32)):
        assert torch.equal(training(image(size)), evaluation(image(size)))
