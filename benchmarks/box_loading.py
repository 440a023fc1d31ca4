#!/usr/bin/env python3
"""What boxes add to the time of loading an image: CPU time of a batch with them over that of the same batch without.

Batches are read in turns in one process of one thread: decoded, cropped, resized, mirrored and put together as
`train.py`'s workers do it. A first round, in which boxes are read and checked, is left out.

    python benchmarks/box_loading.py --data hfds/DIR                               # images as they are, crops of 128
    python benchmarks/box_loading.py --data hfds/DIR --short-side 375 --crop 224   # the size of photographs

DIR is a local folder of parquet files with the columns image, labels (several an image, of 20 classes) and objects.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.loader import fast_collate

from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.options.train_options import parse_train_options
from timm_hnc.data.loading.rows_ahead import read_rows_ahead
from timm_hnc.data.loading.seeded_batches import Batch, seed_batches
from timm_hnc.training.setup.loaders import open_train_dataset, with_masks

FLAGS = '--task multilabel --input-key image --target-key labels --num-classes 20 --map-loss energy --model resnet18'
BATCH_SIZE = 32


class Enlarged:
    """The innermost reader, with larger images; each is made once."""

    def __init__(self, reader: Any, short_side: int) -> None:
        self.reader, self.short_side, self.made = reader, short_side, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader, name)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        file, target = self.reader[index]
        if index not in self.made:
            image = Image.open(file).convert('RGB')
            scale = self.short_side / min(image.size)
            stored = io.BytesIO()
            image.resize((round(image.width * scale), round(image.height * scale))).save(stored, 'JPEG', quality=90)
            self.made[index] = stored.getvalue()
        return io.BytesIO(self.made[index]), target


def enlarge(dataset: Any, short_side: int) -> None:
    """Let the data set read larger images."""
    holder, name = dataset, 'reader'
    while hasattr(getattr(holder, name), 'unchecked'):
        holder, name = getattr(holder, name), 'unchecked'
    setattr(holder, name, Enlarged(getattr(holder, name), short_side))


def seconds(loader: Any, batch: Batch) -> float:
    """CPU time of reading a batch."""
    start = time.process_time()
    loader.collate_fn(loader.dataset.__getitems__(batch))
    return time.process_time() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, metavar='NAME', help="as train.py's --dataset")
    parser.add_argument('--crop', type=int, default=128, metavar='PIXELS', help='side of the crops (default: 128)')
    parser.add_argument('--short-side', type=int, metavar='PIXELS', help='of the images, which are enlarged to it')
    parser.add_argument('--images', type=int, default=384, metavar='N', help='(default: 384)')
    parser.add_argument('--rounds', type=int, default=15, metavar='N', help='(default: 15)')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    options, *_ = parse_train_options(['--dataset', args.data, *FLAGS.split()])
    transform = create_transform(args.crop, is_training=True, color_jitter=None, use_prefetcher=True)
    loaders = []
    for with_boxes in (False, True):
        dataset: Any = open_train_dataset(options, 3, 20)
        if with_boxes:
            dataset = with_masks(dataset, options, 20, (args.crop // 32,) * 2)
        if args.short_side:
            enlarge(getattr(dataset, 'dataset', dataset), args.short_side)
        dataset.transform = transform
        loaders.append(torch.utils.data.DataLoader(read_rows_ahead(dataset), BATCH_SIZE, collate_fn=fast_collate))
        seed_batches(loaders[-1], seed=1)
    batches = [
        Batch(1, 0, number, list(range(number * BATCH_SIZE, (number + 1) * BATCH_SIZE)))
        for number in range(args.images // BATCH_SIZE)
    ]
    ratios, added = [], []
    for count in range(-1, args.rounds):
        took = [0.0, 0.0]
        for batch in batches:
            for index in (0, 1) if count % 2 else (1, 0):
                took[index] += seconds(loaders[index], batch)
        if count >= 0:
            ratios.append(took[1] / took[0])
            added.append(1e6 * (took[1] - took[0]) / (len(batches) * BATCH_SIZE))
    print(
        f'with boxes over without: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), '
        f'{statistics.median(added):.0f} microseconds an image, {args.rounds} rounds'
    )


if __name__ == '__main__':
    sys.exit(run_command(main))
