#!/usr/bin/env python3
"""How long train.py takes to an accuracy on CIFAR-100 with hparams/cifar100_fast.yaml, and without each of its parts.

    python benchmarks/time_to_accuracy.py --data hfds/DIR --out OUT [--rows recipe small ...] [--seeds 2]

The rival, `small`, has the settings of `tables.py --preset small`. A time is that from the command to the line of the
first epoch whose evaluation reaches --top1, with all that comes before it: imports, decoding, compilation; then the
run is stopped. Runs are real processes, one at a time on a machine that does nothing else, all rows with one seed
before the next seed. OUT/times.csv keeps every run, and those it has are not run again; OUT/times.md is the table. DIR
is a local folder of CIFAR-100's parquet files with the columns img and fine_label, as the Hub has them.
"""

import argparse
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from arguments import at_least
from rows import add_row, read_rows
from tables.presets import PRESETS

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / 'hparams' / 'cifar100_fast.yaml'
SCRIPT = str(ROOT / 'train.py')
DATA = ['--input-key', 'img', '--target-key', 'fine_label', '--no-report', '--cam-images', '0']
EPOCH = re.compile(r'Epoch \d+: top1 (\S+) ')
COLUMNS = ('row', 'seed', 'goal', 'seconds', 'epochs', 'top1')

# what takes the place of a setting of the recipe; None: nothing
WITHOUT: dict[str, tuple[str, dict[str, Any]]] = {
    'loader': ('`data_in_memory`', {'data_in_memory': None}),
    'float32': ('`amp`', {'amp': None, 'amp_dtype': None}),
    'contiguous': ('`channels_last`', {'channels_last': None}),
    'steps': (
        'one cycle: a tenth of the learning rate after 3 and 4 epochs',
        dict(sched='multistep', decay_milestones=[4, 5], warmup_epochs=0, sched_on_updates=None),
    ),
    'sgd': ('Muon: SGD, lr 0.1, weight decay 5e-4', dict(opt='sgd', lr=0.1, weight_decay=5e-4)),
}
WITH = {
    'smoothing': ('label smoothing 0.1', {'smoothing': 0.1}),
    'compiled': ('`torchcompile`', {'torchcompile': 'inductor'}),
}
LABELS = {
    'small': '`hparams/cifar100.yaml` with ResNet-20, 30 epochs, bfloat16, channels-last',
    'recipe': '`hparams/cifar100_fast.yaml`',
    **{key: f'without {label}' for key, (label, _) in WITHOUT.items()},
    **{key: f'with {label}' for key, (label, _) in WITH.items()},
}


def changes(row: str) -> dict[str, Any]:
    """What a row has in place of the recipe's settings; None: nothing."""
    return (WITHOUT | WITH)[row][1] if row != 'recipe' else {}


def flags(row: str, folder: Path) -> list[str]:
    """train.py's flags of a row, whose settings are written to the folder."""
    if row == 'small':
        small = PRESETS['small']
        return ['-c', str(ROOT / 'hparams' / 'cifar100.yaml'), '--model', str(small.network), *small.flags]
    settings = yaml.safe_load(RECIPE.read_text()) | changes(row)
    path = folder / f'{row}.yaml'
    path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
    return ['-c', str(path)]


def start_run(command: Sequence[str], compiled: str) -> subprocess.Popen[str]:
    """A process whose workers and compilers end with its group; what was compiled before is not known to it."""
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {'TORCHINDUCTOR_CACHE_DIR': compiled},
    )


def time_to(top1: float, command: Sequence[str]) -> tuple[float, int, float]:
    """Seconds to the first epoch that reaches `top1` %, or to the last; how many those are; the best top1 by then."""
    began, found, lines, took = time.perf_counter(), [], [], 0.0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as compiled:
        process = start_run(command, compiled)
        try:
            for line in process.stderr or ():
                lines.append(line)
                if match := EPOCH.search(line):
                    found.append(float(match[1]))
                    took = time.perf_counter() - began
                    if found[-1] >= top1:
                        break
            else:
                process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):  # the group has ended by itself
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    reached = max(found, default=0.0) >= top1
    if (code and not reached) or not found:
        sys.exit(f'{" ".join(command)}\nfailed:\n{"".join(lines[-20:])}')
    return took, len(found), max(found)


def markdown(runs: Iterable[dict[str, str]], rows: Iterable[str], top1: float) -> str:
    """The table of what has been run with that goal."""
    runs = [run for run in runs if float(run['goal']) == top1]
    text = f'| | seconds to {top1:g} % top-1, median (least to most) | epochs | runs |\n|---|---|---|--:|\n'
    for row in rows:
        mine = [run for run in runs if run['row'] == row]
        reached = [float(run['seconds']) for run in mine if float(run['top1']) >= top1]
        if not mine:
            continue
        if len(reached) == len(mine):
            seconds = f'{statistics.median(reached):.0f}'
            seconds += f' ({min(reached):.0f} to {max(reached):.0f})' if len(reached) > 1 else ''
        else:
            best = ', '.join(run['top1'] for run in mine)
            seconds = f'reached in {len(reached)} of {len(mine)}: best {best} %'
        epochs = ', '.join(run['epochs'] for run in mine)
        text += f'| {LABELS[row]} | {seconds} | {epochs} | {len(mine)} |\n'
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, metavar='NAME', help="as train.py's --dataset")
    parser.add_argument('--out', required=True, type=Path, metavar='DIR', help='folder of the figures')
    parser.add_argument(
        '--rows', nargs='+', choices=LABELS, default=list(LABELS), metavar='ROW', help=', '.join(LABELS)
    )
    parser.add_argument('--seeds', type=at_least(1), default=1, metavar='N', help='runs of a row (default: 1)')
    parser.add_argument('--top1', type=float, default=55.0, metavar='PERCENT', help='(default: 55)')
    parser.add_argument('--workers', default='2')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / 'times.csv'
    runs = read_rows(path)
    for seed in range(args.seeds):
        for row in args.rows:
            if (row, str(seed), str(args.top1)) in {(run['row'], run['seed'], run['goal']) for run in runs}:
                continue
            command = [sys.executable, SCRIPT, *flags(row, args.out), '--dataset', args.data, *DATA]
            command += ['--workers', args.workers, '--seed', str(seed), '--output', str(args.out / 'runs')]
            seconds, epochs, best = time_to(args.top1, command)
            figures = (row, seed, args.top1, f'{seconds:.1f}', epochs, f'{best:.2f}')
            runs.append(dict(zip(COLUMNS, map(str, figures), strict=True)))
            add_row(path, COLUMNS, runs[-1])
            (args.out / 'times.md').write_text(markdown(runs, LABELS, args.top1))
            print(*figures, flush=True)


if __name__ == '__main__':
    main()
