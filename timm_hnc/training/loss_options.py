"""From options to the arguments of timm's criterion, tried out before any data or weights are read."""

import argparse
from collections.abc import Callable
from typing import Any

from timm.loss import create_classification_loss, load_class_stats, resolve_class_weights
from torch import Tensor

from timm_hnc.command_line import flag_of, require_range
from timm_hnc.errors import UsageError
from timm_hnc.losses.factory import LOSSES

NUMBERS = ('bce_target_thresh', 'asl_gamma_pos', 'asl_gamma_neg', 'asl_clip', 'poly_epsilon', 'poly_gamma')


def mixup_active(args: argparse.Namespace) -> bool:
    """Whether mixup or cutmix makes the targets dense."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def loss_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of timm's `create_classification_loss`, without `multi_label`, which the task passes itself.

    Args:
        args: the options of train.py, checked.

    Returns:
        The arguments; class weights and counts are read from their files.

    Raises:
        UsageError: a file of class weights or counts cannot be used.

    Example:
        >>> HNCTask(cam_model, criterion_kwargs=loss_kwargs(args))
    """
    stats = _read('class_stats', args.class_stats, lambda: load_class_stats(args.class_stats))

    def weights(kind: str, dest: str) -> float | Tensor | None:
        value = getattr(args, dest)
        return _read(
            dest, value, lambda: resolve_class_weights(value, kind, class_stats=stats, power=args.loss_weight_power)
        )

    kwargs = {
        'loss_type': args.loss,
        'smoothing': args.smoothing,
        'soft_targets': mixup_active(args),
        'class_weight': weights('class_weight', 'loss_class_weight'),
        'pos_weight': weights('pos_weight', 'loss_pos_weight'),
        'bce_target_thresh': args.bce_target_thresh,
        'bce_sum': args.bce_sum,
        'asl_gamma_pos': args.asl_gamma_pos,
        'asl_gamma_neg': args.asl_gamma_neg,
        'asl_clip': args.asl_clip,
        'asl_reduction': args.asl_reduction,
        'poly_epsilon': args.poly_epsilon,
        'poly_gamma': args.poly_gamma,
        'poly_alpha': args.poly_alpha,
        'jsd_splits': args.aug_splits,
        'twoway_tp': args.twoway_tp,
        'twoway_tn': args.twoway_tn,
    }
    if args.loss == 'db' and stats is not None:
        kwargs['class_counts'], kwargs['num_samples'] = stats
    return kwargs


def check_loss(args: argparse.Namespace) -> None:
    """Refuse a loss that does not go with the task, the targets or its own settings.

    Raises:
        UsageError: with the flag, its value and what is allowed.
    """
    multi_label = args.task == 'multilabel'
    loss = args.loss or ('bce' if multi_label else 'ce')
    require_range(args, 'smoothing', low=0, below=1)
    require_range(args, 'poly_alpha', low=0, high=1)
    for dest in (*NUMBERS, 'loss_weight_power'):
        require_range(args, dest)
    for dest in ('twoway_tp', 'twoway_tn'):
        require_range(args, dest)
        if getattr(args, dest) <= 0:
            raise UsageError(f'{flag_of(dest)} {getattr(args, dest)}: expected more than 0.')
    if loss in LOSSES:
        return
    if loss == 'jsd' and args.aug_splits < 2:
        raise UsageError(f'--loss jsd: needs --aug-splits of 2 or more, got {args.aug_splits}.')
    if loss == 'db' and not args.class_stats:
        raise UsageError('--loss db: needs --class-stats.')
    kwargs = loss_kwargs(args)
    for dest, name in (
        ('loss_class_weight', 'class_weight'),
        ('loss_pos_weight', 'pos_weight'),
        ('class_stats', 'class_counts'),
    ):
        values = kwargs.get(name)
        if isinstance(values, Tensor) and args.num_classes not in (None, len(values)):
            raise UsageError(
                f'{flag_of(dest)} {getattr(args, dest)}: {len(values)} values for --num-classes {args.num_classes}.'
            )
    try:
        create_classification_loss(multi_label=multi_label, **kwargs)
    except (ValueError, AssertionError) as error:
        raise UsageError(f'--loss {loss} with --task {args.task}: {error or "timm refuses its settings."}') from error


def _read(dest: str, value: str | None, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        hint = ' (no file, method or list of numbers)' if 'could not convert' in str(error) else ''
        raise UsageError(f'{flag_of(dest)} {value}: {str(error).rstrip(".")}{hint}.') from error
