"""Options of train.py: parsed, those that depend on others filled in, and checked before data and weights."""

import argparse
from collections.abc import Sequence

from timm_hnc.commands.command_line import given_on_command_line, parse_options, refuse
from timm_hnc.commands.options.former_flags import FORMER_FLAGS
from timm_hnc.commands.options.train_checks import HNC_DESTS, check_train_options
from timm_hnc.commands.options.train_flags import build_parser
from timm_hnc.commands.options.validate_options import COMPILE_ADVICE, NAFLEX_ADVICE
from timm_hnc.errors import UsageError
from timm_hnc.losses.factory import LOSSES
from timm_hnc.losses.hnc import DEFAULT_WEIGHTS

__all__ = ['build_parser', 'check_train_options', 'parse_train_options']

DISTILLATION_ADVICE = "train with a teacher in timm's own train.py (--hnc kd is a form of the HNC loss, without one)."


def parse_train_options(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, frozenset[str]]:
    """Parse, complete and check the command line of train.py.

    Args:
        argv: the command line, that of the process if None.

    Returns:
        The options in force, and the destinations that were given on the command line or in the YAML file.

    Raises:
        UsageError: options that cannot work, alone or together.

    Example:
        >>> args, explicit = parse_train_options(['--model', 'resnet18', '--hnc', 'mse'])
        >>> args.hnc_weight, 'hnc_weight' in explicit
        (0.0007, False)
    """
    parser = build_parser()
    args, explicit = parse_options(parser, argv, FORMER_FLAGS)
    refuse(parser, args, explicit, _refused(args))
    given = given_on_command_line(parser, argv)
    if args.hnc == 'none' and 'hnc' in given:
        # a recipe run with `--hnc none`, for comparison: the recipe's own HNC settings go with it
        dropped = set(HNC_DESTS) - given
        for dest in dropped:
            setattr(args, dest, parser.get_default(dest))
        explicit -= dropped
    _complete(args, explicit)
    check_train_options(args, explicit)
    return args, explicit


def _refused(args: argparse.Namespace) -> dict[str, str]:
    distillation = {'distill_loss_weight', 'task_loss_weight'} | {d for d in vars(args) if d.startswith('kd_')}
    naflex = [dest for dest in vars(args) if dest.startswith('naflex_')]
    return {
        'torchscript': COMPILE_ADVICE,
        'fuser': COMPILE_ADVICE,
        'local_rank': 'leave it out; accelerate launch and torchrun set the rank themselves.',
        **dict.fromkeys(naflex, f'{NAFLEX_ADVICE} or --train-img-sizes.'),
        **dict.fromkeys(distillation, DISTILLATION_ADVICE),
    }


def _complete(args: argparse.Namespace, explicit: frozenset[str]) -> None:
    args.data_dir = args.data_dir or args.data
    if args.holdout:
        args.val_split = args.train_split
    args.grad_accum_steps = max(1, args.grad_accum_steps)
    if args.hnc_weight is None and args.hnc != 'none':
        args.hnc_weight = DEFAULT_WEIGHTS[args.hnc]
    if args.task == 'multilabel':
        args.smoothing = args.smoothing if 'smoothing' in explicit else 0.0
        args.eval_metric = args.eval_metric if 'eval_metric' in explicit else 'map'
    for flag, given, loss in (('--bce-loss', args.bce_loss, 'bce'), ('--jsd-loss', args.jsd_loss, 'jsd')):
        if given and args.loss not in (None, loss):
            raise UsageError(f'{flag}: contradicts the loss {args.loss}, give one of the two.')
        args.loss = loss if given else args.loss
    if args.loss in LOSSES and 'smoothing' not in explicit:
        args.smoothing = 0.0
    if args.bce_pos_weight is not None:
        weight = str(args.bce_pos_weight)
        if args.loss_pos_weight not in (None, weight):
            raise UsageError(f'--bce-pos-weight {weight}: contradicts --loss-pos-weight {args.loss_pos_weight}.')
        args.loss_pos_weight = weight
