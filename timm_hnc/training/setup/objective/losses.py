"""The losses of timm_hnc.losses in a run, made with what data and model tell them."""

import logging
from typing import Any

import torch
from torch.utils.data import Dataset

from timm_hnc.data.labels import class_counts
from timm_hnc.data.options import TaskOptions
from timm_hnc.errors import UsageError
from timm_hnc.losses.base import Loss
from timm_hnc.losses.factory import create_loss
from timm_hnc.training.setup.objective.criterion import read_class_stats
from timm_hnc.training.setup.objective.loss_options import LossOptions

_logger = logging.getLogger(__name__)


def loss_of(options: LossOptions, task: TaskOptions, num_classes: int | None = None, **given: Any) -> Loss:
    """The loss that the options name, made as `given`, else for three classes and two features, to see what it is."""
    classes = num_classes or 3
    made: dict[str, Any] = dict(
        num_classes=classes, num_features=2, class_counts=torch.ones(classes), num_samples=classes
    )
    made |= {'multi_label': task.multi_label, 'smoothing': options.smoothing} | given
    try:
        return create_loss(options.loss or '', **made, **options.loss_kwargs)
    except ValueError as error:
        raise UsageError(f'--{error}') from error


def create_run_loss(
    options: LossOptions, task: TaskOptions, smoothed: bool, model: Any, num_classes: int, dataset: Dataset[Any]
) -> Loss | None:
    """The loss that the options name; None where it is one of timm's. From mixup the targets come `smoothed`."""
    if options.kind is None:
        return None
    counts, num_samples = None, None
    if task.task in options.kind.counts_for:
        stats = read_class_stats(options, num_classes)
        counts, num_samples = stats or class_counts(dataset, num_classes, task.multi_label)
    classifier = model.get_classifier() if hasattr(model, 'get_classifier') else None  # of timm's models alone
    features = getattr(getattr(classifier, 'weight', None), 'shape', (0, 0))[1]
    given: dict[str, Any] = dict(class_counts=counts, num_samples=num_samples, num_features=features)
    loss = loss_of(options, task, num_classes, **given, smoothing=0.0 if smoothed else options.smoothing)
    _logger.info(f'Loss: {loss}' + (f'; {loss.export_note}' if loss.export_note else ''))
    return loss
