"""Weighted sigmoid cross-entropy for several labels (Eq. 8 of the paper; Li et al., ACPR 2015)."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from timm_hnc.losses.base import MULTI_LABEL, Loss, raised


class WeightedSigmoidLoss(Loss):
    r"""Binary cross-entropy, present classes weighted by :math:`e^{1 - p_o}`, absent ones by :math:`e^{p_o}`.

    The mean over classes and images.

    Args:
        class_counts: (n,) training samples that have the class.
        num_samples: of the training data; p_o is the share of them that has the class.

    Raises:
        ValueError: the counts are no shares of the samples.
    """

    tasks: ClassVar[tuple[str, ...]] = (MULTI_LABEL,)
    counts_for: ClassVar[tuple[str, ...]] = (MULTI_LABEL,)
    soft_targets = True
    present: Tensor
    absent: Tensor

    def __init__(self, class_counts: Tensor, num_samples: int) -> None:
        super().__init__()
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
        if not (num_samples > 0 and (counts >= 0).all() and (counts <= num_samples).all()):
            raise ValueError(f'class counts of {num_samples} samples: expected 0 to {num_samples} for each class.')
        share = (counts / num_samples).to(torch.get_default_dtype())
        self.register_buffer('present', (1 - share).exp())
        self.register_buffer('absent', share.exp())

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch with (B, n) targets, a scalar."""
        logits = raised(logits)
        target = target.to(logits.dtype)
        if self.smoothing:
            target = target * (1 - self.smoothing) + self.smoothing / 2
        positive = self.present.to(logits.dtype) * target * -functional.logsigmoid(logits)
        negative = self.absent.to(logits.dtype) * (1 - target) * -functional.logsigmoid(-logits)
        return (positive + negative).mean()
