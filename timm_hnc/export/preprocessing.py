"""What timm's evaluation transform does to an image, as operations of a graph."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Real
from typing import Any

import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn
from torch.nn.functional import interpolate

from timm_hnc.cam import CamModel
from timm_hnc.errors import UsageError

_MODES = ('bilinear', 'bicubic')


def _are_numbers(value: Any) -> bool:
    values = value if isinstance(value, (list, tuple)) else [value]
    return bool(values) and all(isinstance(each, Real) and math.isfinite(each) for each in values)


_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    'mean': (_are_numbers, 'numbers'),
    'std': (lambda value: _are_numbers(value) and bool(torch.tensor(value).ne(0).all()), 'numbers other than 0'),
    'crop_pct': (lambda value: isinstance(value, (int, float)) and 0 < value < math.inf, 'a number above 0'),
}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(each) for each in value)
    return value.tolist() if hasattr(value, 'tolist') else value


def stated_config(model: CamModel, given: Mapping[str, Any] | None, needed: bool) -> dict[str, Any]:
    """How a model wants its images, as far as anybody says: size, mean, std, interpolation, share and mode of the crop.

    Args:
        model: of timm's it says all, of others the size.
        given: what is given in its place.
        needed: all of it.

    Raises:
        UsageError: what is needed nobody says, or what is given does not fit the model.
    """
    stated = model.data_config if model.pretrained_cfg else {'input_size': model.data_config['input_size']}
    given = given or {}
    # timm's configs say more than we need
    unknown = sorted(set(given) - {*model.data_config, *(each.name for each in fields(PretrainedCfg))})
    if unknown:
        raise UsageError(f"data_config has no '{unknown[0]}': expected some of {', '.join(model.data_config)}.")
    given = {name: _plain(value) for name, value in given.items() if name in model.data_config}
    for name, (is_good, expected) in _VALUES.items():
        if name in given and not is_good(given[name]):
            raise UsageError(f'data_config: {name} {given[name]!r}: expected {expected}.')
    config = {**stated, **given}
    missing = [name for name in model.data_config if name not in config]
    if needed and missing:
        raise UsageError(f'--preprocess: the model does not say its {", ".join(missing)}: see data_config.')
    channels, size = model.data_config['input_size'][0], config['input_size']
    whole = isinstance(size, (list, tuple)) and all(isinstance(side, int) and side > 0 for side in size)
    if not whole or len(size) != 3 or size[0] != channels:
        raise UsageError(f'data_config: input_size {size}: expected ({channels}, height, width).')
    for name in ('mean', 'std'):
        if torch.tensor(config.get(name, 0)).numel() not in (1, channels):
            raise UsageError(f'data_config: {name} {config[name]}: expected a value for each of {channels} channels.')
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}


class Preprocessing(nn.Module):
    """Resizing, centre crop and normalisation of images of any size, as timm's `create_transform` for evaluation.

    Args:
        config: of `stated_config`.

    Raises:
        UsageError: a graph cannot do what the config asks for.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        channels, height, width = config['input_size']
        self.crop, self.channels = (height, width), channels
        self.mode, self.squashed = config['interpolation'], config['crop_mode'] == 'squash'
        self.resized = tuple(math.floor(side / config['crop_pct']) for side in self.crop)
        if self.mode not in _MODES:
            raise UsageError(f'--preprocess: resizes {" or ".join(_MODES)}, the model wants {self.mode}.')
        if config['crop_mode'] not in ('squash', 'center') or (height != width and not self.squashed):
            shape = f'{config["crop_mode"]} crop of {height} x {width}'
            raise UsageError(f'--preprocess: crops squares from the centre, or squashes; the model wants a {shape}.')
        if self.resized < self.crop:
            raise UsageError(
                f'--preprocess: the model wants borders around its images (crop_pct {config["crop_pct"]}).'
            )
        for name in ('mean', 'std'):
            values = torch.tensor(config[name], dtype=torch.float32) * 255
            self.register_buffer(name, values.expand(channels).reshape(-1, 1, 1).clone(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, height, width) normalised floats of (B, H, W, C) bytes."""
        height, width = images.shape[1], images.shape[2]
        short = torch.sym_min(height, width)  # a graph must hold for portraits and landscapes
        rows, columns = self.resized
        size = (rows, columns) if self.squashed else (rows * height // short, columns * width // short)
        pixels = images.permute(0, 3, 1, 2).float()
        pixels = interpolate(pixels, size, mode=self.mode, antialias=True).clamp(0, 255).round()
        # slices would keep the strides of the whole, of which torch.export guards that they are not those of the part
        for dim, (length, crop) in enumerate(zip(size, self.crop, strict=True), 2):
            pixels = pixels.index_select(dim, _centre(length, crop) + torch.arange(crop, device=pixels.device))
        return (pixels - self.mean) / self.std


def _centre(length: Any, crop: int) -> Any:
    """Begin of the central part, a half rounded to even as torchvision does it."""
    rest = length - crop
    return rest // 2 + (rest % 2) * ((rest // 2) % 2)
