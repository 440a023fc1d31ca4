"""The command line of train.py to its options."""

import argparse
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any

from timm_hnc.commands.options.flags import split_values
from timm_hnc.commands.options.former_flags import FORMER_FLAGS
from timm_hnc.commands.options.parsing import given_on_command_line, parse_options, refuse
from timm_hnc.commands.options.shared import COMPILE_ADVICE
from timm_hnc.commands.options.train_flags import build_parser
from timm_hnc.errors import UsageError
from timm_hnc.training.setup.objective.loss_options import HNCOptions
from timm_hnc.training.setup.options import TrainOptions, given_values, train_options

_REFUSED = {
    'torchscript': COMPILE_ADVICE,
    'fuser': COMPILE_ADVICE,
    'local_rank': 'leave it out; accelerate launch and torchrun set the rank themselves.',
}


def parse_train_options(
    argv: Sequence[str] | None = None,
) -> tuple[TrainOptions, frozenset[str], dict[str, Any]]:
    """Parse, complete and check the command line of train.py.

    Returns:
        The options, the names of those that were given on the command line or in the YAML file, and the values that the
        command line has besides: older spellings, the YAML file, and what is refused.
    """
    parser = build_parser()
    args, explicit = parse_options(parser, argv, FORMER_FLAGS, given_values)
    refuse(parser, args, explicit, _REFUSED)
    given = given_on_command_line(parser, argv)
    if args.hnc == 'none' and 'hnc' in given:
        # a recipe run with `--hnc none`, for comparison: the recipe's own HNC settings go with it
        dropped = {each.name for each in fields(HNCOptions) if each.name != 'hnc'} - given.keys()
        for name in dropped:
            setattr(args, name, parser.get_default(name))
        explicit -= dropped
    _use_older_flags(args, given.keys())
    values, own = split_values(args, TrainOptions)
    return train_options(values, explicit), explicit, own


def _use_older_flags(args: argparse.Namespace, given: Collection[str]) -> None:
    """Let options have what older flags say; of both, the one that is given on the command line wins over a file's."""
    if args.data and not (args.data_dir and ('data_dir' in given or 'data' not in given)):
        args.data_dir = args.data
    if 'loss' in given:
        args.bce_loss, args.jsd_loss = args.bce_loss and 'bce_loss' in given, args.jsd_loss and 'jsd_loss' in given
    if 'loss_pos_weight' in given and 'bce_pos_weight' not in given:
        args.bce_pos_weight = None
    args.drop_path = args.drop_connect if args.drop_path is None else args.drop_path
    for flag, is_set, loss in (('--bce-loss', args.bce_loss, 'bce'), ('--jsd-loss', args.jsd_loss, 'jsd')):
        if is_set and args.loss not in (None, loss):
            raise UsageError(f'{flag}: contradicts the loss {args.loss}, give one of the two.')
        args.loss = loss if is_set else args.loss
    if args.bce_pos_weight is not None:
        weight = str(args.bce_pos_weight)
        if args.loss_pos_weight not in (None, weight):
            raise UsageError(f'--bce-pos-weight {weight}: contradicts --loss-pos-weight {args.loss_pos_weight}.')
        args.loss_pos_weight = weight
