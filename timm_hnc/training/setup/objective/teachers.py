"""Teachers: models with weights that another model learns from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from accelerate import Accelerator

from timm_hnc.cam.model import names_of_weights
from timm_hnc.data.class_names import check_classes_of_model
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.runtime.device import DeviceOptions
from timm_hnc.runtime.process import one_process_first
from timm_hnc.training.setup.image_sizes import ImageSize, try_images
from timm_hnc.training.setup.models import check_model_name
from timm_hnc.weights.loading import reading
from timm_hnc.weights.opening import A_MODEL
from timm_hnc.weights.saving import find_weights


def source_of_teacher(name: str, flag: str) -> str:
    """What timm makes a teacher of, where there is such a model.

    Raises:
        DataError: there is no such folder.
        UsageError: there is no model of that name.
    """
    folder = find_weights(Path(name)) if Path(name).is_dir() else None
    if folder is not None:
        return f'local-dir:{folder}'
    if '/' in name and ':' not in name:
        raise DataError(f"{flag} '{name}' is no folder with weights: expected {A_MODEL}.")
    check_model_name(name, flag)
    return name


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
    source = source_of_teacher(name, flag)
    try:
        with one_process_first(accelerator), reading(source):
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
