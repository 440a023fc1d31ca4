"""ROAD (Rong et al., ICML 2022), as pytorch-grad-cam's ROADCombined has it, for a whole batch on any device.

Pixels are not blackened but filled in: each missing one becomes the weighted mean of its eight neighbours, known or
missing, plus a little noise. The linear system is symmetric and positive definite, so conjugate gradients solve it.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)  # of a map; pixels from there on are taken away
NOISE = 0.01  # its standard deviation, in the images' units
_WEIGHTS = ((1 / 12, 1 / 6, 1 / 12), (1 / 6, 0, 1 / 6), (1 / 12, 1 / 6, 1 / 12))
_MOST_STEPS, _TOLERANCE = 1000, 1e-4  # against a direct solution 6e-4 at most, a sixteenth of the noise


@torch.no_grad()
def road(model: nn.Module, inputs: Tensor, maps: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    """Half of how much more probability is left without the least relevant pixels than without the most relevant.

    Args:
        model: (B, C, H, W) inputs to (B, n) logits, in evaluation mode.
        inputs: (B, C, H, W) normalised images.
        maps: (B, h, w).
        classes: (B,) class index of each map.
        generator: of the noise, on the CPU.

    Returns:
        (B,) in [-0.5, 0.5], the mean over the percentiles; large is good.
    """
    values = interpolate(maps[:, None].float(), inputs.shape[-2:], mode='bilinear', align_corners=False)
    total = torch.zeros(len(inputs), device=inputs.device)
    for percentile in PERCENTILES:
        for relevance, sign in ((-values, 1), (values, -1)):
            threshold = relevance.flatten(1).quantile(percentile / 100, dim=1)
            filled = impute(inputs, relevance < threshold.view(-1, 1, 1, 1), generator)
            total += sign * model(filled).float().softmax(1).gather(1, classes[:, None]).squeeze(1)
    return total / (2 * len(PERCENTILES))


def impute(images: Tensor, keep: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill in missing pixels from their neighbours.

    Args:
        images: (B, C, H, W).
        keep: (B, 1, H, W) bool, False where a pixel is missing.
        generator: of the noise, on the CPU; none is added if None.
    """
    missing = (~keep).to(images.dtype)
    degree = _neighbours(torch.ones_like(images[:1, :1]))
    solution = torch.zeros_like(images)
    residual = missing * _neighbours(images * keep)
    direction, square = residual.clone(), _dot(residual, residual)
    goal = _TOLERANCE**2 * square
    for step in range(_MOST_STEPS):
        if step % 10 == 0 and (square <= goal).all():
            break
        applied = missing * (degree * direction - _neighbours(direction))
        rate = square / _dot(direction, applied).clamp(min=1e-30)
        solution, residual = solution + rate * direction, residual - rate * applied
        before, square = square, _dot(residual, residual)
        direction = residual + square / before.clamp(min=1e-30) * direction
    if generator is not None:
        solution = solution + NOISE * torch.randn(images.shape, generator=generator).to(images)
    return torch.where(keep, images, solution)


def _neighbours(images: Tensor) -> Tensor:
    kernel = torch.tensor(_WEIGHTS, dtype=images.dtype, device=images.device)
    channels = images.shape[1]
    return conv2d(images, kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum((2, 3), keepdim=True)
