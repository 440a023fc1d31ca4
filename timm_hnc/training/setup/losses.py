"""The losses of timm_hnc.losses in a run: checked from the options, made with what data and model tell them."""

import logging
from argparse import Namespace
from typing import Any

import timm.loss
from torch.utils.data import Dataset

from timm_hnc.cam import CamModel
from timm_hnc.data.class_counts import class_counts
from timm_hnc.data.datasets import is_streamed
from timm_hnc.errors import UsageError
from timm_hnc.losses.base import Loss
from timm_hnc.losses.export import check_classifier
from timm_hnc.losses.factory import LOSSES, create_loss, try_loss
from timm_hnc.training.setup.criterion import mixup_active

LOSS_LR = 0.5  # of the centers of center loss, their paper's alpha
_logger = logging.getLogger(__name__)


def is_ours(args: Namespace) -> bool:
    """Whether --loss names one of timm_hnc.losses."""
    return args.loss in LOSSES


def needs_class_maps(args: Namespace) -> bool:
    """Whether the losses of a run look at class maps."""
    return args.hnc != 'none' or (is_ours(args) and LOSSES[args.loss].needs != 'logits')


def check_loss_by_name(args: Namespace) -> None:
    """Refuse a loss of timm_hnc.losses that does not go with the task, the targets, the data or its own settings.

    Raises:
        UsageError: with the flag, its value and what is allowed.
    """
    if not is_ours(args):
        if args.loss_kwargs:
            raise UsageError(
                f'--loss-kwargs: for --loss {", ".join(LOSSES)} only; empty, it leaves out those of a YAML file.'
            )
        _check_loss_lr(args)
        return
    kind = LOSSES[args.loss]
    if args.task not in kind.tasks:
        raise UsageError(f'--loss {args.loss}: for --task {" and ".join(kind.tasks)} only.')
    if mixup_active(args) and not kind.soft_targets:
        raise UsageError(f'--loss {args.loss}: not together with --mixup or --cutmix.')
    if args.smoothing and not kind.soft_targets:
        raise UsageError(f'--smoothing {args.smoothing:g}: --loss {args.loss} takes none.')
    if args.task in kind.counts_for and is_streamed(args.dataset) and not args.class_stats:
        raise UsageError(
            f'--loss {args.loss}: {args.dataset} is streamed, its classes cannot be counted: give --class-stats.'
        )
    try:
        loss = try_loss(args.loss, args.task == 'multilabel', args.smoothing, args.loss_kwargs)
    except ValueError as error:
        raise UsageError(f'--{error}') from error
    if not list(loss.parameters()):
        _check_loss_lr(args)


def _check_loss_lr(args: Namespace) -> None:
    if args.loss_lr != LOSS_LR:
        raise UsageError(f'--loss-lr {args.loss_lr:g}: --loss {args.loss or "ce"} learns nothing of its own.')


def check_loss_fits(args: Namespace, cam_model: CamModel) -> None:
    """Refuse a model whose head a loss of timm_hnc.losses cannot work with.

    Raises:
        UsageError: with the loss and the head.
    """
    if not is_ours(args):
        return
    try:
        check_classifier(cam_model, try_loss(args.loss, args.task == 'multilabel', args.smoothing, args.loss_kwargs))
    except ValueError as error:
        raise UsageError(f'--loss {args.loss}: {error}') from error


def create_run_loss(args: Namespace, model: Any, dataset: Dataset) -> Loss | None:
    """The loss that --loss names; None where it is one of timm's.

    Args:
        args: options of the run.
        model: plain timm model.
        dataset: training data, whose classes are counted where the loss wants that and --class-stats is not given.

    Raises:
        DataError: the classes cannot be counted.
    """
    if not is_ours(args):
        return None
    kind, multi_label = LOSSES[args.loss], args.task == 'multilabel'
    counts, num_samples = None, None
    if args.task in kind.counts_for:
        stats = timm.loss.load_class_stats(args.class_stats)
        counts, num_samples = stats or class_counts(dataset, args.num_classes, multi_label)
    try:
        loss = create_loss(
            args.loss,
            num_classes=args.num_classes,
            num_features=getattr(getattr(model.get_classifier(), 'weight', None), 'shape', (0, 0))[1],
            class_counts=counts,
            num_samples=num_samples,
            multi_label=multi_label,
            smoothing=0.0 if mixup_active(args) else args.smoothing,  # mixup has smoothed its targets
            **args.loss_kwargs,
        )
    except ValueError as error:
        raise UsageError(f'--{error}') from error
    _logger.info(f'Loss: {loss}' + (f'; {loss.export_note}' if loss.export_note else ''))
    return loss
