#!/usr/bin/env python3
"""What a HNC step costs beside a cross-entropy step, and beside the published way: time and peak memory.

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
from itertools import product
from pathlib import Path

import torch
from steps.cases import PRESETS, Case
from steps.measure import VARIANTS, peak_memory, time_rounds
from steps.table import Row, machine, write
from steps.trace import trace
from timm.utils import ParseKwargs

import timm_hnc  # noqa: F401  # registers the CIFAR networks

_LISTS = ('model', 'classes', 'topk', 'img_size', 'dtype', 'mode')


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--preset', choices=PRESETS, default='limits', help='unless --model is given')
    parser.add_argument('--model', nargs='+')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='as in timm: name=value ...')
    parser.add_argument('--classes', type=int, nargs='+', default=[1000])
    parser.add_argument('--topk', type=int, nargs='+', default=[100])
    parser.add_argument('--img-size', type=int, nargs='+', default=[224])
    parser.add_argument('--dtype', nargs='+', default=['float32'], choices=('float32', 'bfloat16'))
    parser.add_argument('--mode', nargs='+', default=['eager'], choices=('eager', 'compiled'))
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--pairs', type=int, help='rounds to time (default: 40, or the preset)')
    parser.add_argument('--variants', nargs='+', default=['mse', 'full'], choices=VARIANTS[1:])
    parser.add_argument('--memory-runs', type=int, default=3, help='fresh processes a variant, 0 for none')
    parser.add_argument('--out', type=Path, metavar='PATH', help='write PATH.md and PATH.csv')
    parser.add_argument('--trace', type=Path, metavar='DIR', help='profile instead, traces go to DIR')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser


def cases_of(args: argparse.Namespace) -> list[Case]:
    """What the command line asks for."""
    pairs = {} if args.pairs is None else {'pairs': args.pairs}
    if args.model is None:
        return [Case(**{**vars(case), **pairs}) for case in PRESETS[args.preset]]
    fixed = {'batch_size': args.batch_size, 'model_kwargs': args.model_kwargs, **pairs}
    values = product(*(getattr(args, name) for name in _LISTS))
    return [Case(**dict(zip(_LISTS, chosen, strict=True)), **fixed) for chosen in values]


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


def main() -> None:
    args = build_parser().parse_args()
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
    main()
