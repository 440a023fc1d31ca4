"""The losses on class maps of a run, and the teacher of one of them."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.model_copies import evaluating
from timm_hnc.cam.heads.probe import UnsupportedHead, check_trainable
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.losses.factory import MAP_LOSSES
from timm_hnc.losses.maps.base import MapLoss
from timm_hnc.losses.maps.teacher import TeacherLoss
from timm_hnc.training.setup.models import check_model_name
from timm_hnc.training.setup.options import TrainOptions
from timm_hnc.weights.loading import create_model
from timm_hnc.weights.saving import find_weights


def create_map_losses(
    options: TrainOptions, num_classes: int, data_config: dict[str, Any], accelerator: Accelerator
) -> dict[str, tuple[MapLoss, float]]:
    """The losses on class maps that the options name, with their weights.

    Raises:
        UsageError: a teacher does not go with the run.
        DataError: its weights cannot be read.
    """
    found: dict[str, tuple[MapLoss, float]] = {}
    for name, weight in options.map_losses.weights.items():
        if name == 'teacher':
            teacher = _create_teacher(options, num_classes, data_config['input_size'], accelerator)
            found[name] = TeacherLoss(teacher, data_config['mean'], data_config['std']), weight
        else:
            found[name] = MAP_LOSSES[name](), weight
    return found


def grid_of(cam_model: CamModel, input_size: tuple[int, int, int]) -> tuple[int, int]:
    """(height, width) of the class maps of images of that size."""
    with torch.no_grad(), evaluating(cam_model):
        return cam_model.class_maps(next(cam_model.parameters()).new_zeros(1, *input_size)).grid


def _create_teacher(
    options: TrainOptions, num_classes: int, input_size: tuple[int, int, int], accelerator: Accelerator
) -> CamModel:
    name, flag = options.map_losses.map_teacher, f"--map-teacher '{options.map_losses.map_teacher}'"
    folder = find_weights(Path(name)) if Path(name).is_dir() else None
    if folder is None:
        check_model_name(name, '--map-teacher')
    try:
        with accelerator.local_main_process_first():  # what is downloaded, is downloaded once
            teacher = create_model(f'local-dir:{folder}' if folder else name, pretrained=True)
        check_trainable(teacher.model, teacher.head)
    except UnsupportedHead as error:
        raise UsageError(f'{flag}: {error}') from error
    except (UsageError, DataError):
        raise
    except Exception as error:  # safetensors, torch and the Hub each have errors of their own
        raise DataError(f'{flag}: its weights do not load: {first_lines(error)}') from error
    if teacher.num_classes != num_classes:
        raise UsageError(f'{flag}: it has {teacher.num_classes} classes, the model {num_classes}.')
    teacher.eval().to(device=accelerator.device, dtype=options.device.weight_dtype)
    if options.device.channels_last:
        teacher.to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            teacher.class_maps(next(teacher.parameters()).new_zeros(1, *input_size))
    except (ValueError, RuntimeError, AssertionError) as error:
        size = ' x '.join(map(str, input_size))
        raise UsageError(f'{flag}: it takes no images of {size}: {first_lines(error)}') from error
    return teacher
