"""What timm's transforms lack: the padded crop of CIFAR, no crop at all, and the way back from normalised images."""

from collections.abc import Sequence
from typing import Any

from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from torch import Tensor
from torchvision import transforms

PADDING_AT_32_PIXELS = 4
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')


def denormalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., C, H, W) images as they were before they were normalised with a mean and a deviation of each channel."""
    return images * images.new_tensor(std).view(-1, 1, 1) + images.new_tensor(mean).view(-1, 1, 1)


def padded_crop(size: tuple[int, int], interpolation: str = 'bilinear') -> list[Any]:
    """Zero padding and a random crop (section 4.1 of the paper): 4 pixels at 32 x 32, in proportion at other sizes.

    Args:
        size: (height, width) of the crop in pixels; larger or smaller images are first resized to its short side.
        interpolation: of that resizing.
    """
    padding = [round(side * PADDING_AT_32_PIXELS / 32) for side in size]
    return [
        transforms.Resize(min(size), interpolation=str_to_interp_mode(interpolation)),
        transforms.RandomCrop(size, padding=(padding[1], padding[0]), pad_if_needed=True),
    ]


def squashed(size: tuple[int, int], interpolation: str = 'bilinear') -> list[Any]:
    """The whole image, resized to height and width whatever its shape, as timm's crop mode `squash` at evaluation."""
    return [transforms.Resize(size, interpolation=str_to_interp_mode(interpolation))]


CROPS = {'pad': padded_crop, 'squash': squashed}
"""Ways to crop a training image that timm has not, by name."""


def use_crop(name: str, transform: transforms.Compose, size: Sequence[int], interpolation: str = 'bilinear') -> None:
    """Put a crop where a training transform of timm's has its random resized crop.

    Args:
        name: one of CROPS.
        transform: from timm's create_transform, changed in place.
        size: (..., height, width) of the crop in pixels.
        interpolation: of the resizing; timm's 'random' becomes 'bilinear'.

    Raises:
        ValueError: the transform has no random resized crop.
    """
    crops = [i for i, step in enumerate(transform.transforms) if isinstance(step, RandomResizedCropAndInterpolation)]
    if not crops:
        raise ValueError(f"the training transform has no random resized crop to replace by '{name}'.")
    interpolation = 'bilinear' if interpolation == 'random' else interpolation
    transform.transforms[crops[0] : crops[0] + 1] = CROPS[name]((size[-2], size[-1]), interpolation)
