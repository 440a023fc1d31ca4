#!/usr/bin/env python3
"""The nearest peer of exported maps beside ours: OpenVINO XAI's insert_xai (white box) on the same timm models.

For every name: whether its maps are inserted, whether their means are the logits as ours are, how alike they are to the
exact map of the class that wins (correlation over positions), and what they cost: the time of one image as a multiple
of the same OpenVINO model's without maps, medians of runs in turn, one thread.

It wants an environment of its own, `pip install openvino-xai==1.1.0` beside this package. Rows are added to --output
as they are made and made only once.

    python benchmarks/openvino_peer.py --families      # the names of export.py --families
    python benchmarks/openvino_peer.py --table
"""

import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import numpy as np
import timm
import torch
from export import build_parser, chosen, classes_of
from rows import add_row, read_rows

from timm_hnc import CamModel
from timm_hnc.commands.command_line import run_command
from timm_hnc.errors import first_lines
from timm_hnc.export.check import cost

COLUMNS = ('name', 'kind', 'params', 'inserted', 'mean_off', 'correlation', 'cost', 'note')


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, or print the table."""
    args = build_parser(__doc__, 'openvino_peer.csv').parse_args(argv)
    done = read_rows(args.output)
    if args.table:
        print(table(done))
        return
    for row in chosen(args, done):
        found = measured_apart(row)
        add_row(args.output, COLUMNS, found)
        print(*found.values(), flush=True)


def measured_apart(row: dict[str, str]) -> dict[str, Any]:
    """`measure` in a process of its own: some models take more memory than there is, and end it."""
    with ProcessPoolExecutor(1, get_context('spawn'), torch.set_num_threads, (1,)) as pool:
        try:
            return pool.submit(measure, row).result()
        except BrokenProcessPool:
            return begun(row) | dict(inserted=False, note='its process was ended, likely for want of memory')


def begun(row: dict[str, str]) -> dict[str, Any]:
    """What is known of a row before it is measured."""
    return {name: row.get(name, '') for name in COLUMNS}


def measure(row: dict[str, str]) -> dict[str, Any]:
    """Insert maps into one model; its row."""
    found = begun(row)
    warnings.simplefilter('ignore')
    model = timm.create_model(row['name'], **classes_of(row)).eval()
    images = torch.randn(1, *model.pretrained_cfg['input_size'], generator=torch.Generator().manual_seed(0))
    try:
        plain, mapped = runners(model, images)
        outputs = mapped(images)
    except Exception as error:  # whatever torch, OpenVINO and its XAI raise
        return found | dict(inserted=False, note=first_lines(error, 200))
    [logits], [maps] = (next(each for each in outputs if each.ndim == ndim) for ndim in (2, 4))
    exact = CamModel(model).class_maps(images).maps([int(logits.argmax())])[0, 0].detach()
    winner = torch.from_numpy(maps[logits.argmax()])[None, None].float()
    winner = torch.nn.functional.interpolate(winner, exact.shape, mode='bilinear')[0, 0]
    means = maps.reshape(len(maps), -1).mean(1)
    alike = np.corrcoef(winner.flatten(), exact.flatten())[0, 1] if exact.numel() > 1 else float('nan')
    return found | dict(
        inserted=True,
        mean_off=f'{np.abs(means - logits).max() / np.abs(logits).max():.2g}',
        correlation=f'{alike:.3f}',
        cost=f'{cost(mapped, plain, images)[1]:.3f}',
    )


def runners(model: torch.nn.Module, images: torch.Tensor) -> list[Callable[[torch.Tensor], Any]]:
    """The model without and with maps, as functions of images."""
    import openvino
    import openvino_xai
    from openvino_xai.common.parameters import Task

    shape = [-1, *images.shape[1:]]
    converted = openvino.convert_model(model, example_input=images, input=shape)
    # maps of the network's own grid and scale: nothing is stretched to bytes
    mapped = openvino_xai.insert_xai(converted.clone(), task=Task.CLASSIFICATION, embed_scaling=False)
    threads = {'INFERENCE_NUM_THREADS': 1, 'INFERENCE_PRECISION_HINT': 'f32'}
    compiled = [openvino.Core().compile_model(each, 'CPU', threads) for each in (converted, mapped)]
    return [lambda x, each=each: list(each(x.numpy()).values()) for each in compiled]


def table(rows: list[dict[str, str]]) -> str:
    """By kind: names, those with maps, how far their means are from the logits, how alike they are, their cost."""
    lines = [
        '| kind | names | with maps | mean is the logit (to 1 %) | correlation, median (least) | cost, median (most) |'
    ]
    lines.append('|---|' + '--:|' * 5)
    for kind in [*sorted({row['kind'][0] for row in rows}), '']:
        some = [row for row in rows if row['kind'].startswith(kind)]
        good = [row for row in some if row['inserted'] == 'True']
        alike = [float(row['correlation']) for row in good if row['correlation'] != 'nan']
        costs = [float(row['cost']) for row in good]
        cells: list[Any] = [kind or 'all', len(some), len(good), sum(float(row['mean_off']) < 0.01 for row in good)]
        cells.append(f'{statistics.median(alike):.3f} ({min(alike):.3f})' if alike else '')
        cells.append(f'{statistics.median(costs):.3f} ({max(costs):.3f})' if costs else '')
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(run_command(main))
