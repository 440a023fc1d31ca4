"""Weighted sigmoid cross-entropy for several labels (Eq. 8 of the paper; Li et al., ACPR 2015)."""

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.losses.base import MULTI_LABEL, Loss

Reduction = Literal['mean', 'sum']


class WeightedSigmoidLoss(Loss):
    r"""Binary cross-entropy, present classes weighted by :math:`e^{1 - p_o}`, absent ones by :math:`e^{p_o}`.

    Eq. 8 divides an image's sum over classes by their number n. The code that the paper's Table 4 was run on, that of
    attention consistency (Guo et al., CVPR 2019), does not, at the same learning rate: its loss and gradients are n
    times as large.

    Args:
        class_counts: (n,) training samples that have the class.
        num_samples: of the training data; p_o is the share of them that has the class.
        reduction: over the classes of an image: 'mean' as Eq. 8 is printed, or 'sum' as it was run. Over images it is
            the mean.

    Raises:
        ValueError: the counts are no shares of the samples, or the reduction is another.
    """

    tasks: ClassVar[tuple[str, ...]] = (MULTI_LABEL,)
    counts_for: ClassVar[tuple[str, ...]] = (MULTI_LABEL,)
    soft_targets = True
    present: Tensor
    absent: Tensor

    def __init__(self, class_counts: Tensor, num_samples: int, reduction: Reduction = 'mean') -> None:
        super().__init__()
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction = {reduction}: expected 'mean' or 'sum', over the classes of an image.")
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
        if not (num_samples > 0 and (counts >= 0).all() and (counts <= num_samples).all()):
            raise ValueError(f'class counts of {num_samples} samples: expected 0 to {num_samples} for each class.')
        self.reduction = reduction
        share = (counts / num_samples).to(torch.get_default_dtype())
        # they follow from the data of a run
        self.register_buffer('present', (1 - share).exp(), persistent=False)
        self.register_buffer('absent', share.exp(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch with (B, n) targets, a scalar."""
        logits = at_least_float32(logits)
        target = target.to(logits.dtype)
        if self.smoothing:
            target = target * (1 - self.smoothing) + self.smoothing / 2
        positive = self.present.to(logits.dtype) * target * -functional.logsigmoid(logits)
        negative = self.absent.to(logits.dtype) * (1 - target) * -functional.logsigmoid(-logits)
        losses = positive + negative
        return losses.mean() if self.reduction == 'mean' else losses.sum(1).mean()
