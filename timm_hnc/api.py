"""Train and evaluate from Python: the loop and the validation pass of the commands, on what a notebook has."""

import copy
from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.probe import name_of
from timm_hnc.errors import UsageError
from timm_hnc.evaluation.precision import agreed_device, renew_state, set_up_process
from timm_hnc.evaluation.sources import Source
from timm_hnc.evaluation.validation import ValidateOptions, measure
from timm_hnc.options import flattened, grouped
from timm_hnc.training.run import train_run
from timm_hnc.training.setup.build import Provided
from timm_hnc.training.setup.options import TrainOptions, train_options
from timm_hnc.training.setup.provided import OF_DATA, OF_MODEL, fitted_options, refuse_unused


def train(
    model: nn.Module, train_set: Any, eval_set: Any = None, options: TrainOptions | None = None, **values: Any
) -> dict[str, Any]:
    """Train a model with the loop of `timm-hnc train`; the run folder is that of the command.

    Args:
        model: of timm, or a CamModel of one. It trains in place, and ends with its best weights where it has no moving
            average.
        train_set: data set of images and targets with a settable `transform`, as those of timm and torchvision, which
            gets timm's augmentation; or a loader of normalised batches (B, C, H, W) and targets, (B,) or (B, n).
        eval_set: the same for validation; None trains without.
        options: all options, with timm's defaults.
        **values: options by name, as the flags of train.py, in place of those.

    Returns:
        What stands in result.json, and the run's `folder`.

    Raises:
        UsageError: options are wrong, alone or together.
        DataError: data or folders cannot be used, or the loss is not finite.
        KeyboardInterrupt: the run was stopped by a signal, and is saved.

    Example:
        >>> result = timm_hnc.train(model, train_set, eval_set, epochs=3, lr=0.1, hnc='mse', experiment='mine')
        >>> result['final']['top1'], result['folder']
    """
    plain = model.model if isinstance(model, CamModel) else model
    named = values | {'model': name_of(plain)} | ({'val_split': ''} if eval_set is None else {})
    options = train_options(named) if options is None else options.changed(**named)
    _check_loaders(train_set, eval_set)
    options = fitted_options(options, frozenset(values), plain, train_set, eval_set)
    if eval_set is train_set and not isinstance(eval_set, DataLoader):
        eval_set = copy.copy(eval_set)  # each has a transform of its own
    outcome = train_run(options, frozenset(values), Provided(plain, train_set, eval_set))
    if outcome.stopped is not None:
        raise KeyboardInterrupt(f"{outcome.stopped} It is saved in '{outcome.folder}': go on with resume='auto'.")
    return {**(outcome.result or {}), 'folder': str(outcome.folder)}


def evaluate(model: nn.Module, data: Any, options: ValidateOptions | None = None, **values: Any) -> dict[str, Any]:
    """Figures of a model as `timm-hnc validate` gives them.

    Args:
        model: of timm, or a CamModel of one; it is moved to the device.
        data: data set or loader, as `train` takes them.
        options: all options, with timm's defaults.
        **values: options by name, as the flags of validate.py, in place of those.

    Returns:
        Figures by name: loss, top1, top5, and those that were asked for.

    Raises:
        UsageError: options are wrong, alone or together.
        DataError: the data cannot be used.

    Example:
        >>> timm_hnc.evaluate(model, eval_set, batch_size=64, cam_metrics=True)['top1']
    """
    plain = model.model if isinstance(model, CamModel) else model
    options = grouped(ValidateOptions, values if options is None else flattened(options) | values)
    options = replace(options, device=agreed_device(options.device, frozenset(values)))
    _check_loaders(data)
    refuse_unused(options, OF_DATA | {'split', 'num_samples', 'retry'}, 'the data is provided.')
    refuse_unused(options, OF_MODEL | {'pretrained', 'checkpoint', 'use_ema', 'reparam'}, 'the model is provided.')
    if isinstance(data, DataLoader):
        refuse_unused(
            options, {'batch_size', 'crop_border_pixels'}, 'the DataLoader that is provided makes the batches.'
        )
    renew_state(options.device)
    accelerator = Accelerator(mixed_precision=options.device.precision, cpu=options.device.on_cpu)
    set_up_process(accelerator, options.device.fast_norm)
    return measure(plain, data, options, Source(name_of(plain)), accelerator)


def _check_loaders(*data: Any) -> None:
    """Refuse data that the loop cannot take."""
    for each in data:
        if each is None or isinstance(each, DataLoader) or hasattr(each, 'transform'):
            continue
        raise UsageError(
            f"data of type '{type(each).__name__}': expected a data set with an attribute `transform`, which timm's "
            'loader sets, or a torch DataLoader of normalised batches.'
        )
