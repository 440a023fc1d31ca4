"""Class activation maps against bounding boxes: MaxBoxAccV2, pointing game, energy inside the boxes."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from timm_hnc.data.input_geometry import InputFrame
from timm_hnc.metrics.level_boxes import LEVELS, level_boxes

IOUS = (0.3, 0.5, 0.7)
TOLERANCE = 15
_EQUAL = 1e-9  # of a map's range: what interpolation makes of equal values differs by rounding


class Localization:
    """Figures of the maps of present classes, an image and class with boxes each.

    - box accuracy at an IoU (MaxBoxAccV2, Choe et al., CVPR 2020), as github.com/clovaai/wsolevaluation computes it:
      see `best_ious`; its mean over IoUs of 0.3, 0.5 and 0.7 is MaxBoxAccV2;
    - pointing game (Zhang et al., ECCV 2016), as github.com/facebookresearch/TorchRay computes it: see `points_at`;
      the mean over the classes that have maps;
    - energy (Wang et al., CVPRW 2020): share of a map's values above 0 that lies in the boxes.
    """

    def __init__(self, num_classes: int) -> None:
        self.found = torch.zeros(LEVELS, len(IOUS), dtype=torch.float64)
        self.hits = torch.zeros(num_classes, 2, dtype=torch.float64)  # and maps, a row a class
        self.energy = torch.zeros(1, dtype=torch.float64)

    def update(self, map_: Tensor, label: int, boxes: Tensor, frame: InputFrame) -> None:
        """Count one map, unless its input shows none of the boxes.

        Args:
            map_: (h, w) class activation map of an input.
            label: its class.
            boxes: (m, 4) x1, y1, x2, y2 of this class, in pixels of the stored image.
            frame: how the input shows this image.
        """
        seen = frame.boxes(boxes)
        seen = seen[((seen[:, 2:] - seen[:, :2]) > 0).all(1)]
        if not len(seen):
            return
        map_ = map_.cpu().double()
        ious = torch.from_numpy(best_ious(map_, seen, frame.size))
        self.found += ious[:, None] >= torch.tensor(IOUS, dtype=ious.dtype)
        self.hits[label] += torch.tensor([points_at(map_, boxes, frame), 1])
        self.energy += energy_inside(map_, seen, frame.size)

    def compute(self) -> dict[str, float]:
        """Figures in percent, and the number of maps that were compared."""
        hits, maps = self.hits.unbind(1)
        number = maps.sum().clamp(min=1)
        accuracy = 100 * self.found.amax(0) / number
        classes = (maps > 0).sum().clamp(min=1)
        return {
            'max_box_acc_v2': accuracy.mean().item(),
            **{f'box_acc_{iou:g}': value for iou, value in zip(IOUS, accuracy.tolist(), strict=True)},
            'pointing': (100 * (hits / maps.clamp(min=1)).sum() / classes).item(),
            'energy': (100 * self.energy / number).item(),
            'maps_with_boxes': round(maps.sum().item()),
        }


def best_ious(map_: Tensor, boxes: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The best IoU of a part of a map with a box, at every threshold.

    As in wsolevaluation with `multi_contour_eval`: the map, enlarged to the input by bicubic interpolation and scaled
    to 0 to 1, is cut down to the integers 0 to 255, so that the 1,000 thresholds are 255 different ones. A part is a
    connected set of pixels above the threshold, or a hole in one with the pixels around it. Its box ends one pixel
    behind its last, corners are whole numbers, and both ends count as inside.

    Args:
        map_: (h, w).
        boxes: (m, 4) x1, y1, x2, y2 in pixels of the input.
        size: (height, width) of the input.

    Returns:
        (255,) in float64.
    """
    best = np.zeros(LEVELS)
    truth = boxes.double().numpy().astype(np.int64)
    enlarged = interpolate(map_[None, None].double(), size, mode='bicubic', align_corners=False)[0, 0].numpy()
    scaled = enlarged - enlarged.min()
    if _is_flat(map_) or not 0 < scaled.max() < np.inf:
        best[:] = _ious(np.zeros((1, 4), np.int64), truth).max()
        return best
    values = (scaled / scaled.max() * LEVELS).astype(np.int32)
    ranks = np.empty(values.size, dtype=np.int32)
    ranks[scaled.ravel().argsort()] = np.arange(values.size, dtype=np.int32)
    ranks = ranks.reshape(values.shape)
    levels, parts = level_boxes(values, ranks, corners=True)
    below, gaps = level_boxes(LEVELS - values, values.size - 1 - ranks, corners=False)
    last = np.array(values.shape[::-1]) - 1
    holes = (gaps[:, :2] > 0).all(1) & (gaps[:, 2:] < last).all(1)  # the others are open to the border
    levels = np.concatenate([levels, LEVELS - 1 - below[holes]])
    parts = np.concatenate([parts, gaps[holes] + [-1, -1, 1, 1]])
    parts[:, 2:] = np.minimum(parts[:, 2:] + 1, last)
    np.maximum.at(best, levels, _ious(parts, truth).max(1))
    return best


