#!/usr/bin/env python3
"""Which of timm's models can be exported with their maps, how exact the files are, and what the maps cost in them.

Every name whose maps can be trained on, up to --most million parameters, is written as ONNX with logits and the maps of
the top 5 of its classes, and compared with PyTorch by ONNX Runtime. The cost is the time of one image, as a multiple of
the same model's without maps: medians of runs in turn. What has no ONNX is tried with torch.export alone.

Rows are added to --output as they are made and made only once, so that an interrupted run goes on.

    python benchmarks/export.py --families             # the smallest name of every family and kind
    python benchmarks/export.py --jobs 8               # every name; hours of a core
    python benchmarks/export.py --table                # what was measured, by kind
"""

import argparse
import fnmatch
import statistics
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm
import torch
from arguments import at_least
from rows import add_row, read_rows

from timm_hnc import CamModel
from timm_hnc.cam.heads.base import DESCRIPTIONS
from timm_hnc.commands.command_line import run_command
from timm_hnc.errors import UsageError, first_lines
from timm_hnc.export.export import cost_of_maps, export_model

RESULTS = Path(__file__).parent / 'results'
COLUMNS = ('name', 'module', 'kind', 'params', 'onnx', 'torch_export', 'difference', 'sizes', 'cost', 'seconds', 'note')


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, or print the table."""
    parser = build_parser(__doc__, 'export.csv')
    parser.add_argument('--jobs', type=at_least(1), default=1, metavar='J', help='models at a time, of one thread each')
    args = parser.parse_args(argv)
    done = read_rows(args.output)
    if args.table:
        print(table(done))
        return
    missing = chosen(args, done)
    with ProcessPoolExecutor(args.jobs, get_context('spawn'), torch.set_num_threads, (1,)) as pool:
        for future in as_completed([pool.submit(measure, row) for row in missing]):
            row = future.result()
            add_row(args.output, COLUMNS, row)
            print(' '.join(str(row[column]) for column in ('name', 'kind', 'onnx', 'cost', 'note')), flush=True)


def build_parser(description: str | None, output: str) -> argparse.ArgumentParser:
    """Which models, and where their rows go: by default to a file of the results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--names', default='*', metavar='PATTERN', help='names of models (default: all)')
    parser.add_argument('--most', type=float, default=30, metavar='M', help='million parameters (default: 30)')
    parser.add_argument('--families', action='store_true', help='only the smallest name of every family and kind')
    parser.add_argument('--output', type=Path, default=RESULTS / output, metavar='FILE', help='rows')
    parser.add_argument('--table', action='store_true', help='print the table of --output')
    return parser


def chosen(args: argparse.Namespace, done: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Rows of coverage.csv with trainable maps that were asked for and are not done, smallest first."""
    rows = [row for row in read_rows(RESULTS / 'coverage.csv') if row['trainable'] == 'True']
    rows = [row for row in rows if int(row['params']) <= args.most * 1e6 and fnmatch.fnmatch(row['name'], args.names)]
    if not rows:
        raise UsageError(f"--names '{args.names}': coverage.csv has no such model of {args.most:g} million or less.")
    rows.sort(key=lambda row: int(row['params']))
    if args.families:
        rows = list({(row['module'], row['kind'][0]): row for row in reversed(rows)}.values())[::-1]
    known = {row['name'] for row in done}
    return [row for row in rows if row['name'] not in known]


def measure(row: dict[str, str]) -> dict[str, Any]:
    """Export one model; its row."""
    found: dict[str, Any] = {name: row.get(name, '') for name in COLUMNS}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            model = CamModel(timm.create_model(row['name'], **classes_of(row)).eval())
        except Exception as error:  # whatever timm raises: without a model of it the other names go on
            return found | dict(onnx=False, torch_export=False, note=first_lines(error, 200))
        try:
            exported = export_model(model, Path(folder) / 'model.onnx')
            seconds, cost = cost_of_maps(model, exported)
            sizes = 'any' if not exported.fixed else 'one'
            found |= dict(onnx=True, torch_export=True, difference=f'{exported.agreement.relative:.1e}', sizes=sizes)
            found |= dict(cost=f'{cost:.3f}', seconds=f'{seconds:.4f}')
        except Exception as error:  # whatever torch, ONNX and its runtime raise
            found |= dict(onnx=False, note=first_lines(error, 200), torch_export=_by_torch(model, Path(folder)))
    return found


def classes_of(row: Mapping[str, str]) -> dict[str, int]:
    """Arguments of `create_model` that give a classifier to a model of coverage.csv that is listed without."""
    return {'num_classes': 1000} if '--num-classes' in row['flags'] else {}


def _by_torch(model: CamModel, folder: Path) -> bool:
    try:
        export_model(model, folder / 'model.pt2', 'pt2')
    except Exception:
        return False
    return True


def table(rows: list[dict[str, str]]) -> str:
    """By kind: names, those that export, and what their maps cost."""
    lines = ['| kind | | names | torch.export | ONNX | any size | largest difference | cost, median | cost, worst |']
    lines.append('|---|---|' + '--:|' * 7)
    for kind in [*sorted({row['kind'][0] for row in rows}), '']:
        some = [row for row in rows if row['kind'].startswith(kind)]
        good = [row for row in some if row['onnx'] == 'True']
        costs = [float(row['cost']) for row in good]
        cells = [kind or 'all', DESCRIPTIONS.get(kind, ''), len(some)]
        cells += [sum(row['torch_export'] == 'True' for row in some), len(good)]
        cells += [
            sum(row['sizes'] == 'any' for row in good),
            max((float(row['difference']) for row in good), default=''),
        ]
        cells += [f'{value:.3f}' for value in (statistics.median(costs), max(costs))] if costs else ['', '']
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(run_command(main))
