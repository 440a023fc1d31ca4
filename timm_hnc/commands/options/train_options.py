"""The command line of train.py to its options."""

import argparse
from collections.abc import Sequence, Set
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

_SPELLINGS = (
    ('data_dir', 'data'),
    ('drop_path', 'drop_connect'),
    ('loss', 'bce_loss', 'jsd_loss'),
    ('loss_pos_weight', 'bce_pos_weight'),
)


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
    _drop_what_is_said_anew(parser, args, given.keys())
    _use_older_flags(args)
    values, own = split_values(args, TrainOptions)
    return train_options(values, explicit), explicit, own


def _drop_what_is_said_anew(parser: argparse.ArgumentParser, args: argparse.Namespace, given: Set[str]) -> None:
    """Of several spellings of an option, one on the command line wins over another in the file."""
    for spellings in _SPELLINGS:
        if not given.isdisjoint(spellings):
            for name in set(spellings) - set(given):
                setattr(args, name, parser.get_default(name))


def _use_older_flags(args: argparse.Namespace) -> None:
    """Let options have what older flags say."""
    args.data_dir = args.data_dir or args.data
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
