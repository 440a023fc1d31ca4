#!/usr/bin/env python3
"""What an HNC step costs beside a cross-entropy step, and beside the published way: time and peak memory.

All run in one process on one set of weights, in interleaved rounds whose order turns; ratios are taken round by round,
so that a machine whose speed drifts does not matter. Peak memory is that of fresh processes, one variant each.

    python benchmarks/step_cost.py                                    # ResNet-50 and cifar_resnet110: the limits
    python benchmarks/step_cost.py --preset matrix --memory-runs 0 --out benchmarks/results/step_cost_matrix
    python benchmarks/step_cost.py --trace traces                      # where the added time goes, by torch.profiler
    python benchmarks/step_cost.py --model resnet18 --classes 100 1000 --topk 1 10 --dtype float32 bfloat16

Several values of an option are measured each with each. With --out the table is written to OUT.md and OUT.csv.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from arguments import at_least
from steps.cases import PRESETS, Case
from steps.measure import VARIANTS, peak_memory, time_rounds
from steps.table import Row, machine, write
from steps.trace import trace
from timm.utils import ParseKwargs

import timm_hnc  # noqa: F401  # registers the CIFAR networks
from timm_hnc.commands.command_line import run_command
from timm_hnc.training.setup.models import check_model_name

# of one network, with --model: each with each
_LISTS = {'classes': [1000], 'topk': [100], 'img_size': [224], 'dtype': ['float32'], 'mode': ['eager']}
_SINGLE = {'batch_size': 8, 'model_kwargs': {}}


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--preset', choices=PRESETS, default='limits', help='unless --model is given')
    parser.add_argument('--model', nargs='+')
    of_model = parser.add_argument_group('with --model')
    of_model.add_argument('--model-kwargs', nargs='*', action=ParseKwargs, help='as in timm: name=value ...')
    number, texts = {'type': at_least(1), 'nargs': '+', 'metavar': 'N'}, {'nargs': '+'}
    of_model.add_argument('--classes', **number, help=f'default: {_LISTS["classes"][0]}')
    of_model.add_argument('--topk', **number, help=f'default: {_LISTS["topk"][0]}')
    of_model.add_argument('--img-size', **number, help=f'default: {_LISTS["img_size"][0]}')
    of_model.add_argument('--dtype', **texts, choices=('float32', 'bfloat16'), help=f'default: {_LISTS["dtype"][0]}')
    of_model.add_argument('--mode', **texts, choices=('eager', 'compiled'), help=f'default: {_LISTS["mode"][0]}')
    of_model.add_argument('--batch-size', type=at_least(1), metavar='N', help=f'default: {_SINGLE["batch_size"]}')
    parser.add_argument('--pairs', type=at_least(1), help='rounds to time (default: 40, or the preset)')
    parser.add_argument('--variants', nargs='+', default=['mse', 'full'], choices=VARIANTS[1:])
    parser.add_argument('--memory-runs', type=at_least(0), default=3, help='fresh processes a variant, 0 for none')
    parser.add_argument('--out', type=Path, metavar='PATH', help='write PATH.md and PATH.csv')
    parser.add_argument('--trace', type=Path, metavar='DIR', help='profile instead, traces go to DIR')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser


def cases_of(args: argparse.Namespace) -> list[Case]:
    """What the command line asks for."""
    pairs = {} if args.pairs is None else {'pairs': args.pairs}
    if args.model is None:
        return [Case(**{**vars(case), **pairs}) for case in PRESETS[args.preset]]
    given = {name: getattr(args, name) for name in (*_LISTS, *_SINGLE) if getattr(args, name) is not None}
    single = {name: given.get(name, default) for name, default in _SINGLE.items()} | pairs
    lists = {'model': args.model} | {name: given.get(name, default) for name, default in _LISTS.items()}
    return [Case(**dict(zip(lists, chosen, strict=True)), **single) for chosen in product(*lists.values())]


def measure(case: Case, args: argparse.Namespace) -> list[Row]:
    """The rows of a case, a variant each; what compiling itself takes is no part of a step's memory on a CPU."""
    variants = ['ce', *args.variants]
    peaks = {}
    if args.memory_runs and not (case.mode == 'compiled' and args.device == 'cpu'):
        peaks = {variant: peak_memory(case, variant, args.device, args.memory_runs) for variant in variants}
    seconds = time_rounds(case, variants, args.device)
    return [
        Row.of(case, each, seconds['ce'], seconds[each], peaks[each] / peaks['ce'] if peaks else None)
        for each in args.variants
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    args.variants = [*dict.fromkeys(args.variants)]
    alone = [name for name in (*_LISTS, *_SINGLE) if args.model is None and getattr(args, name) is not None]
    if alone:
        parser.error(f'--{alone[0].replace("_", "-")}: needs --model; a preset has its own.')
    for name in args.model or ():
        check_model_name(name, '--model')
    print(machine(args.device), flush=True)
    rows: list[Row] = []
    for case in cases_of(args):
        if args.trace is not None:
            print(f'\n{case.describe()}\n\n{trace(case, args.variants[0], args.device, args.trace)}', flush=True)
            continue
        rows.extend(measure(case, args))
        for row in rows[-len(args.variants) :]:
            print(row.markdown(), flush=True)
        if args.out is not None:
            write(rows, args.out, args.device, ' '.join(['python', *sys.argv]))


if __name__ == '__main__':
    sys.exit(run_command(main))
