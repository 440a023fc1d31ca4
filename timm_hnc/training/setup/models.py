"""The timm model of a run."""

import difflib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import convert_splitbn_model, convert_sync_batchnorm
from timm.models import is_model, load_state_dict, parse_model_name
from torch import nn

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.base import classifier_names
from timm_hnc.data.inputs import InputOptions, model_arguments
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.options import check_range
from timm_hnc.weights.hub_errors import is_of_the_hub
from timm_hnc.weights.loading import reading
from timm_hnc.weights.saving import WEIGHTS, find_weights

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelOptions:
    """The model that trains, and where its weights start.

    Args:
        model: model name.
        pretrained: start from the published weights.
        pretrained_path: start from this file as if it were the published weights.
        pretrained_cfg_overlay: fields of the published weights' configuration to replace, such as custom_load=True.
        initial_checkpoint: start from this checkpoint, head included.
        head_init_scale: factor on the classifier's initial weights.
        head_init_bias: the classifier's initial bias.
        grad_checkpointing: recompute activations to save memory.
        drop: dropout.
        drop_path: stochastic depth.
        drop_block: dropout of areas.
        bn_momentum: momentum of batch norm.
        bn_eps: epsilon of batch norm.
        split_bn: batch norm of its own for each split.
        sync_bn: batch norm over all devices.
    """

    model: str = 'resnet50'
    pretrained: bool = False
    pretrained_path: str | None = None
    pretrained_cfg_overlay: dict[str, Any] | None = None
    initial_checkpoint: str = ''
    head_init_scale: float | None = None
    head_init_bias: float | None = None
    grad_checkpointing: bool = False
    drop: float = 0.0
    drop_path: float | None = None
    drop_block: float | None = None
    bn_momentum: float | None = None
    bn_eps: float | None = None
    split_bn: bool = False
    sync_bn: bool = False

    def __post_init__(self) -> None:
        check_range(self, 'drop', 'drop_path', 'drop_block', low=0, high=1)


def check_model_name(name: str, flag: str = '--model') -> None:
    """Refuse a name that timm does not know; `flag` gave it."""
    try:
        source, architecture = parse_model_name(name)
    except ValueError as error:
        raise UsageError(f'{flag}: {error}') from error
    if not source and not is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise UsageError(f"{flag} '{name}' is no model of timm's." + (f' Near: {", ".join(near)}.' if near else ''))


_FLAGS = {
    **{'pretrained_cfg_overlay': '--pretrained-cfg-overlay', 'num_classes': '--num-classes', 'global_pool': '--gp'},
    **{'drop_rate': '--drop', 'drop_path_rate': '--drop-path', 'drop_block_rate': '--drop-block'},
    **{'bn_momentum': '--bn-momentum', 'bn_eps': '--bn-eps'},
}


def _arguments(options: ModelOptions, input: InputOptions) -> dict[str, Any]:
    overlay: dict[str, Any] = {}
    if options.pretrained_path:
        overlay = dict(file=options.pretrained_path, num_classes=-1)  # -1: adapt the head
    taken = next((name for name in input.model_kwargs if name in _FLAGS), None)
    if taken:
        raise UsageError(f'--model-kwargs {taken}: has a flag of its own, {_FLAGS[taken]}.')
    return dict(
        pretrained_cfg_overlay=overlay | (options.pretrained_cfg_overlay or {}),
        num_classes=input.num_classes,
        drop_rate=options.drop,
        drop_path_rate=options.drop_path,
        drop_block_rate=options.drop_block,
        global_pool=input.gp,
        bn_momentum=options.bn_momentum,
        bn_eps=options.bn_eps,
        **input.model_kwargs,
    )


def cam_model_without_weights(options: ModelOptions, input: InputOptions) -> CamModel:
    """The model of a run with its class maps, on the device meta: before any weights or data are read.

    Raises:
        UnsupportedHead: it has no exact class maps.
        UsageError: timm refuses the model's options.
    """
    with torch.device('meta'):
        model = _create(options, input, pretrained=False)
        model = convert_sync_batchnorm(model) if options.sync_bn else model
    return CamModel(model)


