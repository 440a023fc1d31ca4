"""Time and peak memory of training steps without their update."""

import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from multiprocessing import get_context

import timm
import torch
from timm.task import ClassificationTask
from torch import Tensor, nn

import timm_hnc
from steps.cases import Case
from timm_hnc.cam.object_masks import ObjectMasks
from timm_hnc.losses import AutoWeight
from timm_hnc.losses.maps.boxes import EnergyLoss
from timm_hnc.tasks import ClassMapTask

VARIANTS = ('ce', 'mse', 'kd', 'auto', 'energy', 'full')
_WARM_UP = 3
_WEIGHT = 0.001


class FullMapTask(nn.Module):
    """Cross-entropy and HNC the published way: a 1x1 convolution to all n maps, a mask of the top k, an MSE."""

    def __init__(self, cam_model: timm_hnc.CamModel, topk: int) -> None:
        super().__init__()
        self.cam_model = cam_model
        self.topk = topk

    def forward(self, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The loss of a batch, as 'loss'."""
        class_maps = self.cam_model(images, return_class_maps=True)
        maps = class_maps.maps()
        logits = maps.mean((2, 3))
        indices, valid = timm_hnc.cam.topk_negatives(logits, target, self.topk)
        mask = torch.zeros_like(logits).scatter(1, indices, valid.to(logits.dtype))
        hnc = (maps.square() * mask[:, :, None, None]).mean((2, 3)).sum(1).mean()
        return {'loss': nn.functional.cross_entropy(logits, target) + _WEIGHT * hnc}


def build_model(case: Case, device: str) -> nn.Module:
    """The network, in training mode and channels-last."""
    torch.manual_seed(0)
    model = timm.create_model(case.model, num_classes=case.classes, **case.model_kwargs)
    return model.to(device, memory_format=torch.channels_last).train()


def build_task(model: nn.Module, variant: str, topk: int, device: str) -> nn.Module:
    """Cross-entropy ('ce'), HNC, or the published way of HNC ('full').

    HNC is 'mse', 'kd', or 'auto', mse whose weight follows; 'energy' is no HNC but maps drawn into boxes.
    """
    if variant == 'ce':
        return ClassificationTask(model, device=torch.device(device), verbose=False)
    cam_model = timm_hnc.CamModel(model)
    if variant == 'full':
        return FullMapTask(cam_model, topk)
    if variant == 'energy':
        losses = {'energy': (EnergyLoss(), 1.0)}
        return ClassMapTask(cam_model, map_losses=losses, device=torch.device(device), verbose=False)
    hnc = timm_hnc.HNCLoss('mse' if variant == 'auto' else variant, topk=topk)
    weight = AutoWeight() if variant == 'auto' else _WEIGHT
    return timm_hnc.HNCTask(cam_model, hnc=hnc, hnc_weight=weight, device=torch.device(device), verbose=False)


def build_step(model: nn.Module, variant: str, case: Case, device: str) -> Callable[[], None]:
    """Forward and backward pass of one batch of random images."""
    task = build_task(model, variant, case.topk, device)
    forward = torch.compile(task) if case.mode == 'compiled' else task
    images = torch.randn(case.batch_size, 3, case.img_size, case.img_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    target = torch.randint(case.classes, (case.batch_size,), device=device)
    masks = []
    if variant == 'energy':
        cover = torch.zeros(case.batch_size, 1, 7, 7, device=device)
        cover[..., 2:5, 2:5] = 1
        masks = [ObjectMasks(target[:, None], cover)]

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=case.dtype == 'bfloat16'):
            loss = forward(images, target, *masks)['loss']
        loss.backward()
        if device != 'cpu':
            torch.accelerator.synchronize()

    return step


def time_rounds(case: Case, variants: Sequence[str], device: str) -> dict[str, list[float]]:
    """Seconds of a step of every variant in `case.pairs` rounds, whose order turns from one to the next."""
    model = build_model(case, device)
    steps = {variant: build_step(model, variant, case, device) for variant in variants}
    for step in list(steps.values()) * _WARM_UP:
        step()
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for index in range(case.pairs):
        turned = [*variants[index % len(variants) :], *variants[: index % len(variants)]]
        for variant in turned:
            start = time.perf_counter()
            steps[variant]()
            seconds[variant].append(time.perf_counter() - start)
    return seconds


def time_pairs(
    plain: Callable[[], object], other: Callable[[], object], pairs: int, clock: Callable[[], float]
) -> tuple[list[float], float]:
    """Time of the other step over that of the plain one, a ratio a pair; and the plain one's median in seconds."""
    for step in (plain, other):
        step()
    ratios, plain_seconds = [], []
    for pair in range(pairs):
        seconds = {}
        for step in (plain, other) if pair % 2 else (other, plain):
            start = clock()
            step()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            seconds[step] = clock() - start
        ratios.append(seconds[other] / seconds[plain])
        plain_seconds.append(seconds[plain])
    return ratios, statistics.median(plain_seconds)


def _peak(case: Case, variant: str, device: str) -> int:
    step = build_step(build_model(case, device), variant, case, device)
    for _ in range(_WARM_UP):
        step()
    if device == 'cpu':
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated()


def peak_memory(case: Case, variant: str, device: str, processes: int = 3) -> int:
    """Peak memory of a few steps in bytes, the least of some fresh processes.

    All resident memory on a CPU, the allocator's peak on a GPU.
    """
    peaks = []
    for _ in range(processes):
        with ProcessPoolExecutor(1, get_context('spawn')) as fresh:
            peaks.append(fresh.submit(_peak, case, variant, device).result())
    return min(peaks)


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95 % confidence interval, of binomial order statistics; of less than 6 values, their ends."""
    ordered, count = sorted(values), len(values)
    # of 2^count ways to lie on the two sides of the median, those in which at most so many lie below it
    ways = accumulate(math.comb(count, below) for below in range(count))
    place = max(0, sum(each <= 0.025 * 2**count for each in ways) - 1)
    return statistics.median(ordered), ordered[place], ordered[-1 - place]
