"""Train and evaluate from Python: the loop and the validation pass of the commands, on what a notebook has."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.hooked_head import is_of_timm
from timm_hnc.cam.heads.probe import name_of
from timm_hnc.data.inputs import InputOptions
from timm_hnc.data.loading.wrapped_dataset import follow_transform
from timm_hnc.data.naflex import NaFlexOptions
from timm_hnc.errors import UsageError
from timm_hnc.evaluation.options import ValidateOptions
from timm_hnc.evaluation.sources import Source
from timm_hnc.evaluation.validation import measure
from timm_hnc.options import flattened, grouped
from timm_hnc.runtime.device import agreed_device
from timm_hnc.runtime.process import evaluation_accelerator, settings_kept
from timm_hnc.training.run import train_run
from timm_hnc.training.setup.options import TrainOptions, train_options
from timm_hnc.training.setup.provided import (
    OF_DATA,
    OF_MODEL,
    Provided,
    check_num_classes,
    fitted_options,
    refuse_unused,
)

_OF_IMAGES = ('crop_border_pixels', 'crop_mode', 'crop_pct', 'interpolation', 'tf_preprocessing', 'use_train_size')
_OF_NAFLEX = {each.name for each in fields(NaFlexOptions)}


def train(
    model: nn.Module, train_set: Any, eval_set: Any = None, options: TrainOptions | None = None, **values: Any
) -> dict[str, Any]:
    """Train a model with the loop of `timm-hnc train`; the run folder is that of the command.

    Args:
        model: any that `CamModel` takes, or a CamModel of one (which knows where the features of a model are that is
            none of timm's). It trains in place, and ends with its best weights where it has no moving average; with
            FSDP it stays in parts, and the run folder has the weights.
        train_set: data set of images and targets with a settable `transform`, as those of timm and torchvision, which
            is timm's augmentation meanwhile; or a loader of normalised batches (B, C, H, W) and targets, (B,) or
            (B, n).
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
    plain, wrap = _parts(model)
    told = plain if is_of_timm(plain) else wrap(plain)  # says how many classes it has
    named = values | {'model': name_of(plain)} | ({'val_split': ''} if eval_set is None else {})
    options = train_options(named) if options is None else options.changed(**named)
    _check_loaders(train_set, eval_set)
    if eval_set is not None and not options.splits.val_split:
        raise UsageError("--val-split '': evaluates nothing, and validation data is given; leave one of the two out.")
    options = fitted_options(options, frozenset(values), told, train_set, eval_set)
    if isinstance(told, CamModel):
        if options.hub.push_to_hub:
            raise UsageError(f"--push-to-hub: '{name_of(plain)}' is none of timm's models, and timm would not load it.")
        options.naflex.patches(plain)  # which refuses them
        options = replace(options, input=_input_of(told, options.input))
    if eval_set is train_set and not isinstance(eval_set, DataLoader):
        eval_set = copy.copy(eval_set)  # each has a transform of its own
    try:
        with _as_they_were(train_set, eval_set):
            outcome = train_run(options, frozenset(values), Provided(plain, train_set, eval_set, wrap))
    finally:
        if hasattr(plain, 'set_distilled_training'):
            plain.set_distilled_training(False)  # as timm's distillation leaves it
    if outcome.stopped is not None:
        raise KeyboardInterrupt(f"{outcome.stopped} It is saved: go on with resume='{outcome.folder}'.")
    return {**(outcome.result or {}), 'folder': str(outcome.folder)}


def evaluate(model: nn.Module, data: Any, options: ValidateOptions | None = None, **values: Any) -> dict[str, Any]:
    """Figures of a model as `timm-hnc validate` gives them.

    Args:
        model: as `train` takes it; it is moved to the device, or with `model_dtype` a copy of it.
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
    plain, wrap = _parts(model)
    options = grouped(ValidateOptions, values if options is None else flattened(options) | values)
    options = replace(options, device=agreed_device(options.device, frozenset(values)))
    told = plain if is_of_timm(plain) else wrap(plain)
    check_num_classes(options.input, told)
    _check_loaders(data)
    refuse_unused(options, OF_DATA | {'split', 'num_samples', 'retry'}, 'the data is provided.')
    refuse_unused(options, OF_MODEL | {'pretrained', 'checkpoint', 'use_ema', 'reparam'}, 'the model is provided.')
    if isinstance(data, DataLoader):
        refuse_unused(
            options,
            {'batch_size', *_OF_IMAGES, *_OF_NAFLEX},
            'the DataLoader that is provided makes the batches.',
        )
    if isinstance(told, CamModel):
        options.naflex.patches(plain)  # which refuses them
        options = replace(options, input=_input_of(told, options.input))
    if options.device.model_dtype:
        plain = copy.deepcopy(plain)  # whose own weights keep their digits
    with _as_they_were(data):
        accelerator = evaluation_accelerator(options.device)
        return measure(plain, data, options, Source(name_of(plain)), accelerator, wrap)


def _parts(model: nn.Module) -> tuple[Any, Callable[[Any], CamModel]]:
    """The plain model, and what makes a CamModel of it and of its copies.

    Raises:
        UsageError: it is none of timm's, and has no exact class maps, or it is compiled.
    """
    if hasattr(model, '_orig_mod'):
        raise UsageError("the model is compiled: give the plain one, and torchcompile='inductor'.")
    if isinstance(model, CamModel):
        return model.model, model.around
    if is_of_timm(model):
        return model, CamModel
    return model, CamModel(model).around


def _input_of(cam_model: CamModel, options: InputOptions) -> InputOptions:
    """Of a model that has no config of timm's: its classes, and the size of its images where nobody says another."""
    size = cam_model.data_config['input_size']
    if options.img_size:
        size = (size[0], options.img_size, options.img_size)
    return replace(options, num_classes=cam_model.num_classes, input_size=options.input_size or size, img_size=None)


def _check_loaders(*data: Any) -> None:
    """Refuse data that the loop cannot take."""
    for each in data:
        if each is None or isinstance(each, DataLoader):
            continue
        if not hasattr(each, 'transform') or not _uses_transform(each):
            raise UsageError(
                f"data of type '{type(each).__name__}': expected a data set with an attribute `transform` that its "
                "images go through, which timm's loader sets, or a torch DataLoader of normalised batches."
            )


def _uses_transform(dataset: Any) -> bool:
    """Whether the first image goes through the attribute; what cannot be read is told later."""
    if isinstance(dataset, IterableDataset):
        return True
    own, seen = dataset.transform, []

    def transform(image: Any) -> Any:
        seen.append(True)
        return image if own is None else own(image)

    with _as_they_were(dataset):
        try:
            dataset.transform = transform
            follow_transform(dataset)
            dataset[0]
        except Exception:  # somebody's data set may raise anything
            return True
    return bool(seen)


@contextmanager
def _as_they_were(*data: Any) -> Iterator[None]:
    """Data sets have their own transforms again afterwards, torch, logging and Accelerate their settings."""
    kept = [(each, each.transform) for each in data if hasattr(each, 'transform')]
    try:
        with settings_kept():
            yield
    finally:
        for each in data:
            getattr(each, '__dict__', {}).pop('skipped_images', None)  # it can be neither copied nor pickled
        for each, transform in kept:
            with suppress(Exception):  # of somebody's data set that takes no such transform; the run is done
                each.transform = transform
                follow_transform(each)