def create_model(options: ModelOptions, input: InputOptions, splits: int = 0) -> Any:
    """The plain timm model that the options name, with its weights; `splits` are those of --split-bn."""
    options = replace(
        options,
        initial_checkpoint=_weights_file('--initial-checkpoint', options.initial_checkpoint),
        pretrained_path=_weights_file('--pretrained-path', options.pretrained_path or '') or None,
    )
    try:
        model = _create(
            options,
            input,
            # who names weights wants them
            pretrained=options.pretrained or bool(options.pretrained_path) or bool(parse_model_name(options.model)[0]),
            checkpoint_path=options.initial_checkpoint,
        )
    except (UsageError, DataError):
        raise
    except Exception as error:  # safetensors, torch and the Hub each have errors of their own
        if options.initial_checkpoint and 'size mismatch' in str(error):
            _check_classes(options, input)
        of_file = options.initial_checkpoint or options.pretrained_path
        source = of_file if of_file and not is_of_the_hub(error) else options.model
        raise DataError(f"weights '{source}' do not load into '{options.model}': {first_lines(error)}") from error
    _initialise_head(model, options)
    if options.grad_checkpointing:
        try:
            model.set_grad_checkpointing(enable=True)
        except AssertionError:
            raise UsageError(f"--grad-checkpointing: '{options.model}' has none, leave it out.") from None
    if options.split_bn:
        model = convert_splitbn_model(model, max(splits, 2))
    if options.sync_bn:
        model = convert_sync_batchnorm(model)
    _logger.info(f'{options.model}: {sum(p.numel() for p in model.parameters()):,} parameters.')
    return model


def _weights_file(flag: str, path: str) -> str:
    """The file of weights that a path is, or that of the run folder, checkpoint or model_best that it is."""
    if not path or Path(path).is_file():
        return path
    if not Path(path).exists():
        raise DataError(f"{flag} '{path}' does not exist.")
    folder = find_weights(Path(path))
    if folder is None:
        raise DataError(f"{flag} '{path}' is no file of weights, and neither a run folder nor its model_best.")
    return str(folder / WEIGHTS)


def _create(options: ModelOptions, input: InputOptions, **arguments: Any) -> Any:
    try:
        with reading(options.model):
            named = model_arguments(options.model, input, **_arguments(options, input))
            return timm.create_model(**named, **arguments)
    except UsageError:
        raise
    except (TypeError, AssertionError, ValueError) as error:
        raise UsageError(f"timm cannot make '{options.model}' with these options: {first_lines(error)}") from error


def _check_classes(options: ModelOptions, input: InputOptions) -> None:
    """Say how to fine-tune where a checkpoint has another number of classes than the model, and that alone."""
    path = options.initial_checkpoint
    saved = {name: tuple(tensor.shape) for name, tensor in load_state_dict(path).items()}
    with torch.device('meta'):
        model = _create(options, input, pretrained=False)
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    classifiers = tuple(f'{name}.' for name in classifier_names(model))
    differing = [name for name in own if own[name] != saved.get(name)]
    if saved.keys() != own.keys() or not all(name.startswith(classifiers) for name in differing):
        return
    theirs, ours = saved[differing[0]][0], own[differing[0]][0]
    raise DataError(
        f"--initial-checkpoint '{path}' has {theirs} classes, the model {ours}: to fine-tune it with a new classifier "
        f'use --pretrained --pretrained-path {path}, to keep its own --num-classes {theirs}.'
    )


def _initialise_head(model: Any, options: ModelOptions) -> None:
    if options.head_init_scale is None and options.head_init_bias is None:
        return
    classifier = model.get_classifier()
    if not isinstance(classifier, (nn.Linear, nn.Conv2d)):
        raise UsageError(
            f"--head-init-scale and --head-init-bias need one linear classifier, '{options.model}' has none."
        )
    with torch.no_grad():
        if options.head_init_scale is not None:
            classifier.weight.mul_(options.head_init_scale)
            if classifier.bias is not None:
                classifier.bias.mul_(options.head_init_scale)
        if options.head_init_bias is not None and classifier.bias is not None:
            nn.init.constant_(classifier.bias, options.head_init_bias)
