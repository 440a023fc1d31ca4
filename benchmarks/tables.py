#!/usr/bin/env python3
"""The paper's tables, run and written down: Tables 1 to 7, Figure 4, and a sweep that chooses lambda and k.

    python benchmarks/tables.py table1 --data-dir DIR --seeds 5 --out OUT                  # the recipes as they stand
    python benchmarks/tables.py table1 --preset small --data-dir DIR --out OUT --jobs 2 --rows ce,hnc-mse,hnc-kd
    python benchmarks/tables.py table6 --preset small --data-dir DIR --out OUT --noise symmetric:0.4
    python benchmarks/tables.py sweep --preset small --data-dir DIR --out OUT -- --torchcompile
    python benchmarks/tables.py table1 --preset smoke --rows ce,hnc-mse --out OUT          # minutes, needs no data

Every training is a run of train.py in OUT/<preset>/runs/<what is trained>-seed<k>/, shared by the tables that have it.
Kill it and start it again at will: complete runs (those with a result.json) are passed over, others go on from their
last checkpoint. What follows `--` goes to train.py and wins, but for seeds. The table is written to
OUT/<preset>/<table>.md and .csv (a row a run), Figure 4 also to figure4.png, which needs matplotlib. Exit code 1 if a
run failed; the others go on.

--data-dir is what train.py takes for the recipe (CIFAR-100: torchvision's folder, downloaded if it is not there), or a
Hugging Face-style folder with parquet files. Several GPUs: --jobs 1 --launcher 'accelerate launch --num_processes 8'
-- -b 32.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from arguments import at_least
from tables.execute import command_line, execute, told
from tables.plan import TABLES, Table, choose, plan
from tables.presets import PRESETS
from tables.report import draw_weights, find_runs, markdown, write_csv
from tables.runs import Plan, Run, data_flags, holds_parquet

from timm_hnc.commands.command_line import run_command
from timm_hnc.errors import DataError


def build_parser() -> argparse.ArgumentParser:
    """The parser; what follows `--` is not its own."""
    parser = argparse.ArgumentParser(
        prog='tables.py',
        usage='%(prog)s TABLE --data-dir DIR --out DIR [options] [-- flags of train.py]',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names, keys = ', '.join(TABLES), lambda text: text.split(',')
    parser.add_argument('table', choices=TABLES, metavar='TABLE', help=names)
    parser.add_argument('--data-dir', metavar='DIR', help='data folder')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder of runs and tables')
    parser.add_argument('--preset', choices=PRESETS, default='paper', help='size of the runs (default: paper)')
    parser.add_argument(
        '--seeds', type=at_least(1), default=1, metavar='N', help='runs of a cell (default: 1; the paper: 5)'
    )
    parser.add_argument('--jobs', type=at_least(1), default=1, metavar='J', help='runs at a time (default: 1)')
    parser.add_argument('--rows', type=keys, metavar='KEY,...', help='only these rows: ce,hnc-mse ...')
    parser.add_argument(
        *('--columns', '--noise'), type=keys, metavar='KEY,...', help='only these: cifar_resnet56, symmetric:0.4 ...'
    )
    parser.add_argument('--launcher', default='', metavar='COMMAND', help='starts train.py in place of Python')
    parser.add_argument('--dry-run', action='store_true', help='print the commands of what is missing')
    parser.add_argument('--only-report', action='store_true', help='run nothing, write the table of what is there')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the table; the exit code.

    Raises:
        UsageError: options are wrong.
        DataError: data or folders cannot be used.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    end = argv.index('--') if '--' in argv else len(argv)
    args, extra = build_parser().parse_args(argv[:end]), argv[end + 1 :]
    table = plan(args.table, args.preset)
    cells = choose(table, args.rows, args.columns)
    named = [] if args.only_report else data_flags(table.data, args.data_dir)
    shared = Plan(args.out / args.preset, named, extra, PRESETS[args.preset].test_split)
    for cell in cells:
        shared.options(cell)
    runs = shared.runs(cells, args.seeds)
    if args.dry_run:
        _print_commands(runs, args.launcher)
        return 0
    failures = {}
    if not args.only_report:
        _download(table, args.data_dir, runs)
        failures = execute(runs, args.jobs, args.launcher)
    failures |= write_report(table, shared, _about(args, extra))
    return told(failures, 'tables.py')


def _print_commands(runs: Sequence[Run], launcher: str) -> None:
    for run in runs:
        step = run.next_step
        print(shlex.join(command_line(run, step, launcher)) if step else f'# complete: {run.name}')


def _download(table: Table, data_dir: str | None, runs: Sequence[Run]) -> None:
    """CIFAR-100, once: runs that begin together would all write the same file."""
    if table.data != 'cifar100' or holds_parquet(str(data_dir)) or all(run.next_step is None for run in runs):
        return
    from torchvision.datasets import CIFAR100

    try:
        CIFAR100(str(data_dir), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"--data-dir '{data_dir}': no CIFAR-100 there, and none to be had: {error}") from error


def _about(args: argparse.Namespace, extra: Sequence[str]) -> str:
    more = f' -- {shlex.join(extra)}' if extra else ''
    data = '--data-dir DIR ' if PRESETS[args.preset].data else ''
    command = f'python benchmarks/tables.py {args.table} --preset {args.preset} {data}--out OUT{more}'
    return f'`{command}`: {PRESETS[args.preset].about}.'


def write_report(table: Table, shared: Plan, about: str) -> dict[str, str]:
    """Write and print the table; what is wrong with runs that are left out, by name."""
    found, left_out = find_runs(table, shared)
    text = markdown(table, found, about)
    print(f'\n{text}')
    try:
        shared.folder.mkdir(parents=True, exist_ok=True)
        (shared.folder / f'{table.name}.md').write_text(text)
        write_csv(table, found, shared.folder / f'{table.name}.csv')
    except OSError as error:
        raise DataError(f"--out '{shared.folder}' cannot be written: {error}") from error
    if table.name == 'figure4' and any(found.values()):
        draw_weights(table, found, shared.folder / 'figure4.png')
    return left_out


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run_command(main))
