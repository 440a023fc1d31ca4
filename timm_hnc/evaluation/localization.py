"""Class activation maps against bounding boxes: MaxBoxAccV2, pointing game, energy inside the box."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import box_iou

IOUS = (0.3, 0.5, 0.7)
THRESHOLDS = tuple(step / 20 for step in range(20))


class Localization:
    """Figures of the maps of present classes, an image and class with boxes each.

    - box accuracy at an IoU (MaxBoxAccV2, Choe et al., CVPR 2020): share of maps of which a connected part above a
      threshold has a bounding box of at least that IoU with one of the class's boxes, at the threshold that suits
      the whole data set best (20 thresholds between the lowest and the highest value of a map). Its mean over IoUs of
      0.3, 0.5 and 0.7 is MaxBoxAccV2;
    - pointing (Zhang et al., ECCV 2016): share of maps whose highest value lies in a box;
    - energy (Wang et al., CVPRW 2020): share of a map's values above 0 that lies in the boxes.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all that was counted."""
        self.found = torch.zeros(len(THRESHOLDS), len(IOUS), dtype=torch.float64)
        self.pointing = self.energy = 0.0
        self.count = 0

    def update(self, map_: Tensor, boxes: Tensor, size: tuple[int, int]) -> None:
        """Count one map.

        Args:
            map_: (h, w) class activation map.
            boxes: (m, 4) of its class, in pixels of the input; those without area are left out.
            size: (height, width) of the input.
        """
        boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)]
        if not len(boxes):
            return
        values = interpolate(map_[None, None].double().cpu(), size, mode='bilinear', align_corners=False)[0, 0]
        inside = _inside(boxes, size)
        self.count += 1
        self.pointing += inside.flatten()[values.argmax()].item()
        energy = values.clamp(min=0)
        self.energy += (energy[inside].sum() / energy.sum().clamp(min=1e-12)).item()
        low, high = values.min(), values.max()
        scaled = ((values - low) / (high - low).clamp(min=1e-12)).numpy()
        for row, threshold in enumerate(THRESHOLDS):
            parts = _parts(scaled >= threshold)
            best = box_iou(parts, boxes).max() if len(parts) else 0.0  # a flat map has no part above 0
            self.found[row] += torch.tensor([float(best >= iou) for iou in IOUS])

    def gather(self, device: torch.device) -> None:
        """Add what the other processes counted."""
        rest = torch.tensor([self.pointing, self.energy, float(self.count)], dtype=torch.float64)
        sums = torch.cat([self.found.flatten(), rest]).to(device)
        torch.distributed.all_reduce(sums)
        sums = sums.cpu()
        self.found = sums[:-3].view_as(self.found)
        self.pointing, self.energy, self.count = sums[-3].item(), sums[-2].item(), round(sums[-1].item())

    def compute(self) -> dict[str, float]:
        """Figures in percent, and the number of maps that were compared."""
        number = max(1, self.count)
        best = 100 * self.found.amax(0) / number
        return {
            'max_box_acc_v2': best.mean().item(),
            **{f'box_acc_{iou:g}': value for iou, value in zip(IOUS, best.tolist(), strict=True)},
            'pointing': 100 * self.pointing / number,
            'energy': 100 * self.energy / number,
            'maps_with_boxes': self.count,
        }


def _inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) bool: the centre of the pixel lies in a box."""
    rows, columns = (torch.arange(length, dtype=boxes.dtype) + 0.5 for length in size)
    within = (columns >= boxes[:, :1]) & (columns <= boxes[:, 2:3])
    below = (rows >= boxes[:, 1:2]) & (rows <= boxes[:, 3:4])
    return (below[:, :, None] & within[:, None]).any(0)


def _parts(mask: np.ndarray) -> Tensor:
    """(m, 4) boxes around the connected parts of a mask, corners included."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    slices = ndimage.find_objects(labels)
    corners = [[x.start, y.start, x.stop, y.stop] for y, x in slices]
    return torch.tensor(corners, dtype=torch.float64).reshape(-1, 4)
