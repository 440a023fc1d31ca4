#!/usr/bin/env python3
"""Does HNC help, where, and with which weight? Pairs of runs with the same seeds, and settings chosen on other images.

    python benchmarks/evidence.py run voc-short --data-dir VOC2007 --out OUT --jobs 2        # trials, then the runs
    python benchmarks/evidence.py run cifar-5000 --data-dir CIFAR100 --out OUT --rows baseline mse kd
    python benchmarks/evidence.py table --out OUT --keep benchmarks/results/evidence         # of all that is complete
    python benchmarks/evidence.py run voc-short --data-dir VOC2007 --out OUT --kept benchmarks/results/evidence

`run` tries the settings of every row on held-out training images (two seeds), keeps the best in OUT/REGIME/chosen.json,
where it stays, and trains every row on all training images, each with the same seeds, which were not tried before. Kill
it and start it again at will: complete runs are passed over, others go on from their last checkpoint. What follows `--`
goes to train.py and wins, but for seeds. With --kept it goes on where another machine stopped: what that one completed
counts.

`table` writes each run's args.yaml, summary.csv, figures.json and result.json to --keep, beside what is kept there, and
the tables and a picture of all of it.

A data folder is a Hugging Face-style one with parquet files. Start from a clone of a fixed commit, in an environment of
its own, when work on the code goes on beside it.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from arguments import at_least
from evidence.figures import run_figures
from evidence.kept import take_up
from evidence.plot import draw
from evidence.regimes import REGIMES, Regime, Row
from evidence.runs import Stage, due_runs
from evidence.table import write
from lite import MODEL, pretrained_lite
from safetensors.torch import save_file
from tables.execute import execute, told
from tables.runs import data_flags

from timm_hnc.commands.command_line import run_command
from timm_hnc.errors import DataError, UsageError
from timm_hnc.files.whole import write_whole
from timm_hnc.plots.figures import as_image


def build_parser() -> argparse.ArgumentParser:
    """The parser of all parts; what follows `--` is not its own."""
    parser = argparse.ArgumentParser(
        prog='evidence.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest='part', required=True, metavar='PART')
    run = parts.add_parser('run', help='choose settings and train')
    run.add_argument('--jobs', type=at_least(1), default=1, metavar='J', help='runs at a time (default: 1)')
    run.add_argument('--seeds', type=at_least(1), metavar='N', help="runs of a row (default: the regime's)")
    run.add_argument('--rows', nargs='+', metavar='KEY', help='only these rows')
    run.add_argument('--launcher', default='', metavar='COMMAND', help='stands before the scripts in place of Python')
    run.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder of regimes')
    run.add_argument('--kept', type=Path, metavar='DIR', help='what `table --keep` wrote: its complete runs count')
    table = parts.add_parser('table', help='write the tables of what is complete')
    table.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder of regimes')
    table.add_argument('--keep', type=Path, metavar='DIR', help="write tables, picture and runs' files to this folder")
    figures = parts.add_parser('figures', help='measure one trained network')
    figures.add_argument('--run', type=Path, required=True, metavar='DIR', help='run folder')
    for part in (run, figures):
        part.add_argument('regime', choices=REGIMES, metavar='REGIME', help=', '.join(REGIMES))
        part.add_argument('--data-dir', required=True, metavar='DIR', help='folder of parquet files')
    return parser


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Do what is missing of a regime; the exit code: 1 if a run failed, the others go on."""
    if args.kept and not args.kept.is_dir():
        raise UsageError(f"--kept '{args.kept}': no such folder.")
    regime = REGIMES[args.regime]
    rows = _rows(regime, args.rows)
    stage = Stage(regime, args.out / regime.key, args.data_dir, _flags(regime, args), extra)
    stage.folder.mkdir(parents=True, exist_ok=True)
    if args.kept:
        take_up(regime, stage.folder, args.kept)
    seeds = args.seeds or regime.seeds
    for row in rows:
        _check_teacher(stage, row, seeds, [each.key for each in rows])
    failures = execute(lambda: due_runs(stage, rows, seeds), args.jobs, args.launcher, failures=stage.failed)
    return told(failures, 'evidence.py')


def _check_teacher(stage: Stage, row: Row, seeds: int, rows: Sequence[str]) -> None:
    """Refuse a row whose teacher is not here and will not be trained."""
    teacher = stage.teacher(row)
    if teacher is None or not any(run.lacks_teacher for run in stage.measured(row, None, seeds)):
        return
    if teacher.next_step != 'train':
        raise UsageError(f'--rows {row.key}: its teacher, {teacher.name}, was kept without weights: leave out --kept.')
    if row.teacher not in rows:
        raise UsageError(f'--rows {row.key}: its teacher, {teacher.name}, is not trained: add {row.teacher}.')


def table(args: argparse.Namespace) -> int:
    """Write the tables; the exit code.

    Raises:
        DataError: nothing is complete.
    """
    text = write(args.out, args.keep)
    if not text:
        raise DataError(f"--out '{args.out}': no row of a regime is complete in it.")
    if args.keep:
        as_image(draw(args.keep)).save(args.keep / 'evidence.png', optimize=True)
    print(text)
    return 0


def figures(args: argparse.Namespace) -> int:
    """Write figures.json of a run; the exit code."""
    found = run_figures(args.run, REGIMES[args.regime], args.data_dir)
    write_whole(args.run / 'figures.json', f'{json.dumps(found, indent=2)}\n')
    return 0


def _rows(regime: Regime, keys: Sequence[str] | None) -> list[Row]:
    known = {row.key: row for row in regime.rows}
    for key in keys or ():
        if key not in known:
            raise UsageError(f'--rows {key}: {regime.key} has {", ".join(known)}.')
    return [row for row in regime.rows if keys is None or row.key in keys]


def _flags(regime: Regime, args: argparse.Namespace) -> list[str]:
    """Of train.py: the data, and weights to begin with, which are written where they are not yet."""
    flags = data_flags(regime.data, args.data_dir)
    if regime.pretrained:
        path = args.out / f'{MODEL}.safetensors'
        if not path.is_file():
            args.out.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f'.{os.getpid()}')
            save_file(pretrained_lite().state_dict(), unfinished)
            unfinished.replace(path)
        flags += ['--pretrained-path', str(path)]
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the parts; the exit code.

    Raises:
        UsageError: options are wrong.
        DataError: data or runs cannot be used.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    end = argv.index('--') if '--' in argv else len(argv)
    args, extra = build_parser().parse_args(argv[:end]), argv[end + 1 :]
    if args.part == 'run':
        return run(args, extra)
    return table(args) if args.part == 'table' else figures(args)


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run_command(main))
