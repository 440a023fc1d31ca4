#!/usr/bin/env python3
"""Speed of train.py: with --data-in-memory over without, and over timm's own train.py with the same flags.

Every pair of runs is one epoch each of a CIFAR ResNet-20 (timm's script: test_resnet, which timm has) on CIFAR-100, in
real processes, one after the other in alternating order; a rate is that from the second log line to the last, of the
updates and of the evaluation behind them.

    python benchmarks/train_speed.py --data hfds/DIR [--timm PATH/train.py] [--compiled resnet18 | --start] [--pairs 5]
    python benchmarks/train_speed.py --data hfds/DIR --validate PATH/validate.py

--start times how long it takes until something happens, beside timm: the import, --help, the first batch. DIR is a
local folder of CIFAR-100's parquet files with the columns img and fine_label, as the Hub has them.
--compiled times both scripts with --torchcompile on a model, and nothing else. --validate times validate.py beside
timm's, with and without --cam-metrics: resnet18 at 64 pixels.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from arguments import at_least
from timm import create_model

ROOT = Path(__file__).parents[1]
TRAIN, VALIDATE = (str(ROOT / name) for name in ('train.py', 'validate.py'))
DATA = ['--input-key', 'img', '--target-key', 'fine_label', '--num-classes', '100', '--val-split', 'test']
BATCH_SIZE = 128
PLAIN = f'--img-size 32 --crop-pct 1.0 -b {BATCH_SIZE} --epochs 1 --color-jitter 0 --lr 0.1'.split()
FAST = ['--model', 'cifar_resnet20', '--train-crop-mode', 'pad', '--amp', '--amp-dtype', 'bfloat16', '--channels-last']
OURS = ['--no-report', '--cam-images', '0']
FIRST = re.compile(r'Train: 0 ')
UPDATE, OURS_EVALUATED, TIMMS_EVALUATED, EVALUATED_ALL = map(
    re.compile,
    (r'Train: 0 \[ *(\d+)/', r'Evaluated (\d+) images', r'Test: \[ *(\d+)/', r'Evaluation: |Test: \[ *(\d+)/\1\]'),
)


def rates(command: list[str]) -> dict[str, float]:
    """Images a second of the first epoch's updates and of its evaluation, between the second log line and the last."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines, seen = [], {'training': [], 'validation': []}
    for line in process.stderr or ():
        lines.append(line)
        for pattern, phase, images in (
            (UPDATE, 'training', BATCH_SIZE),
            (TIMMS_EVALUATED, 'validation', BATCH_SIZE),
            (OURS_EVALUATED, 'validation', 1),
        ):
            if match := pattern.search(line):
                seen[phase].append((time.perf_counter(), int(match[1]) * images))
        if EVALUATED_ALL.search(line):
            break
    process.kill()
    process.wait()
    # validate.py does not train
    seen = {phase: found for phase, found in seen.items() if found or phase == 'validation'}
    if min(map(len, seen.values())) < 3:
        sys.exit(f'{" ".join(command)}\nsaid nothing of its speed:\n{"".join(lines[-20:])}')
    return {phase: (found[-1][1] - found[1][1]) / (found[-1][0] - found[1][0]) for phase, found in seen.items()}


def seconds(command: list[str], until: re.Pattern | None = None) -> float:
    """What a command takes to its end, or to the line that it looks for."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stderr or ():
        lines.append(line)
        if until and until.search(line):
            took = time.perf_counter() - start
            process.kill()
            process.wait()
            return took
    if process.wait() or until:
        sys.exit(f'{" ".join(command)}\nfailed:\n{"".join(lines[-20:])}')
    return time.perf_counter() - start


def compare_starts(name: str, left: list[str], right: list[str], pairs: int, until: re.Pattern | None = None) -> None:
    """Print the median ratio of two commands' times, a first run of each apart."""
    sides, ratios = (left, right), []
    for pair in range(-1, pairs):
        times = {index: seconds(sides[index], until) for index in ((0, 1) if pair % 2 else (1, 0))}
        ratios += [times[0] / times[1]] if pair >= 0 else []
    print(
        f'| {name} | {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | {pairs} |', flush=True
    )


