"""Whether an exported graph says what the model says, and what its maps cost."""

import copy
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timm_hnc.export.files import Runner
from timm_hnc.export.graph import MapGraph

_FEWEST_PAIRS = 15
_SECONDS = 1.5  # or longer: one run of a small model says little


@dataclass(frozen=True)
class Agreement:
    """How far the output of a file that is furthest from PyTorch's is from it.

    Args:
        name: of the output.
        difference: the largest.
        largest: absolute value of this output that PyTorch has.
    """

    name: str
    difference: float
    largest: float

    @property
    def relative(self) -> float:
        """The difference as a share of the largest value."""
        return self.difference / self.largest if self.largest else self.difference


@torch.no_grad()
def compare(run: Runner, graph: MapGraph, batches: Sequence[Tensor]) -> Agreement:
    """Run both on batches of images; NaN where one of them is not finite, infinity where shapes differ.

    Classes may rank otherwise where logits are equal: their logits are compared, and the maps of those that the file
    chose.
    """
    differences: dict[str, list[float]] = {}
    values: dict[str, list[float]] = {}
    for images in batches:
        found = run(images)
        expected = graph(images, found.get('classes'))
        if 'classes' in found:
            logits = expected['logits']
            expected['classes'] = logits.topk(found['classes'].shape[1]).values
            found['classes'] = logits.gather(1, found['classes'])
        for name, value in expected.items():
            same = found[name].shape == value.shape
            differences.setdefault(name, []).append((found[name] - value).abs().max().item() if same else math.inf)
            values.setdefault(name, []).append(value.abs().max().item())
    each = [Agreement(name, _largest(found), _largest(values[name])) for name, found in differences.items()]
    return max(each, key=lambda agreement: (math.isnan(agreement.relative), agreement.relative))


def rounding(graph: MapGraph, batches: Sequence[Tensor]) -> Agreement | None:
    """How far PyTorch's float32 is from its float64, None for models that cannot be in float64."""
    exact = copy.deepcopy(graph).double()
    try:
        return compare(lambda images: exact(images.double() if images.is_floating_point() else images), graph, batches)
    except Exception:  # whatever a model raises that has float32 in its code
        return None


def _largest(values: Sequence[float]) -> float:
    """NaN if one of them is."""
    return max(values, key=lambda value: (math.isnan(value), value))


def cost(run: Runner, plain: Runner, image: Tensor) -> tuple[float, float]:
    """Seconds that a graph takes for an image, and as a multiple of another; medians of runs in turn."""
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + _SECONDS
    while len(pairs) < _FEWEST_PAIRS or time.perf_counter() < end:
        pairs.append((_seconds(run, image), _seconds(plain, image)))
    return statistics.median(ours for ours, _ in pairs), statistics.median(ours / theirs for ours, theirs in pairs)


def _seconds(run: Runner, image: Tensor) -> float:
    started = time.perf_counter()
    run(image)
    return time.perf_counter() - started
