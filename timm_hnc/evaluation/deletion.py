"""Deletion and insertion curves (RISE, Petsiuk et al., BMVC 2018): does a map name the pixels that its score needs?"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import gaussian_blur

BLUR_SIZE, BLUR_SIGMA = 11, 5.0  # of the authors' code
CURVES = ('deletion', 'insertion')


@torch.no_grad()
def curve_areas(
    model: nn.Module, inputs: Tensor, maps: Tensor, classes: Tensor, steps: int, multi_label: bool = False
) -> Tensor:
    """Areas under the probability of a class while pixels are taken away, or brought back, in the order of its map.

    Deletion begins with the image and ends with the mean colour everywhere, small areas are good; insertion begins with
    the blurred image and ends with the image, large ones are good.

    Args:
        model: (B, C, H, W) inputs to (B, n) logits, in evaluation mode.
        inputs: (B, C, H, W) normalised images, whose mean colour is 0.
        maps: (B, h, w) class activation maps.
        classes: (B,) class index of each map.
        steps: how many times pixels change; the curve has one point more.
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
    size = [min(BLUR_SIZE, side - (side + 1) % 2) for side in (height, width)]
    ends = (
        (inputs, torch.zeros_like(inputs)),
        (gaussian_blur(inputs.float(), [size[1], size[0]], [BLUR_SIGMA] * 2).to(inputs.dtype), inputs),
    )
    areas = []
    for first, last in ends:
        points = []
        for step in range(steps + 1):
            changed = ranks < step * height * width / steps
            logits = model(torch.where(changed, last, first)).float()
            probability = logits.sigmoid() if multi_label else logits.softmax(1)
            points.append(probability.gather(1, classes[:, None]).squeeze(1))
        areas.append(torch.trapezoid(torch.stack(points), dx=1 / steps, dim=0))
    return torch.stack(areas)
