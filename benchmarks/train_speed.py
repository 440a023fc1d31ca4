#!/usr/bin/env python3
"""Images a second of train.py: with --data-in-memory over without, and over timm's own train.py with the same flags.

Every pair of runs is one epoch each of a CIFAR ResNet-20 (timm's script: test_resnet, which timm has) on CIFAR-100, in
real processes, one after the other in alternating order; a rate is that from the second log line to the last.

    python benchmarks/train_speed.py --data hfds/DIR [--timm PATH/train.py] [--pairs 5]

DIR is a local folder of CIFAR-100's parquet files with the columns img and fine_label, as the Hub has them.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / 'train.py')
DATA = ['--input-key', 'img', '--target-key', 'fine_label', '--num-classes', '100', '--val-split', 'test']
PLAIN = ['--img-size', '32', '--crop-pct', '1.0', '-b', '128', '--epochs', '1', '--color-jitter', '0', '--lr', '0.1']
FAST = ['--model', 'cifar_resnet20', '--train-crop-mode', 'pad', '--amp', '--amp-dtype', 'bfloat16', '--channels-last']
OURS = ['--no-report', '--cam-images', '0']
UPDATE = re.compile(r'Train: 0 \[ *(\d+)/(\d+)')


def rate(command: list[str], batch_size: int = 128) -> float:
    """Images a second between the second log line and the last of the epoch."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines, seen = [], []
    for line in process.stderr or ():
        lines.append(line)
        match = UPDATE.search(line)
        if match:
            seen.append((time.perf_counter(), int(match[1])))
            if len(seen) > 1 and int(match[1]) >= int(match[2]) - 1:
                break
    process.kill()
    process.wait()
    if len(seen) < 3:
        sys.exit(f'{" ".join(command)}\nsaid nothing of its speed:\n{"".join(lines[-20:])}')
    (start, first), (end, last) = seen[1], seen[-1]
    return (last - first) * batch_size / (end - start)


def compare(name: str, left: list[str], right: list[str], pairs: int) -> None:
    """Print the median ratio of two commands' rates."""
    ratios, rates = [], []
    for pair in range(pairs):
        found = {}
        for index in (0, 1) if pair % 2 else (1, 0):
            found[index] = rate((left, right)[index])
        ratios.append(found[0] / found[1])
        rates.append((found[0], found[1]))
    middle = [statistics.median(column) for column in zip(*rates, strict=True)]
    print(
        f'| {name} | {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | {pairs} | '
        f'{middle[0]:.0f} / {middle[1]:.0f} |',
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, metavar='NAME', help="as train.py's --dataset")
    parser.add_argument('--timm', metavar='FILE', help="timm's train.py")
    parser.add_argument('--pairs', type=int, default=5)
    parser.add_argument('--workers', default='2')
    args = parser.parse_args()
    data = ['--dataset', args.data, *DATA, *PLAIN, '--workers', args.workers, '--log-interval', '20']
    print('| images a second | ratio, median (least to most) | pairs | rates |\n|---|---|--:|--:|')
    with tempfile.TemporaryDirectory() as folder:
        out = ['--output', folder]
        fast = [sys.executable, TRAIN, *data, *FAST, *OURS, *out]
        compare('--data-in-memory over without', [*fast, '--data-in-memory'], fast, args.pairs)
        if args.timm:
            same = [*data, '--model', 'test_resnet', '--device', 'cpu', *out]
            ours, theirs = [sys.executable, TRAIN, *same, *OURS], [sys.executable, args.timm, *same]
            compare("train.py --hnc none over timm's train.py", ours, theirs, args.pairs)
            jitter = ['--color-jitter', '0.4']
            compare("the same with timm's default --color-jitter", [*ours, *jitter], [*theirs, *jitter], args.pairs)


if __name__ == '__main__':
    main()
