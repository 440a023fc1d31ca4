"""A perceptually uniform colour map that colour-blind readers can follow, without a plotting library."""

import torch
from torch import Tensor

# Ten equally spaced colours of viridis, by S. van der Walt and N. Smith (CC0). Its hue changes together with its
# lightness, so a level can still be told where the map lies over a dark or a bright part of a picture.
ANCHORS = (
    (68, 1, 84),
    (72, 40, 120),
    (62, 74, 137),
    (49, 104, 142),
    (38, 130, 142),
    (31, 158, 137),
    (53, 183, 121),
    (109, 205, 89),
    (180, 222, 44),
    (253, 231, 37),
)


def apply_colormap(values: Tensor) -> Tensor:
    """(..., 3) uint8 sRGB colours of finite values: dark violet up to 0, over blue and green, to yellow from 1 on."""
    anchors = torch.tensor(ANCHORS, dtype=torch.float32, device=values.device)
    place = values.float().clamp(0, 1) * (len(ANCHORS) - 1)
    lower = place.long().clamp(max=len(ANCHORS) - 2)
    share = (place - lower)[..., None]
    return (anchors[lower] * (1 - share) + anchors[lower + 1] * share).round().to(torch.uint8)
