"""The timm model of a run."""

import difflib
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import convert_splitbn_model, convert_sync_batchnorm
from timm.models import is_model, load_state_dict, parse_model_name
from torch import nn

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.probe import UnsupportedHead, check_trainable
from timm_hnc.cam.model import cell_size
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.evaluation.inputs import model_arguments
from timm_hnc.training.setup.losses import check_loss_fits, needs_class_maps
from timm_hnc.weights.loading import reading

_logger = logging.getLogger(__name__)


def check_model_name(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        UsageError: with the names that come nearest.
    """
    try:
        source, architecture = parse_model_name(name)
    except ValueError as error:
        raise UsageError(f'--model: {error}') from error
    if not source and not is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise UsageError(f"--model '{name}' is no model of timm's." + (f' Near: {", ".join(near)}.' if near else ''))


def _model_options(args: Namespace) -> dict[str, Any]:
    overlay: dict[str, Any] = {}
    if args.pretrained_path:
        overlay = dict(file=args.pretrained_path, num_classes=-1)  # -1: adapt the head
    return dict(
        pretrained_cfg_overlay=overlay | (args.pretrained_cfg_overlay or {}),
        num_classes=args.num_classes,
        drop_rate=args.drop,
        drop_path_rate=args.drop_path if args.drop_path is not None else args.drop_connect,
        drop_block_rate=args.drop_block,
        global_pool=args.gp,
        bn_momentum=args.bn_momentum,
        bn_eps=args.bn_eps,
        **args.model_kwargs,
    )


def check_class_maps(args: Namespace) -> None:
    """Refuse a model without exact class maps, for losses trainable ones, before any weights or data are read.

    Raises:
        UsageError: no such class maps, or timm refuses the model's options.
    """
    with torch.device('meta'):
        model = _create(args, pretrained=False)
        if args.sync_bn:
            model = convert_sync_batchnorm(model)
    try:
        cam_model = CamModel(model)
        if needs_class_maps(args):
            check_trainable(model, cam_model.head)
    except UnsupportedHead as error:
        raise UsageError(f'{_loss_flag(args) if needs_class_maps(args) else "--cam-images"}: {error}') from error
    check_loss_fits(args, cam_model)


def _loss_flag(args: Namespace) -> str:
    """The option whose loss needs class maps."""
    return f'--hnc {args.hnc}' if args.hnc != 'none' else f'--loss {args.loss}'


def check_image_size(args: Namespace, model: Any, input_size: tuple[int, int, int]) -> None:
    """Refuse images that are smaller than one cell of the maps that a loss needs.

    Args:
        args: options of the run.
        model: plain timm model.
        input_size: channels, height and width of the images.

    Raises:
        UsageError: with both sizes.
    """
    side, cell = min(*input_size[1:], *(args.train_img_sizes or ())), cell_size(model)
    if needs_class_maps(args) and side < cell:
        raise UsageError(
            f'{_loss_flag(args)}: images of {side} pixels are smaller than one cell of the maps of '
            f"'{args.model}', {cell} pixels: see --img-size."
        )


def create_model(args: Namespace) -> Any:
    """The plain timm model that the options name, with its weights.

    Raises:
        UsageError: timm refuses the options.
        DataError: weights are missing or belong to another architecture.
    """
    for flag, path in (('--initial-checkpoint', args.initial_checkpoint), ('--pretrained-path', args.pretrained_path)):
        if path and not Path(path).exists():
            raise DataError(f"{flag} '{path}' does not exist.")
    try:
        model = _create(
            args,
            # who names weights wants them
            pretrained=args.pretrained or bool(args.pretrained_path) or bool(parse_model_name(args.model)[0]),
            checkpoint_path=args.initial_checkpoint,
        )
    except (UsageError, DataError):
        raise
    except Exception as error:  # safetensors, torch and the Hub each have errors of their own
        if args.initial_checkpoint and 'size mismatch' in str(error):
            _check_classes(args)
        source = args.initial_checkpoint or args.pretrained_path or args.model
        raise DataError(f"weights '{source}' do not load into '{args.model}': {first_lines(error)}") from error
    _initialise_head(model, args)
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    if args.split_bn:
        model = convert_splitbn_model(model, max(args.aug_splits, 2))
    if args.sync_bn:
        model = convert_sync_batchnorm(model)
    _logger.info(f'{args.model}: {sum(p.numel() for p in model.parameters()):,} parameters.')
    return model


def _create(args: Namespace, **options: Any) -> Any:
    try:
        with reading(args.model):
            return timm.create_model(**model_arguments(args.model, args, **_model_options(args)), **options)
    except UsageError:
        raise
    except (TypeError, AssertionError, ValueError) as error:
        raise UsageError(f"timm cannot make '{args.model}' with these options: {first_lines(error)}") from error


def _check_classes(args: Namespace) -> None:
    """Say how to fine-tune where a checkpoint has another number of classes than the model, and that alone.

    Raises:
        DataError: that is so.
    """
    path = args.initial_checkpoint
    saved = {name: tuple(tensor.shape) for name, tensor in load_state_dict(path).items()}
    with torch.device('meta'):
        model = _create(args, pretrained=False)
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = model.pretrained_cfg.get('classifier') or ()
    classifiers = tuple(f'{name}.' for name in ([names] if isinstance(names, str) else names))
    differing = [name for name in own if own[name] != saved.get(name)]
    if saved.keys() != own.keys() or not all(name.startswith(classifiers) for name in differing):
        return
    theirs, ours = saved[differing[0]][0], own[differing[0]][0]
    raise DataError(
        f"--initial-checkpoint '{path}' has {theirs} classes, the model {ours}: to fine-tune it with a new classifier "
        f'use --pretrained --pretrained-path {path}, to keep its own --num-classes {theirs}.'
    )


def _initialise_head(model: Any, args: Namespace) -> None:
    if args.head_init_scale is None and args.head_init_bias is None:
        return
    classifier = model.get_classifier()
    if not isinstance(classifier, (nn.Linear, nn.Conv2d)):
        raise UsageError(f"--head-init-scale and --head-init-bias need one linear classifier, '{args.model}' has none.")
    with torch.no_grad():
        if args.head_init_scale is not None:
            classifier.weight.mul_(args.head_init_scale)
            if classifier.bias is not None:
                classifier.bias.mul_(args.head_init_scale)
        if args.head_init_bias is not None and classifier.bias is not None:
            nn.init.constant_(classifier.bias, args.head_init_bias)
