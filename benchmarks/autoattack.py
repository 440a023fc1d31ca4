#!/usr/bin/env python3
"""AutoAttack (Croce and Hein, ICML 2020; `pip install pyautoattack`) on trained runs, through `normalized(model)`.

It must not leave more right than our PGD does at the same eps, and PGD no more than FGSM. Validation images are taken
evenly from each run's own data; eps is in pixels of [0, 1]. RobustBench's `benchmark()` takes the same module.

    python benchmarks/autoattack.py RUN [RUN ...] --images 200 --eps 1/255 [--version standard]
"""

import argparse
import sys
from pathlib import Path

import timm
import torch
from arguments import at_least
from timm.data import create_transform, resolve_data_config
from torch.utils.data import Subset, default_collate

from timm_hnc.attacks.attacks import Attack, attack, normalized
from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.options.validate_options import fraction
from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.holdout import split_off
from timm_hnc.data.samples import evenly_spread
from timm_hnc.errors import UsageError
from timm_hnc.files.run_options import read_options


def load(run: Path, count: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A run's classifier of images in [0, 1], and images with their labels."""
    options = read_options(run)
    model = timm.create_model(f'local-dir:{run / "model_best"}', pretrained=True)
    config = resolve_data_config({}, model=model)
    data = create_dataset(
        options['dataset'] or '',
        options['data_dir'],
        options['val_split'],
        model.num_classes,
        input_key=options['input_key'],
        target_key=options['target_key'],
        class_map=options['class_map'],
    )
    if options['holdout']:
        _, data = split_off(data, options['holdout'], options['seed'])
    data.transform = create_transform(**{**config, 'mean': (0.0,) * 3, 'std': (1.0,) * 3})
    images, labels = default_collate(list(Subset(data, evenly_spread(len(data), count))))
    return normalized(model.eval()), images.clamp(0, 1), torch.as_tensor(labels)


@torch.no_grad()
def accuracy(classifier: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    return 100 * (classifier(images).argmax(1) == labels).float().mean().item()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', type=Path, nargs='+', metavar='RUN', help='run folders of train.py')
    parser.add_argument('--images', type=at_least(1), default=200, metavar='N')
    parser.add_argument('--eps', type=fraction, default=1 / 255, metavar='EPS')
    parser.add_argument(
        '--version', default='standard', help='of AutoAttack: standard, plus or rand (default: standard)'
    )
    args = parser.parse_args(argv)
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise UsageError('AutoAttack is not installed: pip install pyautoattack') from error
    print(f'{args.images} images, eps = {args.eps:g}, accuracy in %')
    print('| run | clean | FGSM | PGD, 20 steps | AutoAttack |\n|---|--:|--:|--:|--:|')
    fell = True
    for run in args.runs:
        classifier, images, labels = load(run, args.images)
        attacked = [attack(classifier, images, labels, Attack(name, args.eps, steps=20)) for name in ('fgsm', 'pgd')]
        auto = AutoAttack(classifier, norm='Linf', eps=args.eps, version=args.version)
        found, *_ = auto.run_standard_evaluation(images, labels, batch_size=len(images))
        attacked.append(found)
        figures = [accuracy(classifier, each, labels) for each in (images, *attacked)]
        print(f'| {run.name} | {" | ".join(f"{figure:.1f}" for figure in figures)} |', flush=True)
        fell &= figures == sorted(figures, reverse=True)
    return 0 if fell else 1


if __name__ == '__main__':
    sys.exit(run_command(main))
