"""How flat the class maps of absent classes are, and those of present ones, over a data set."""

import math
from typing import Any

import torch
from torch import Tensor

from timm_hnc.cam import ClassMaps
from timm_hnc.cam.negatives import ROUNDING
from timm_hnc.cam.number_types import widest

FIGURES = ('peak', 'positive_share', 'kl')
GROUPS = ('negative', 'positive')


def map_figures(maps: Tensor) -> Tensor:
    """Figures of class activation maps.

    Args:
        maps: (..., h, w) in units of logits.

    Returns:
        (..., 3) in float64, or float32 on devices without it: 'peak', the highest value above the mean;
        'positive_share' of cells above 0; 'kl', the Kullback-Leibler divergence of the uniform map from the softmax of
        the map (Eq. 4 of the paper), in nats.

    Example:
        >>> map_figures(torch.tensor([[0.0, 0.0], [0.0, 4.0]]))[0]
        tensor(3., dtype=torch.float64)
    """
    cells = maps.flatten(-2).to(widest(maps.device))
    mean = cells.mean(-1)
    divergence = cells.logsumexp(-1) - mean - math.log(cells.shape[-1])
    return torch.stack([cells.amax(-1) - mean, (cells > 0).to(cells).mean(-1), divergence.clamp(min=0)], -1)


def present_classes(target: Tensor) -> tuple[Tensor, Tensor]:
    """Classes that are in every image, as many columns as the image with the most has, and which columns count.

    Args:
        target: (B,) class indices or (B, n) label sets.

    Returns:
        (B, m) indices and (B, m) bool.
    """
    if target.ndim == 1:
        return target[:, None].long(), torch.ones_like(target[:, None], dtype=torch.bool)
    there, present = (target > ROUNDING).sort(dim=1, descending=True, stable=True)
    most = max(1, int(there.sum(1).max()))
    return present[:, :most], there[:, :most].clone()


class MapQuality:
    """Means of `map_figures` over the top-k negatives and over the present classes of all images, also class by class.

    Args:
        num_classes: n.
        topk: negatives of each image, highest logits first.
    """

    def __init__(self, num_classes: int, topk: int = 10) -> None:
        self.topk = topk
        # a row a class: sums of the figures, and the number of maps
        self.sums = torch.zeros(len(GROUPS), num_classes, len(FIGURES) + 1, dtype=torch.float64)

    @torch.no_grad()
    def update(self, class_maps: ClassMaps, target: Tensor, padding: int = 0) -> None:
        """Count the maps of a batch with (B,) class indices or (B, n) label sets, but for its last `padding` images."""
        negatives, valid = class_maps.topk_negatives(target, self.topk)
        valid[len(target) - padding :] = False
        self._add(0, class_maps.maps(negatives), negatives, valid)
        present, there = present_classes(target)
        there[len(target) - padding :] = False
        self._add(1, class_maps.maps(present), present, there)

    def _add(self, group: int, maps: Tensor, classes: Tensor, valid: Tensor) -> None:
        figures = map_figures(maps)[valid].cpu().double()
        rows = torch.cat([figures, torch.ones(len(figures), 1, dtype=torch.float64)], 1)
        self.sums[group].index_add_(0, classes[valid].cpu(), rows)

    def compute(self) -> dict[str, float]:
        """Means over all maps of a group, such as 'negative_peak'; NaN for a group without maps."""
        totals = self.sums.sum(1)
        return {
            f'{group}_{name}': (totals[row, column] / totals[row, -1]).item()
            for row, group in enumerate(GROUPS)
            for column, name in enumerate(FIGURES)
        }

    def per_class(self, class_names: list[str]) -> list[dict[str, Any]]:
        """A row a class: its name, the number of its maps in each group, and their figures."""
        rows = []
        for index, name in enumerate(class_names):
            row: dict[str, Any] = {'class': name}
            for group, sums in zip(GROUPS, self.sums[:, index].tolist(), strict=True):
                *figures, maps = sums
                row[f'{group}_maps'] = int(maps)
                row |= {
                    f'{group}_{figure}': value / maps if maps else None
                    for figure, value in zip(FIGURES, figures, strict=True)
                }
            rows.append(row)
        return rows
