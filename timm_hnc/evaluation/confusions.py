"""Which absent classes have peaks in their maps, and where which class is present."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from timm_hnc.cam import ClassMaps
from timm_hnc.metrics.map_quality import map_figures


class ConfusionPass:
    """Pairs of a present class and the highest-scoring absent class, with the peaks of the latter's maps.

    Of every image the present class with the highest logit counts. There are no more pairs than images.

    Args:
        class_names: a name a class.
    """

    def __init__(self, class_names: list[str]) -> None:
        self.class_names = class_names
        # images, images in which the absent class scores higher, sum of peaks
        self.pairs: dict[tuple[int, int], list[float]] = {}

    @torch.no_grad()
    def update(self, class_maps: ClassMaps, target: Tensor, inputs: Tensor, padding: int) -> None:
        """Count a batch with (B,) class indices or (B, n) label sets."""
        negatives, valid = class_maps.topk_negatives(target, 1)
        positives, there = class_maps.topk_positives(target, 1)
        logits = class_maps.logits.float()
        peaks = map_figures(class_maps.maps(negatives))[..., 0]
        counted = valid[:, 0] & there[:, 0]
        counted[len(target) - padding :] = False
        confused = logits.gather(1, negatives) > logits.gather(1, positives)
        rows = torch.cat([positives.to(peaks), negatives.to(peaks), confused.to(peaks), peaks], 1)
        for present, absent, wrong, peak in rows[counted].tolist():
            sums = self.pairs.setdefault((int(present), int(absent)), [0, 0, 0.0])
            for place, value in enumerate((1, wrong, peak)):
                sums[place] += value

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """No figure of its own; from here on the pairs are those of all processes."""
        if accelerator.num_processes > 1:
            gathered = gather_object([self.pairs])
            self.pairs = {}
            for pairs in gathered:
                for pair, sums in pairs.items():
                    own = self.pairs.setdefault(pair, [0, 0, 0.0])
                    self.pairs[pair] = [left + right for left, right in zip(own, sums, strict=True)]
        return {}

    def rows(self, count: int) -> list[dict[str, Any]]:
        """The pairs with the highest sum of peaks, highest first.

        Returns:
            'present' and 'absent' class, how many 'images', in how many the absent class scores higher ('confused'),
            and the mean of the peaks over the mean of their maps ('peak', units of logits).
        """
        ranked = sorted(self.pairs.items(), key=lambda pair: (-pair[1][2], pair[0]))[:count]
        return [
            {
                'present': self.class_names[present],
                'absent': self.class_names[absent],
                'images': int(images),
                'confused': int(confused),
                'peak': peaks / images,
            }
            for (present, absent), (images, confused, peaks) in ranked
        ]
