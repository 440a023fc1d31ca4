#!/usr/bin/env python3
"""What HNC adds to a step, measured on the head alone: pool, linear layer and loss of a ResNet-50's last features.

A whole step varies by more than HNC adds to it; here the growth with the number of classes can be seen. Cross-entropy,
HNC and the published way run in one process, in interleaved rounds.

    python benchmarks/head_cost.py [--classes 1000 21843] [--topk 100] [--rounds 60]
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from steps.measure import median_interval
from steps.table import machine
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

import timm_hnc

_FEATURES, _SIDE = 2048, 7
_WARM_UP = 5


def build_steps(classes: int, topk: int, batch_size: int) -> dict[str, Callable[[], list[Tensor]]]:
    """Forward and backward pass of cross-entropy ('ce'), with HNC ('mse'), and HNC on all n maps ('full').

    Each returns the loss, and the gradients of positions, weight and bias.
    """
    torch.manual_seed(0)
    positions = torch.randn(batch_size, _SIDE * _SIDE, _FEATURES, requires_grad=True)
    weight = (0.02 * torch.randn(classes, _FEATURES)).requires_grad_()
    bias = torch.zeros(classes, requires_grad=True)
    target = torch.randint(classes, (batch_size,))

    def step(variant: str) -> list[Tensor]:
        positions.grad = weight.grad = bias.grad = None
        logits = linear(positions.mean(1), weight, bias)
        loss = cross_entropy(logits, target)
        if variant == 'mse':
            class_maps = timm_hnc.ClassMaps(positions, weight, bias, (_SIDE, _SIDE), logits)
            loss = loss + 0.001 * timm_hnc.hnc_loss(class_maps, target, topk=topk)
        elif variant == 'full':
            maps = linear(positions, weight, bias)
            chosen, valid = timm_hnc.cam.topk_negatives(logits, target, topk)
            mask = torch.zeros_like(logits).scatter(1, chosen, valid.to(logits.dtype))
            loss = loss + 0.001 * (maps.square().mean(1) * mask).sum(1).mean()
        loss.backward()
        return [loss.detach(), *(each.grad for each in (positions, weight, bias) if each.grad is not None)]

    return {variant: partial(step, variant) for variant in ('ce', 'mse', 'full')}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--classes', type=int, nargs='+', default=[10, 100, 1000, 10000, 21843])
    parser.add_argument('--topk', type=int, default=100)
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=60)
    args = parser.parse_args()
    steps = {
        (classes, variant): step
        for classes in args.classes
        for variant, step in build_steps(classes, args.topk, args.batch_size).items()
    }
    milliseconds: dict[tuple[int, str], list[float]] = {key: [] for key in steps}
    turns = list(steps)
    for index in range(-_WARM_UP, args.rounds):
        turns = turns[1:] + turns[:1]  # a step is slower behind a large one
        for key in turns:
            step = steps[key]
            start = time.perf_counter()
            step()
            if index >= 0:
                milliseconds[key].append((time.perf_counter() - start) * 1e3)
    print(f'{machine("cpu")}; batch {args.batch_size}, k {args.topk}, {_SIDE} x {_SIDE} positions of {_FEATURES}\n')
    print('| classes | cross-entropy, ms | HNC adds, ms (95 %) | published way adds, ms (95 %) |\n|--:|--:|---|---|')
    for classes in args.classes:
        ce = milliseconds[classes, 'ce']
        added = [
            '{:.1f} ({:.1f} to {:.1f})'.format(
                *median_interval([own - other for own, other in zip(milliseconds[classes, variant], ce, strict=True)])
            )
            for variant in ('mse', 'full')
        ]
        print(f'| {classes:,} | {median_interval(ce)[0]:.1f} | {added[0]} | {added[1]} |')


if __name__ == '__main__':
    main()
