"""The losses on class maps of a run."""

from typing import Any

from accelerate import Accelerator

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.probe import UnsupportedHead
from timm_hnc.errors import UsageError
from timm_hnc.losses.factory import MAP_LOSSES
from timm_hnc.losses.maps.base import MapLoss
from timm_hnc.losses.maps.teacher import TeacherLoss
from timm_hnc.training.setup.image_sizes import ImageSize, is_one_cell, pixels, training_sizes, try_images
from timm_hnc.training.setup.objective.teachers import create_teacher
from timm_hnc.training.setup.options import TrainOptions


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


def _create_teacher(
    options: TrainOptions, num_classes: int, input_size: ImageSize, train_set: Any, accelerator: Accelerator
) -> CamModel:
    name, flag = options.map_losses.map_teacher, '--map-teacher'
    sizes = training_sizes(input_size, options.sizes.train_img_sizes)
    model = create_teacher(name, flag, num_classes, sizes, train_set, options.device, accelerator)
    try:
        teacher = CamModel(model)
    except UnsupportedHead as error:
        raise UsageError(f"{flag} '{name}': {error}") from error
    if not teacher.head.trainable:  # a backward pass through its last block for every map
        raise UsageError(
            f"{flag} '{name}': its patch tokens do not enter the logits behind the last attention, its maps are for "
            'pictures: choose a teacher whose maps are trainable (CamModel(teacher).kind).'
        )
    try_images(f"{flag} '{name}'", teacher.class_maps, model, sizes)
    if all(is_one_cell(teacher, size) for size in sizes):
        raise UsageError(
            f"{flag} '{name}': its maps of images of {pixels(sizes[-1])} are a single cell, and say nothing of where "
            'to look: see --img-size.'
        )
    return teacher
