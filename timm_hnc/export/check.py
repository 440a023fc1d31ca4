"""Whether an exported graph says what the model says, and what its maps cost."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timm_hnc.export.files import Runner
from timm_hnc.export.graph import MapGraph

_ROUNDS = 15


@dataclass(frozen=True)
class Agreement:
    """How far a file's outputs are from PyTorch's.

    Args:
        difference: the largest, over logits and maps.
        largest: absolute value that PyTorch has.
    """

    difference: float
    largest: float

    @property
    def relative(self) -> float:
        """The difference as a share of the largest value."""
        return self.difference / self.largest if self.largest else self.difference


@torch.no_grad()
def compare(run: Runner, graph: MapGraph, batches: Sequence[Tensor]) -> Agreement:
    """Run both on batches of images; NaN where one of them is not finite.

    Classes may rank otherwise where logits are equal: the maps of those that the file chose are compared.
    """
    differences, values = [], []
    for images in batches:
        found = run(images)
        expected = graph(images, found.get('classes'))
        if 'classes' in found:
            logits = expected['logits']
            chosen, best = logits.gather(1, found['classes']), logits.topk(found['classes'].shape[1]).values
            differences.append((chosen - best).abs().max())
        for name in expected:
            if name != 'classes':
                differences.append((found[name] - expected[name]).abs().max())
                values.append(expected[name].abs().max())
    return Agreement(torch.stack(differences).max().item(), torch.stack(values).max().item())


def cost(run: Runner, plain: Runner, image: Tensor) -> tuple[float, float]:
    """Seconds that a graph takes for an image, and as a multiple of another; medians of runs in turn."""
    seconds: dict[Runner, list[float]] = {run: [], plain: []}
    for _ in range(_ROUNDS):
        for each, times in seconds.items():
            started = time.perf_counter()
            each(image)
            times.append(time.perf_counter() - started)
    ours, theirs = (statistics.median(times) for times in seconds.values())
    return ours, ours / theirs
