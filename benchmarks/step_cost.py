#!/usr/bin/env python3
"""What a HNC step costs beside a cross-entropy step: time and peak memory, forward and backward.

Both run in one process on one set of weights, in interleaved pairs whose order alternates; the ratio is taken pair by
pair, so that a machine whose speed drifts does not matter. Peak memory is that of a fresh process a variant (all of
its resident memory on a CPU, the allocator's peak on a GPU).

    python benchmarks/step_cost.py                                    # ResNet-50, 1,000 and 21,843 classes, k = 100
    python benchmarks/step_cost.py --model resnet18 --classes 100 --pairs 10
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import timm
import torch
from timm.task import ClassificationTask
from timm.utils import ParseKwargs

import timm_hnc


def build_step(model: torch.nn.Module, variant: str, args: argparse.Namespace, classes: int) -> Callable[[], None]:
    """A training step without its update: cross-entropy ('ce') or cross-entropy and HNC ('mse', 'kd')."""
    device = torch.device(args.device)
    if variant == 'ce':
        task = ClassificationTask(model, device=device, verbose=False)
    else:
        hnc = timm_hnc.HNCLoss(variant, topk=args.topk)
        task = timm_hnc.HNCTask(timm_hnc.CamModel(model), hnc=hnc, device=device, verbose=False)
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    target = torch.randint(classes, (args.batch_size,), device=device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            loss = task(images, target)['loss']
        loss.backward()
        if device.type == 'cuda':
            torch.cuda.synchronize()

    return step


def build_model(args: argparse.Namespace, classes: int) -> torch.nn.Module:
    """The network, in training mode and channels-last."""
    torch.manual_seed(0)
    model = timm.create_model(args.model, num_classes=classes, **args.model_kwargs)
    model = model.to(args.device, memory_format=torch.channels_last)
    return model.train()


def time_pairs(args: argparse.Namespace, variant: str, classes: int) -> list[float]:
    """Time of a HNC step over that of a cross-entropy step, one ratio a pair."""
    model = build_model(args, classes)
    steps = [build_step(model, name, args, classes) for name in ('ce', variant)]
    for step in steps * 2:
        step()
    ratios = []
    for pair in range(args.pairs):
        seconds = [0.0, 0.0]
        for index in (0, 1) if pair % 2 else (1, 0):
            start = time.perf_counter()
            steps[index]()
            seconds[index] = time.perf_counter() - start
        ratios.append(seconds[1] / seconds[0])
    return ratios


def _report_peak(args: argparse.Namespace, variant: str, classes: int, queue: multiprocessing.Queue) -> None:
    step = build_step(build_model(args, classes), variant, args, classes)
    for _ in range(3):
        step()
    on_gpu = args.device.startswith('cuda')
    queue.put(
        torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )


def peak_memory(args: argparse.Namespace, variant: str, classes: int) -> int:
    """Peak memory of a few steps in bytes, the least of three fresh processes."""
    context = multiprocessing.get_context('spawn')
    peaks = []
    for _ in range(3):
        queue = context.Queue()
        process = context.Process(target=_report_peak, args=(args, variant, classes, queue))
        process.start()
        peaks.append(queue.get())
        process.join()
    return min(peaks)


def median_interval(values: list[float]) -> tuple[float, float]:
    """95 % confidence interval of the median, from the binomial order statistics (normal approximation)."""
    ordered = sorted(values)
    half = 0.98 * len(values) ** 0.5
    low, high = max(0, int(len(values) / 2 - half)), min(len(values) - 1, int(len(values) / 2 + half))
    return ordered[low], ordered[high]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='resnet50')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='as in timm: name=value ...')
    parser.add_argument('--classes', type=int, nargs='+', default=[1000, 21843])
    parser.add_argument('--variants', nargs='+', default=['mse'], choices=('mse', 'kd'))
    parser.add_argument('--topk', type=int, default=100)
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--img-size', type=int, default=224)
    parser.add_argument('--pairs', type=int, default=40)
    parser.add_argument('--bf16', action='store_true')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    print(
        f'{args.model}, batch {args.batch_size}, {args.img_size} px, k = {args.topk}, {args.device}, torch '
        + torch.__version__
    )
    print('| classes | variant | time over CE (median, 95 %) | pairs | peak memory over CE |')
    print('|---|---|---|---|---|')
    for classes in args.classes:
        ce_peak = peak_memory(args, 'ce', classes)
        for variant in args.variants:
            memory = peak_memory(args, variant, classes) / ce_peak
            ratios = time_pairs(args, variant, classes)
            low, high = median_interval(ratios)
            median = statistics.median(ratios)
            print(
                f'| {classes:,} | {variant} | {median:.3f} ({low:.3f} to {high:.3f}) | {args.pairs} | {memory:.3f} |',
                flush=True,
            )


if __name__ == '__main__':
    main()