def compare(name: str, left: list[str], right: list[str], pairs: int) -> None:
    """Print the median ratios of two commands' rates."""
    found: tuple[list, list] = ([], [])
    for pair in range(pairs):
        for index in (0, 1) if pair % 2 else (1, 0):
            found[index].append(rates((left, right)[index]))
    for phase in found[0][0]:
        columns = [[each[phase] for each in side] for side in found]
        ratios = [ours / theirs for ours, theirs in zip(*columns, strict=True)]
        middle = [statistics.median(column) for column in columns]
        print(
            f'| {name}, {phase} | {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | {pairs} | '
            f'{middle[0]:.0f} / {middle[1]:.0f} |',
            flush=True,
        )


def start(data: list[str], timm: str, pairs: int) -> None:
    """Print how long ours takes until something happens, beside timm."""
    print('| time | ratio, median (least to most) | pairs |\n|---|---|--:|')
    imports = [[sys.executable, '-c', f'import {name}'] for name in ('timm_hnc', 'timm')]
    compare_starts('`import timm_hnc` over `import timm`', *imports, pairs)
    helps = [[sys.executable, script, '--help'] for script in (TRAIN, timm)]
    compare_starts("`train.py --help` over timm's", *helps, pairs)
    with tempfile.TemporaryDirectory() as folder:
        same = [*data, '--log-interval', '1', '--model', 'test_resnet', '--device', 'cpu', '--output', folder]
        ours, theirs = [sys.executable, TRAIN, *same, *OURS], [sys.executable, timm, *same]
        compare_starts("from the command to the first batch's line, `train.py` over timm's", ours, theirs, pairs, FIRST)


def validation(data: list[str], timm: str, pairs: int) -> None:
    """Print the ratios of validate.py beside timm's."""
    print('| images a second | ratio, median (least to most) | pairs | rates |\n|---|---|--:|--:|')
    with tempfile.TemporaryDirectory() as folder:
        path = f'{folder}/resnet18.pth'
        torch.save({'state_dict': create_model('resnet18', num_classes=100).state_dict()}, path)
        model = f'--model resnet18 --checkpoint {path} --img-size 64 -b {BATCH_SIZE} --device cpu --log-freq 10'.split()
        ours, theirs = ([sys.executable, script, *data, *model] for script in (VALIDATE, timm))
        compare("validate.py over timm's", ours, theirs, pairs)
        compare("validate.py --cam-metrics over timm's", [*ours, '--cam-metrics'], theirs, pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, metavar='NAME', help="as train.py's --dataset")
    parser.add_argument('--timm', metavar='FILE', help="timm's train.py")
    parser.add_argument('--compiled', metavar='MODEL', help="with --timm: both scripts' --torchcompile on this model")
    parser.add_argument('--start', action='store_true', help='with --timm: times until something happens')
    parser.add_argument('--validate', metavar='FILE', help="timm's validate.py")
    parser.add_argument('--pairs', type=at_least(1), default=5)
    parser.add_argument('--workers', default='2')
    args = parser.parse_args()
    if (args.start or args.compiled) and not args.timm:
        parser.error('--start and --compiled need --timm.')
    if args.validate and args.timm:
        parser.error('--validate: measures that alone, leave --timm out.')
    data = ['--dataset', args.data, *DATA, *PLAIN, '--workers', args.workers, '--log-interval', '10']
    if args.validate:
        validation([*data[:8], '--split', 'test', '--workers', args.workers], args.validate, args.pairs)
        return
    if args.start:
        start(data, args.timm, args.pairs)
        return
    print('| images a second | ratio, median (least to most) | pairs | rates |\n|---|---|--:|--:|')
    with tempfile.TemporaryDirectory() as folder:
        out = ['--output', folder]
        if args.compiled:
            same = [*data, '--model', args.compiled, '--torchcompile', '--device', 'cpu', *out]
            ours, theirs = [sys.executable, TRAIN, *same, *OURS], [sys.executable, args.timm, *same]
            compare(f"train.py over timm's, --torchcompile, {args.compiled}", ours, theirs, args.pairs)
            return
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
