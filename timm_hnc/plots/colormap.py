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
    """Colours of values: dark violet for 0 over blue and green to yellow for 1, lightness growing all the way.

    Args:
        values: (H, W), or any other shape, of finite floats; those outside [0, 1] get the colour of the nearer end.

    Returns:
        (H, W, 3) uint8 sRGB colours on the device of the values.

    Raises:
        ValueError: a value is not finite; it has no colour.

    Example:
        >>> apply_colormap(torch.tensor([[0.0, 1.0]])).tolist()
        [[[68, 1, 84], [253, 231, 37]]]
    """
    if not torch.isfinite(values).all():
        raise ValueError('values with NaN or infinity have no colour: replace or mask them first.')
    anchors = torch.tensor(ANCHORS, dtype=torch.float32, device=values.device)
    place = values.float().clamp(0, 1) * (len(ANCHORS) - 1)
    lower = place.long().clamp(max=len(ANCHORS) - 2)
    share = (place - lower)[..., None]
    return (anchors[lower] * (1 - share) + anchors[lower + 1] * share).round().to(torch.uint8)
