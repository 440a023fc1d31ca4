"""One class activation map over its image."""

import base64
import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from timm_hnc.plots.colormap import apply_colormap

MAP_WEIGHT = 0.6  # the rest is the grey image: less hides the level of a map, more hides the object under it


def as_colour(image: Tensor) -> Tensor:
    """(3, H, W) in double precision on the CPU."""
    image = image.detach().cpu().double()
    return image if len(image) == 3 else image.mean(0, keepdim=True).expand(3, -1, -1)


def as_picture(colour: Tensor) -> Image.Image:
    """A (3, H, W) picture with values in [0, 1]."""
    return Image.fromarray((255 * colour.permute(1, 2, 0)).round().to(torch.uint8).numpy())


def as_grey(colour: Tensor) -> Tensor:
    """(H, W) luminance of a (3, H, W) picture (ITU-R BT.601)."""
    return (colour * torch.tensor([0.299, 0.587, 0.114], dtype=colour.dtype)[:, None, None]).sum(0)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) to (C, *size), bicubic; antialiased, for images and maps that are larger than a cell."""
    return interpolate(maps[None], size, mode='bicubic', antialias=True, align_corners=False)[0]


def size_in(side: int, image: Tensor) -> tuple[int, int]:
    """(height, width) of an image whose longer side is as long as asked for."""
    height, width = image.shape[-2:]
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def sized(image: Tensor, side: int) -> Tensor:
    """(3, H, W) in double precision of an image in [0, 1], its longer side as long as asked for."""
    return resize(as_colour(image), size_in(side, image)).clamp(0, 1)


def data_uri(picture: Image.Image, format: str = 'JPEG') -> str:
    """A picture as the address of an image in a page."""
    file = io.BytesIO()
    picture.save(file, format, quality=90)
    return f'data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}'


def shared_scale(maps: Sequence[Tensor]) -> tuple[float, float] | None:
    """The lowest and highest value of several maps, None if there is none; equal if only rounding parts them."""
    if not maps:
        return None
    values = torch.cat([map_.detach().cpu().double().flatten() for map_ in maps])
    low, high = values.min().item(), values.max().item()
    # The rounding of a float32 sum over some thousand features is no structure: stretched over the whole scale it
    # would make a perfectly flat map look like noise.
    return (low, low) if high - low <= 1e-6 * max(abs(low), abs(high)) else (low, high)


def map_over_image(map_: Tensor, grey: Tensor, scale: tuple[float, float]) -> Tensor:
    """(H, W, 3) uint8 of a map blended over the grey image (H, W)."""
    return blend(levels(map_, scale, (grey.shape[0], grey.shape[1])), grey)


def map_uri(map_: Tensor, grey: Tensor, scale: tuple[float, float]) -> str:
    """A map over its grey image, as the address of a picture in a page; as of `map_over_image`."""
    return data_uri(Image.fromarray(map_over_image(map_, grey, scale).numpy()))


def levels(map_: Tensor, scale: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """(H, W) of a map (h, w) at that size: 0 at the lower end of the scale, 1 at the upper, 0.5 where both are one."""
    map_, (low, high) = map_.detach().cpu().double(), scale
    values = (map_ - low) / (high - low) if high > low else torch.full_like(map_, 0.5)
    return resize(values[None], size)[0]


def blend(values: Tensor, grey: Tensor, opacity: float = MAP_WEIGHT) -> Tensor:
    """(H, W, 3) uint8 colours of values in [0, 1] over a grey image, both (H, W)."""
    mixed = opacity * apply_colormap(values) + (1 - opacity) * 255 * grey[..., None]
    return mixed.round().clamp(0, 255).to(torch.uint8)
