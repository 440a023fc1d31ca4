"""Attention consistency (Guo et al., CVPR 2019): what a network sees should move with the image."""

from typing import ClassVar

from torch import Tensor, nn

from timm_hnc.cam import ClassMaps
from timm_hnc.losses.base import MULTI_LABEL, SINGLE_LABEL, Loss, Needs, at_least, raised
from timm_hnc.losses.weighted_sigmoid import WeightedSigmoidLoss


class AttentionConsistencyLoss(Loss):
    """Criterion of images and mirror images + weight * the mean squared difference of their maps, all classes.

    The criterion is cross-entropy, or Eq. 8 of the HNC paper for several labels, as in its Table 4.

    Args:
        multi_label: several labels an image.
        class_counts: (n,) training samples that have the class, for several labels.
        num_samples: of the training data, for several labels.
        weight: of the consistency. The authors' code for COCO has 0.6 beside Eq. 8 summed over classes,
            not averaged, and compares with smaller images as well.

    Raises:
        ValueError: the weight is negative.
    """

    needs: ClassVar[Needs] = 'two_views'
    tasks: ClassVar[tuple[str, ...]] = (SINGLE_LABEL, MULTI_LABEL)
    counts_for: ClassVar[tuple[str, ...]] = (MULTI_LABEL,)

    def __init__(
        self,
        multi_label: bool = False,
        class_counts: Tensor | None = None,
        num_samples: int | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = at_least(0, weight=weight)
        self.criterion: nn.Module = nn.CrossEntropyLoss()
        if multi_label:
            if class_counts is None or num_samples is None:
                raise ValueError('class counts and number of samples are needed for several labels.')
            self.criterion = WeightedSigmoidLoss(class_counts, num_samples)

    def forward(self, class_maps: ClassMaps, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            class_maps: of B images and behind them their mirror images.
            target: (B,) class indices or (B, n) label sets.
        """
        maps, mirrored = raised(class_maps.maps()).chunk(2)
        consistency = (maps.flip(-1) - mirrored).square().mean()
        both = target.repeat(2, *[1] * (target.ndim - 1))
        return self.criterion(raised(class_maps.logits), both) + self.weight * consistency

    def extra_repr(self) -> str:
        """The options, for print(task)."""
        return f'weight={self.weight}'
