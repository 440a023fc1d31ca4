"""Attention consistency (Guo et al., CVPR 2019): what a network sees should move with the image."""

from typing import ClassVar

from torch import Tensor, nn

from timm_hnc.cam import ClassMaps
from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.losses.base import MULTI_LABEL, SINGLE_LABEL, Loss, Needs, at_least
from timm_hnc.losses.maps.consistency import ConsistencyLoss
from timm_hnc.losses.weighted_sigmoid import Reduction, WeightedSigmoidLoss


class AttentionConsistencyLoss(Loss):
    """Criterion of images and mirror images + weight * the mean squared difference of their maps (`ConsistencyLoss`).

    The criterion is cross-entropy, or Eq. 8 of the HNC paper for several labels, as in its Table 4.

    By default it is what the authors' code for MS-COCO does with images and mirror images: Eq. 8 summed over classes,
    and weight 0.6. Their code goes further: it takes every image and its mirror image in a second, smaller size (256
    beside 288 pixels) as well, for the criterion and a second such difference of weight 0.6, and adds 0.8 * the mean
    squared difference of maps between the sizes.

    Args:
        multi_label: several labels an image.
        class_counts: (n,) training samples that have the class, for several labels.
        num_samples: of the training data, for several labels.
        weight: of the consistency, beside cross-entropy or Eq. 8 summed over classes.
        reduction: over the classes of an image, for several labels: 'sum' as the authors', or 'mean', which divides the
            loss by their number n and so keeps the balance of its two parts (see `WeightedSigmoidLoss`).

    Raises:
        ValueError: the weight is negative, the reduction is another, or cross-entropy is told to take the mean.
    """

    needs: ClassVar[Needs] = 'two_views'
    tasks: ClassVar[tuple[str, ...]] = (SINGLE_LABEL, MULTI_LABEL)
    counts_for: ClassVar[tuple[str, ...]] = (MULTI_LABEL,)

    def __init__(
        self,
        multi_label: bool = False,
        class_counts: Tensor | None = None,
        num_samples: int | None = None,
        weight: float = 0.6,
        reduction: Reduction = 'sum',
    ) -> None:
        super().__init__()
        self.weight = at_least(0, weight=weight)
        self.consistency = ConsistencyLoss()
        self.criterion: nn.Module = nn.CrossEntropyLoss()
        self.reduction = reduction
        if multi_label:
            if class_counts is None or num_samples is None:
                raise ValueError('class counts and number of samples are needed for several labels.')
            self.criterion = WeightedSigmoidLoss(class_counts, num_samples, reduction)
        elif reduction != 'sum':
            raise ValueError(f'reduction = {reduction}: for several labels only.')

    def forward(self, class_maps: ClassMaps, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            class_maps: of B images and behind them their mirror images.
            target: (B,) class indices or (B, n) label sets.
        """
        weight = self.weight / (class_maps.num_classes if self.reduction == 'mean' else 1)
        both = target.repeat(2, *[1] * (target.ndim - 1))
        return self.criterion(at_least_float32(class_maps.logits), both) + weight * self.consistency(class_maps, both)
