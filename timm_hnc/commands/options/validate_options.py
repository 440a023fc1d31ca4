"""The command line of validate.py to its options: timm's flags with timm's meaning, and ours."""

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from timm_hnc.attacks.attacks import ATTACKS
from timm_hnc.commands.options.flags import add_flags, split_values
from timm_hnc.commands.options.parsing import CommandParser, parse_options, refuse
from timm_hnc.commands.options.shared import (
    COMPILE_ADVICE,
    add_data_flags,
    add_device_flags,
    add_input_flags,
    add_loader_flags,
)
from timm_hnc.data.naflex import NaFlexOptions
from timm_hnc.errors import UsageError
from timm_hnc.evaluation.labels import LabelOptions
from timm_hnc.evaluation.map_pass import MapOptions
from timm_hnc.evaluation.options import EvaluationOptions, ValidateOptions
from timm_hnc.evaluation.robustness import AttackOptions
from timm_hnc.evaluation.sources import SourceOptions
from timm_hnc.files.run_options import find_run, read_options
from timm_hnc.launcher import command_words
from timm_hnc.options import grouped

REFUSED = {
    'torchscript': COMPILE_ADVICE,
    'fuser': COMPILE_ADVICE,
    'aot_autograd': COMPILE_ADVICE,
    'num_gpu': 'use accelerate launch --num_processes N validate.py ... or torchrun.',
}
# options of a run that say how its model is evaluated on any data, and which data it validated on
_OF_A_MODEL = (
    *('task', 'multilabel_threshold', 'input_img_mode'),
    *('naflex_loader', 'naflex_max_seq_len', 'naflex_patchify_channels_first'),
)
_OF_ITS_DATA = ('dataset', 'class_map', 'input_key', 'target_key', 'target_format', 'in_chans')


def fraction(text: str) -> float:
    """A number, also one written as 8/255."""
    try:
        return float(Fraction(text))
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(text) from error


def build_parser() -> argparse.ArgumentParser:
    """The parser of validate.py: every flag of timm's script, and those of the task, of attacks and of maps."""
    parser = CommandParser(
        prog=' '.join(command_words('validate.py')),
        description='Evaluate a timm image classifier.',
    )
    add_data_flags(parser)
    add_flags(parser, 'model', SourceOptions, {'model': {'also': '-m'}, 'checkpoint': {'metavar': 'PATH'}})
    add_input_flags(parser)
    add_flags(parser, 'evaluation', EvaluationOptions, {'batch_size': {'short': '-b'}})
    attacks: dict[str, Any] = {
        'attack': {'choices': ATTACKS, 'metavar': None},
        'attack_eps': {'type': fraction, 'metavar': 'EPS'},
        'attack_step_size': {'type': fraction},
    }
    add_flags(parser, 'attacks', AttackOptions, attacks)
    files = {'boxes_dir': {'metavar': 'DIR'}, 'boxes_key': {'metavar': 'KEY'}, 'cam_classes_file': {'metavar': 'FILE'}}
    add_flags(parser, 'class activation maps', MapOptions, files)
    add_loader_flags(parser)
    add_device_flags(parser)
    add_flags(parser, 'images of any shape', NaFlexOptions)
    labels = {name: {'metavar': 'FILE'} for name in ('real_labels', 'valid_labels')}
    add = add_flags(parser, 'results', LabelOptions, labels).add_argument
    add('--results-file', type=str, default='', metavar='FILE', help='where the results are written')
    add(
        '--results-format',
        type=str,
        default='csv',
        metavar='FORMAT',
        help='csv or json; always json where the name ends so',
    )
    add, hidden = parser.add_argument_group('not supported').add_argument, argparse.SUPPRESS
    add('--aot-autograd', action='store_true', help=hidden)
    add('--num-gpu', type=int, default=1, help=hidden)
    return parser


def parse_validate_options(
    argv: Sequence[str] | None = None,
) -> tuple[ValidateOptions, frozenset[str], dict[str, Any]]:
    """Parse and check the command line of validate.py.

    Returns:
        The options, the names of those that were given, and the values that the command line has besides: where the
        results go, and what is refused.
    """
    parser = build_parser()
    args, explicit = parse_options(parser, argv)
    refuse(parser, args, explicit, REFUSED)
    # in timm's validate.py the positional folder comes first; in its train.py --data-dir does
    args.data_dir = args.data or args.data_dir
    if args.results_format not in ('csv', 'json'):
        raise UsageError(f"--results-format '{args.results_format}': expected one of csv, json.")
    values, own = split_values(args, ValidateOptions)
    options = grouped(ValidateOptions, values)
    of_the_run = options_from_run(options.model.checkpoint, explicit)
    if options.data.holdout and 'split' not in explicit | of_the_run.keys():
        raise UsageError(f'--holdout {options.data.holdout:g}: is of training images, name their split: --split train.')
    return grouped(ValidateOptions, values | of_the_run) if of_the_run else options, explicit, own


def _is_of_the_run(path: Path, folder: Path) -> bool:
    """Whether weights are the run's own, and no file that somebody put below its folder."""
    return (
        not path.is_file() or path.absolute().parent == folder or path.resolve().parent.name in ('model', 'model_best')
    )


def options_from_run(checkpoint: str, explicit: frozenset[str]) -> dict[str, Any]:
    """Options by which a run is validated as it was trained, on its own validation data unless other data is named.

    Args:
        checkpoint: perhaps a run folder, or weights in one.
        explicit: names of the options that were given.
    """
    folder, other_data = find_run(Path(checkpoint)) if checkpoint else None, {'data', 'data_dir', 'dataset'} & explicit
    if folder is None or (other_data and not _is_of_the_run(Path(checkpoint), folder)):
        return {}
    run = read_options(folder)
    if other_data and 'hnc' not in run:  # a run of timm's own script
        return {}
    names = (*_OF_A_MODEL, *(() if other_data else _OF_ITS_DATA))
    found = {name: run[name] for name in names if name not in explicit and name in run}
    if {'img_size', 'input_size'} & explicit:  # images of one size, then
        found.pop('naflex_loader', None)
    if other_data:
        return found
    found['data_dir'] = run.get('data_dir')
    # where the run has no held-out images, its split is of validation images, of which none are held out
    if 'split' not in explicit and run.get('val_split') and (run.get('holdout') or 'holdout' not in explicit):
        found['split'] = run['val_split']
        if 'num_samples' not in explicit and run.get('val_num_samples'):
            found['num_samples'] = run['val_num_samples']
    if run.get('holdout') and 'holdout' in explicit:
        # another seed would hold out images that the run was trained on
        found |= {} if 'seed' in explicit else {'seed': run['seed']}
    elif run.get('holdout') and 'split' not in explicit:
        if 'seed' in explicit:
            raise UsageError(f"--seed: the run's held-out images are those of its own seed, {run['seed']}.")
        found |= {'holdout': run['holdout'], 'seed': run['seed']}
    return found
