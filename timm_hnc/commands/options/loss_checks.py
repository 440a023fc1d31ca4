"""What a loss of timm's asks of the options, tried out before any data or weights are read."""

import argparse

from timm.loss import create_classification_loss
from torch import Tensor

from timm_hnc.commands.command_line import require_range
from timm_hnc.errors import UsageError
from timm_hnc.files.options import flag_of
from timm_hnc.losses.factory import LOSSES
from timm_hnc.training.setup.criterion import loss_kwargs

NUMBERS = ('bce_target_thresh', 'asl_gamma_pos', 'asl_gamma_neg', 'asl_clip', 'poly_epsilon', 'poly_gamma')


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
