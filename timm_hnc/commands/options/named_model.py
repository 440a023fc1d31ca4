"""The flags of commands that take one model by its name or folder, and the model that they make."""

import argparse
from typing import Any

import torch

from timm_hnc.cam import CamModel
from timm_hnc.commands.options.parsing import KeyValues
from timm_hnc.data.naflex import NaFlexOptions
from timm_hnc.errors import UsageError
from timm_hnc.files.run_options import options_of_run
from timm_hnc.plots.photo_cams import Subject, names_of
from timm_hnc.runtime.device import DeviceOptions, agreed_device
from timm_hnc.weights.opening import open_model

NAMED = "run folder, folder of weights, or a name: timm's, hf-hub: or local-dir:"


def add_architecture_flags(parser: argparse.ArgumentParser) -> None:
    """What a model is made with, beside its name."""
    add = parser.add_argument
    add('--num-classes', type=int, metavar='N', help="number of classes, the model's own if left out")
    add('--gp', metavar='POOL', help='global pooling, such as avg')
    add('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V', help='model arguments')


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Where the model is, which `device_of` takes."""
    parser.add_argument('--device', default=DeviceOptions.device, help='cpu keeps the model off an accelerator')


def device_of(args: argparse.Namespace) -> torch.device:
    """The device that --device names, the accelerator, if there is one, where it does not.

    Raises:
        UsageError: this machine has no such device.
    """
    on_cpu = agreed_device(DeviceOptions(device=args.device), frozenset()).on_cpu
    return torch.device('cpu') if on_cpu else torch.accelerator.current_accelerator() or torch.device('cpu')


def subject_of(
    model: CamModel,
    name: str | None,
    caption: str,
    task: str | None,
    device: torch.device,
    names: list[str] | None = None,
) -> Subject:
    """A model that draws photographs on the device, as the run that `name` is was trained on."""
    run = options_of_run(name)
    patches = NaFlexOptions.of_run(run).patches(model.model)
    multi_label = (task or run.get('task')) == 'multilabel'
    names, mode = names_of(model.model, names), run.get('input_img_mode')
    return Subject(model.to(device), caption, names, multi_label, patches, mode)


def named_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of timm's create_model that those flags give.

    Raises:
        UsageError: there are no classes.
    """
    if args.num_classes is not None and args.num_classes < 1:
        raise UsageError(f'--num-classes {args.num_classes}: expected 1 or more.')
    asked: dict[str, Any] = {'num_classes': args.num_classes, 'global_pool': args.gp}
    return args.model_kwargs | {name: value for name, value in asked.items() if value is not None}


def named_model(model: str, args: argparse.Namespace, pretrained: bool) -> CamModel:
    """The model, with what the flags say of it."""
    return open_model(model, pretrained, **named_options(args))
