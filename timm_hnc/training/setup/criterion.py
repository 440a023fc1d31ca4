"""From options to the arguments of timm's criterion."""

import argparse
from collections.abc import Callable
from typing import Any

from timm.loss import load_class_stats, resolve_class_weights
from torch import Tensor

from timm_hnc.errors import UsageError
from timm_hnc.files.options import flag_of


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


def _read(dest: str, value: str | None, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        hint = ' (no file, method or list of numbers)' if 'could not convert' in str(error) else ''
        raise UsageError(f'{flag_of(dest)} {value}: {str(error).rstrip(".")}{hint}.') from error
