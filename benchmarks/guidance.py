#!/usr/bin/env python3
"""Do boxes bring a model back that learned a decoy? Digits with a patch whose place tells the class, in training alone.

Every row is trained by train.py with the same seeds, complete runs are passed over. Beside the share of the maps that
lies in the box the table has what does not rest on maps: accuracy where the patch lies anywhere, where it lies at the
place of another class, and without it.

    python benchmarks/guidance.py --out OUT [--seeds 3] [--jobs 2] [--rows ce outside+mse]
"""

import argparse
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from arguments import at_least
from evidence.results import paired
from PIL import Image
from tables.execute import execute, told
from tables.plan import Cell
from tables.runs import Plan, Run
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader

from timm_hnc.cam import CamModel
from timm_hnc.cam.object_masks import ObjectMasks
from timm_hnc.commands.command_line import run_command
from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.sets.decoy_digits import PLACES, DecoyDigitsReader
from timm_hnc.losses.maps.boxes import EnergyLoss
from timm_hnc.plots.cams import draw_cams

# a position of its maps sees 25 pixels: from inside the box of the digit no patch
NETWORK = ('--model', 'cifar_resnet20', '--model-kwargs', 'layers=(1,1,1)', '--in-chans', '1', '--num-classes', '10')
DATA = ('--dataset', 'hnc/decoy-digits', '--img-size', '72', '--mean', '0.5', '--std', '0.5', '--crop-pct', '1')
RECIPE = (
    *('--train-crop-mode', 'pad', '--hflip', '0', '--color-jitter', '0', '--smoothing', '0', '-b', '64'),
    *('--epochs', '25', '--opt', 'adamw', '--lr', '0.01', '--weight-decay', '0.01', '--sched-on-updates'),
    *('--warmup-epochs', '1', '--workers', '0', '--device', 'cpu', '--val-interval', '25'),
    *('--amp', '--amp-dtype', 'bfloat16', '--channels-last'),
)
HNC = ('--hnc', 'mse', '--hnc-weight', '0.01', '--hnc-topk', '9')
ROWS = {
    'clean': ('--train-split', 'clean-train'),
    'ce': (),
    'mse': HNC,
    'energy': ('--map-loss', 'energy'),
    'outside': ('--map-loss', 'outside'),
    'energy+mse': ('--map-loss', 'energy', *HNC),
    'outside+mse': ('--map-loss', 'outside', *HNC),
}
SHOWN = ('ce', 'outside+mse')
FIGURES = {
    'anywhere': 'patch anywhere',
    'contradicting': "patch at another class's place",
    'without': 'no patch',
    'energy': 'energy in the box',
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing and print the table; the exit code: 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder of runs, and of decoy.md')
    parser.add_argument('--seeds', type=at_least(1), default=3, metavar='N', help='runs a row (default: 3)')
    parser.add_argument('--jobs', type=at_least(1), default=2, metavar='J', help='runs at a time (default: 2)')
    parser.add_argument('--rows', nargs='+', default=[*ROWS], choices=[*ROWS], metavar='ROW', help=', '.join(ROWS))
    args = parser.parse_args(argv)
    plan = Plan(args.out.resolve(), (*NETWORK, *DATA, *RECIPE))
    cells = [Cell(name, '', name, ROWS[name]) for name in args.rows]
    failures = execute(plan.runs(cells, args.seeds), args.jobs)
    code = told(failures, 'guidance.py')
    cells = [Cell(name, '', name, flags) for name, flags in ROWS.items()]  # what lies there of others counts as well
    cells = [cell for cell in cells if cell.name in args.rows or plan.finished(cell)]
    text = table({cell.name: {run.seed: figures(run) for run in plan.finished(cell)} for cell in cells})
    (args.out / 'decoy.md').write_text(text)
    shown = [run for cell in cells if cell.name in SHOWN for run in plan.finished(cell)[:1]]
    if shown:
        picture(shown).save(args.out / 'decoy_cams.png')
    print(text)
    return code


def picture(runs: Sequence[Run]) -> Image.Image:
    """Maps of the same validation digits by several runs, one below the other."""
    parts = []
    for run in runs:
        model = last_model(run)
        images, targets, _ = digits('validation', model)
        pixels = (images[:4] * 0.5 + 0.5).expand(-1, 3, -1, -1)
        parts.append(draw_cams(model, images[:4], pixels, targets[:4], list('0123456789'), title=run.cell.name))
    whole = Image.new('RGB', (max(part.width for part in parts), sum(part.height for part in parts)), 'white')
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return whole


def last_model(run: Run) -> CamModel:
    """The last weights of a run."""
    return CamModel(timm.create_model(f'local-dir:{run.folder / "last" / "model"}', pretrained=True)).eval()


def digits(split: str, model: CamModel) -> tuple[Tensor, Tensor, DecoyDigitsReader]:
    """All images of a split as the model wants them, their classes, and what else is known of them."""
    side = model.pretrained_cfg['input_size'][-1]
    dataset = create_dataset('hnc/decoy-digits', None, split, 10, input_img_mode='L')
    dataset.transform = create_transform((1, side, side), mean=(0.5,), std=(0.5,), crop_pct=1.0)
    images, targets = next(iter(DataLoader(dataset, len(dataset))))
    return images, targets, dataset.reader


@torch.no_grad()
def figures(run: Run) -> dict[str, float]:
    """Percent of validation digits, with the last weights of a run."""
    model = last_model(run)
    found: dict[str, float] = {}
    for split, key in (('validation', 'anywhere'), ('clean-validation', 'without')):
        images, targets, reader = digits(split, model)
        maps = model.class_maps(images)
        right = maps.logits.argmax(1) == targets
        found[key] = 100 * right.float().mean().item()
        if split == 'validation':
            contradicting = torch.tensor(reader.places) != targets
            found['contradicting'] = 100 * right[contradicting].float().mean().item()
            cover = torch.zeros_like(images)
            scale = images.shape[-1] / reader.images.shape[-1]
            x1, y1, x2, y2 = (round(each * scale) for each in reader.boxes[0][0])
            cover[..., y1:y2, x1:x2] = 1
            energy = EnergyLoss()(maps, targets, masks=ObjectMasks(targets[:, None], cover))
            found['energy'] = 100 * (1 - energy.item())
    return found


def table(found: dict[str, dict[int, dict[str, float]]]) -> str:
    """Means with their standard deviations, and the difference to cross-entropy in pairs of seeds."""
    lines = [f'| | {" | ".join(FIGURES.values())} | minus ce, patch anywhere | n |', '|---|--:|--:|--:|--:|--:|--:|']
    base = {seed: each['anywhere'] for seed, each in found.get('ce', {}).items()}
    for name, runs in found.items():
        cells = []
        for key in FIGURES:
            values = [each[key] for each in runs.values()]
            spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.1f}{spread}' if values else '-')
        pairs = paired({seed: each['anywhere'] for seed, each in runs.items()}, base) if name != 'ce' else None
        difference = f'{pairs[0]:+.1f} ({pairs[1]:+.1f} to {pairs[2]:+.1f})' if pairs else ''
        lines.append(f'| {name} | {" | ".join(cells)} | {difference} | {len(runs)} |')
    about = f'{len(PLACES)} places, one a class in training; validation digits, percent, mean and standard deviation.'
    return '\n'.join([about, '', *lines]) + '\n'


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run_command(main))
