"""The losses on class maps of a run, and teachers: models that another one learns from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.model_copies import evaluating
from timm_hnc.cam.heads.probe import UnsupportedHead, check_trainable
from timm_hnc.cam.model import names_of_weights
from timm_hnc.data.class_names import check_classes_of_model
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.evaluation.device import DeviceOptions
from timm_hnc.losses.factory import MAP_LOSSES
from timm_hnc.losses.maps.base import MapLoss
from timm_hnc.losses.maps.teacher import TeacherLoss
from timm_hnc.training.setup.models import check_model_name
from timm_hnc.training.setup.options import TrainOptions
from timm_hnc.weights.loading import WITH_WEIGHTS, reading
from timm_hnc.weights.saving import find_weights

ImageSize = tuple[int, int, int]


def create_map_losses(
    options: TrainOptions, num_classes: int, data_config: dict[str, Any], train_set: Any, accelerator: Accelerator
) -> dict[str, tuple[MapLoss, float]]:
    """The losses on class maps that the options name, with their weights."""
    found: dict[str, tuple[MapLoss, float]] = {}
    for name, weight in options.map_losses.weights.items():
        if name == 'teacher':
            teacher = _create_teacher(options, num_classes, data_config['input_size'], train_set, accelerator)
            found[name] = TeacherLoss(teacher, data_config['mean'], data_config['std']), weight
        else:
            found[name] = MAP_LOSSES[name](), weight
    return found


def grid_of(cam_model: CamModel, input_size: tuple[int, int, int]) -> tuple[int, int]:
    """(height, width) of the class maps of images of that size."""
    with torch.no_grad(), evaluating(cam_model):
        return cam_model.class_maps(next(cam_model.parameters()).new_zeros(1, *input_size)).grid


def _create_teacher(
    options: TrainOptions, num_classes: int, input_size: ImageSize, train_set: Any, accelerator: Accelerator
) -> CamModel:
    name, flag = options.map_losses.map_teacher, '--map-teacher'
    sizes = image_sizes(input_size, options.sizes.train_img_sizes)
    model = create_teacher(name, flag, num_classes, sizes, train_set, options.device, accelerator)
    try:
        teacher = CamModel(model)
        check_trainable(model, teacher.head)
    except UnsupportedHead as error:
        raise UsageError(f"{flag} '{name}': {error}") from error
    try_images(f"{flag} '{name}'", teacher.class_maps, model, sizes)
    return teacher


def create_teacher(
    name: str,
    flag: str,
    num_classes: int,
    sizes: Sequence[ImageSize],
    train_set: Any,
    device: DeviceOptions,
    accelerator: Accelerator,
) -> Any:
    """A timm model with its weights, in evaluation mode and without gradients; its classes are those of the data."""
    what = f"{flag} '{name}'"
    folder = find_weights(Path(name)) if Path(name).is_dir() else None
    if folder is None and '/' in name and not name.startswith(WITH_WEIGHTS):
        raise DataError(f"{what} is no folder with weights, and no model of timm's.")
    if folder is None:
        check_model_name(name, flag)
    source = f'local-dir:{folder}' if folder else name
    try:
        with accelerator.local_main_process_first(), reading(source):  # what is downloaded, is downloaded once
            teacher: Any = timm.create_model(source, pretrained=True)
    except (UsageError, DataError):
        raise
    except Exception as error:  # safetensors, torch and the Hub each have errors of their own
        raise DataError(f'{what}: its weights do not load: {first_lines(error)}') from error
    if teacher.num_classes != num_classes:
        raise UsageError(
            f'{what}: it has {teacher.num_classes} classes, the model {num_classes}: choose one of the same classes.'
        )
    try:
        check_classes_of_model(names_of_weights(teacher) or (), train_set)
    except DataError as error:
        raise DataError(f'{what} does not fit this data: {error}') from error
    teacher = device.placed(teacher.requires_grad_(False).eval(), accelerator.device)
    try_images(what, teacher, teacher, sizes)
    return teacher


def image_sizes(input_size: ImageSize, train_sizes: Sequence[int] | None) -> list[ImageSize]:
    """(channels, height, width) of all images of a run."""
    return [input_size, *((input_size[0], side, side) for side in train_sizes or ())]


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
