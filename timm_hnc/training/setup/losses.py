"""The losses of timm_hnc.losses in a run, made with what data and model tell them."""

import logging
from typing import Any

import timm.loss
import torch
from torch.utils.data import Dataset

from timm_hnc.cam import CamModel
from timm_hnc.data.class_counts import class_counts
from timm_hnc.data.options import TaskOptions
from timm_hnc.errors import UsageError
from timm_hnc.losses.base import Loss
from timm_hnc.losses.export import check_classifier
from timm_hnc.losses.factory import LOSSES, create_loss
from timm_hnc.training.setup.loss_options import LossOptions

_logger = logging.getLogger(__name__)


def tried_loss(options: LossOptions, task: TaskOptions) -> Loss:
    """The loss that the options name, made for three classes and two features, to see what it is.

    Raises:
        UsageError: its settings are wrong.
    """
    given: dict[str, Any] = dict(num_classes=3, num_features=2, class_counts=torch.ones(3), num_samples=3)
    given |= {'multi_label': task.multi_label, 'smoothing': options.smoothing}
    try:
        return create_loss(options.loss or '', **given, **options.loss_kwargs)
    except ValueError as error:
        raise UsageError(f'--{error}') from error


def check_loss_fits(options: LossOptions, task: TaskOptions, cam_model: CamModel) -> None:
    """Refuse a model whose head a loss of timm_hnc.losses cannot work with.

    Raises:
        UsageError: with the loss and the head.
    """
    if not options.is_ours:
        return
    try:
        check_classifier(cam_model, tried_loss(options, task))
    except ValueError as error:
        raise UsageError(f'--loss {options.loss}: {error}') from error


def create_run_loss(
    options: LossOptions, task: TaskOptions, smoothed: bool, model: Any, num_classes: int, dataset: Dataset[Any]
) -> Loss | None:
    """The loss that the options name; None where it is one of timm's. From mixup the targets come `smoothed`.

    Raises:
        UsageError: the loss's settings are wrong.
        DataError: the classes cannot be counted.
    """
    if options.loss is None or not options.is_ours:
        return None
    counts, num_samples = None, None
    if task.task in LOSSES[options.loss].counts_for:
        stats = timm.loss.load_class_stats(options.class_stats)
        counts, num_samples = stats or class_counts(dataset, num_classes, task.multi_label)
    try:
        loss = create_loss(
            options.loss,
            num_classes=num_classes,
            num_features=getattr(getattr(model.get_classifier(), 'weight', None), 'shape', (0, 0))[1],
            class_counts=counts,
            num_samples=num_samples,
            multi_label=task.multi_label,
            smoothing=0.0 if smoothed else options.smoothing,
            **options.loss_kwargs,
        )
    except ValueError as error:
        raise UsageError(f'--{error}') from error
    _logger.info(f'Loss: {loss}' + (f'; {loss.export_note}' if loss.export_note else ''))
    return loss
