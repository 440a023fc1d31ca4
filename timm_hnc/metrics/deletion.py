"""Deletion and insertion curves (RISE, Petsiuk et al., BMVC 2018): does a map name the pixels that its score needs?"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

BLUR_SIZE, BLUR_SIGMA = 11, 5.0
CURVES = ('deletion', 'insertion')


@torch.no_grad()
def curve_areas(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    maps: Tensor,
    classes: Tensor,
    steps: int,
    multi_label: bool = False,
) -> Tensor:
    """Areas under the probability of a class while pixels are taken away, or brought back, in the order of its map.

    Deletion begins with the image and ends with the mean colour everywhere, small areas are good; insertion begins with
    the blurred image (`blur`) and ends with the image, large ones are good. As in github.com/eclique/RISE, whose
    notebook takes 224 steps for single images of 224 x 224 pixels and 28 for many.

    Args:
        model: (B, C, H, W) inputs to (B, n) logits, in evaluation mode.
        inputs: (B, C, H, W) normalised images, whose mean colour is 0.
        maps: (B, h, w) class activation maps.
        classes: (B,) class index of each map.
        steps: how many times pixels change, equally many each time but for the last; where they do not divide the
            pixels, fewer steps may do.
        multi_label: probabilities are sigmoids instead of a softmax.

    Returns:
        (2, B) areas under the deletion and the insertion curve, in [0, 1].
    """
    height, width = inputs.shape[-2:]
    values = interpolate(maps[:, None].float(), (height, width), mode='bilinear', align_corners=False)
    order = values.flatten(1).argsort(dim=1, descending=True)
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(height * width, device=order.device).expand_as(order)
    )
    ranks = ranks.view(len(inputs), 1, height, width)
    each = math.ceil(height * width / steps)
    steps = math.ceil(height * width / each)
    areas = []
    for first, last in ((inputs, torch.zeros_like(inputs)), (blur(inputs), inputs)):
        points = []
        for step in range(steps + 1):
            logits = model(torch.where(ranks < step * each, last, first)).float()
            probability = logits.sigmoid() if multi_label else logits.softmax(1)
            points.append(probability.gather(1, classes[:, None]).squeeze(1))
        areas.append(torch.trapezoid(torch.stack(points), dx=1 / steps, dim=0))
    return torch.stack(areas)


def blur(inputs: Tensor) -> Tensor:
    """Images as RISE blurs them.

    Its kernel is what `scipy.ndimage.gaussian_filter` (sigma 5, 41 pixels wide) makes of the middle one of 11 x 11
    pixels: what falls outside is reflected at their borders, which all but flattens it. Around an image is the mean
    colour.

    Args:
        inputs: (B, C, H, W) normalised images, whose mean colour is 0.
    """
    reach = round(4 * BLUR_SIGMA)
    offsets = torch.arange(-reach, reach + 1)
    weights = (-0.5 * (offsets.double() / BLUR_SIGMA) ** 2).exp()
    places = (BLUR_SIZE // 2 + offsets) % (2 * BLUR_SIZE)
    places = places.minimum(2 * BLUR_SIZE - 1 - places)
    line = torch.zeros(BLUR_SIZE, dtype=torch.float64).index_add_(0, places, weights / weights.sum())
    kernel = line.to(inputs.device, torch.float32).repeat(inputs.shape[1], 1, 1, 1)
    half, channels = BLUR_SIZE // 2, inputs.shape[1]
    along = conv2d(inputs.float(), kernel, padding=(0, half), groups=channels)
    return conv2d(along, kernel.transpose(2, 3).contiguous(), padding=(half, 0), groups=channels).to(inputs.dtype)