def _is_flat(map_: Tensor) -> bool:
    """Whether a map is the same everywhere, as a single cell is, or of NaN: it stands for its first pixel.

    Enlarged, it would not be: interpolation rounds.
    """
    return not bool(map_.max() > map_.min())


def _ious(parts: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(k, m) intersections over unions of boxes whose last pixel is inside."""
    inner = np.minimum(parts[:, None, 2:], boxes[:, 2:]) - np.maximum(parts[:, None, :2], boxes[:, :2]) + 1
    shared = inner.clip(min=0).prod(-1)
    areas = [(corners[:, 2:] - corners[:, :2] + 1).prod(-1) for corners in (parts, boxes)]
    return shared / (areas[0][:, None] + areas[1] - shared)


def points_at(map_: Tensor, boxes: Tensor, frame: InputFrame, tolerance: float = TOLERANCE) -> bool:
    """Whether the highest value of a map lies nearer to a pixel of a box than the tolerance.

    As in TorchRay: in pixels of the stored image, to which the map is enlarged by bilinear interpolation. (There,
    objects of COCO are outlines instead of boxes, and a class that no image has counts as missed.)

    Args:
        map_: (h, w).
        boxes: (m, 4) x1, y1, x2, y2 in pixels of the stored image.
        frame: how the map's input shows it.
        tolerance: in pixels of the stored image.
    """
    x1, y1, x2, y2 = frame.window
    height, width = max(1, round(y2 - y1)), max(1, round(x2 - x1))
    values = interpolate(map_[None, None].double(), (height, width), mode='bilinear', align_corners=False)[0, 0]
    high = values.max()
    highest = values >= high - _EQUAL * (high - values.min())
    place = 0 if _is_flat(map_) else int(highest.flatten().int().argmax())
    point = torch.tensor([place % width + round(x1), place // width + round(y1)])
    first = (boxes[:, :2] - 0.5).ceil()  # pixels whose centre is in the box
    last = (boxes[:, 2:] - 0.5).floor().maximum(first)
    distance = point.maximum(first).minimum(last) - point
    return bool((distance.square().sum(1) < tolerance**2).any())


def energy_inside(map_: Tensor, boxes: Tensor, size: tuple[int, int]) -> float:
    """Share of a map's values above 0 that lies in the boxes, 0 where it has none.

    Args:
        map_: (h, w).
        boxes: (m, 4) x1, y1, x2, y2 in pixels of the input.
        size: (height, width) of the input.
    """
    values = interpolate(map_[None, None].double(), size, mode='bilinear', align_corners=False)[0, 0].clamp(min=0)
    rows, columns = (torch.arange(length, dtype=boxes.dtype) + 0.5 for length in size)
    within = (columns >= boxes[:, :1]) & (columns <= boxes[:, 2:3])
    below = (rows >= boxes[:, 1:2]) & (rows <= boxes[:, 3:4])
    inside = (below[:, :, None] & within[:, None]).any(0)
    return (values[inside].sum() / values.sum().clamp(min=1e-12)).item()
