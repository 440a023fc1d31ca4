"""The sizes of a run's images, and whether a model takes them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.model_copies import evaluating
from timm_hnc.errors import UsageError, first_lines

ImageSize = tuple[int, int, int]


def image_sizes(input_size: ImageSize, train_sizes: Sequence[int] | None) -> list[ImageSize]:
    """(channels, height, width) of all images of a run."""
    return [input_size, *training_sizes(input_size, train_sizes)] if train_sizes else [input_size]


def training_sizes(input_size: ImageSize, train_sizes: Sequence[int] | None) -> list[ImageSize]:
    """(channels, height, width) of the images that a run trains on."""
    return [(input_size[0], side, side) for side in train_sizes] if train_sizes else [input_size]


def pixels(size: ImageSize) -> str:
    """How a message calls images of a size."""
    return f'{size[1]} pixels' if size[1] == size[2] else f'{size[1]} x {size[2]} pixels'


def grid_of(cam_model: CamModel, size: ImageSize) -> tuple[int, int]:
    """(height, width) of the class maps of images of that size."""
    with torch.no_grad(), evaluating(cam_model):
        return cam_model.class_maps(next(cam_model.parameters()).new_zeros(1, *size)).grid


def is_one_cell(cam_model: CamModel, size: ImageSize) -> bool:
    """Whether the class maps of images of that size are flat whatever they show."""
    return grid_of(cam_model, size) == (1, 1)


@torch.no_grad()
def try_images(what: str, forward: Callable[[Tensor], Any], model: nn.Module, sizes: Sequence[ImageSize]) -> None:
    """Give a function of a model images of these sizes.

    Raises:
        UsageError: it does not take one; the message begins with `what`.
    """
    for size in sizes:
        try:
            forward(next(model.parameters()).new_zeros(1, *size))
        except (ValueError, RuntimeError, AssertionError) as error:
            pixels = ' x '.join(map(str, size))
            raise UsageError(f'{what}: images of {pixels} do not pass: {first_lines(error)}') from error
