"""What the options of a run ask of its model."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.model_copies import evaluating
from timm_hnc.cam.heads.naflex_head import has_naflex_maps
from timm_hnc.cam.heads.probe import UnsupportedHead, check_trainable
from timm_hnc.cam.model import cell_size, drops_patches
from timm_hnc.errors import UsageError
from timm_hnc.losses.factory import MAP_LOSSES
from timm_hnc.losses.plain_classifier import check_classifier
from timm_hnc.training.setup.image_sizes import (
    ImageSize,
    image_sizes,
    is_one_cell,
    pixels,
    training_sizes,
    try_images,
)
from timm_hnc.training.setup.models import cam_model_without_weights
from timm_hnc.training.setup.objective.losses import loss_of
from timm_hnc.training.setup.options import TrainOptions


def check_class_maps(options: TrainOptions, make: Callable[[], CamModel] | None = None) -> None:
    """Refuse a model without exact class maps, for losses trainable ones, before any weights or data are read.

    Args:
        options: those in force.
        make: makes the CamModel of a model that is provided, in place of the one that the options name.
    """
    for_losses = options.needs_class_maps
    flag = options.loss_flag if for_losses else '--cam-images'
    try:
        cam_model = make() if make else cam_model_without_weights(options.model, options.input)
        if for_losses:
            check_trainable(cam_model.model, cam_model.head)
    except UnsupportedHead as error:
        raise UsageError(f'{flag}: {error}') from error
    if for_losses and drops_patches(cam_model.model) and not options.naflex.naflex_loader:
        raise UsageError(f'{flag}: patch dropout leaves holes in the maps: leave patch_drop_rate out.')
    if options.loss.kind is not None:
        try:
            check_classifier(cam_model, loss_of(options.loss, options.task))
        except ValueError as error:
            raise UsageError(f'--loss {options.loss.loss}: {error}') from error


def check_naflex_maps(options: TrainOptions, model: Any) -> None:
    """Refuse a model without class maps of NaFlex batches for losses that need them."""
    if options.naflex.naflex_loader and options.needs_class_maps and not has_naflex_maps(model):
        raise UsageError(
            f"{options.loss_flag}: '{options.model.model}' has no class maps of NaFlex batches: choose one of "
            'naflexvit_*, or leave --naflex-loader out.'
        )


def check_image_size(options: TrainOptions, model: Any, input_size: ImageSize) -> None:
    """Refuse images that are smaller than a cell of the maps that a loss needs, or of which timm draws no cutmix."""
    others, cell = options.sizes.train_img_sizes or (), cell_size(model)
    side = min(*input_size[1:], *others)
    low, high = options.mixup.cutmix_minmax or (0, 1)
    for edge in (*input_size[1:], *others):
        if int(edge * low) >= int(edge * high):  # timm draws a whole number of pixels from this range
            raise UsageError(f'--cutmix-minmax {low:g} {high:g}: leaves no whole number to draw of {edge} pixels.')
    if options.needs_class_maps and side < cell:
        raise UsageError(
            f'{options.loss_flag}: images of {side} pixels are smaller than one cell of the maps of '
            f"'{options.model.model}', {cell} pixels: see --img-size."
        )


def check_cells(options: TrainOptions, wrap: Callable[[], CamModel], input_size: ImageSize) -> None:
    """Refuse maps of a single cell where a loss does nothing to them: HNC at one of the sizes, others at all.

    Args:
        options: those in force.
        wrap: makes the CamModel of the run's model.
        input_size: (channels, height, width) of training images, where --train-img-sizes does not say others.
    """
    of_several = [f'--map-loss {name}' for name in options.map_losses.weights if MAP_LOSSES[name].needs_several_cells]
    flattens = [f'--hnc {options.hnc.hnc}'] if options.hnc.hnc in ('kd', 'var') else []
    if options.naflex.naflex_loader or not (of_several or flattens):
        return
    cam_model, sizes = wrap(), training_sizes(input_size, options.sizes.train_img_sizes)
    small = [size for size in sizes if is_one_cell(cam_model, size)]
    flat = [*(of_several if len(small) == len(sizes) else ()), *(flattens if small else ())]
    if flat:
        raise UsageError(
            f"{flat[0]}: the maps that '{options.model.model}' has of images of {pixels(small[0])} are a single cell, "
            'and flat as they are: see --img-size, or --model-kwargs output_stride=8 of networks that take it.'
        )


def try_image_sizes(options: TrainOptions, model: Any, input_size: ImageSize) -> None:
    """Refuse images of a size that the model does not take, before any are read."""
    if options.naflex.naflex_loader:
        return

    def logits(images: Tensor) -> None:
        found = model(images)
        if isinstance(found, Tensor) and found.ndim != 2:
            raise ValueError(f'the output is {" x ".join(map(str, found.shape))}, not a logit a class: see --gp.')

    with evaluating(model):
        sizes = image_sizes(input_size, options.sizes.train_img_sizes)
        try_images(f"--model '{options.model.model}'", logits, model, sizes)
