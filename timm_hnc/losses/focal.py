"""Focal loss on the softmax (Lin et al., ICCV 2017) and weighted by class (Cui et al., CVPR 2019)."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.losses.base import SINGLE_LABEL, Loss, at_least, soft


class FocalLoss(Loss):
    r"""Cross-entropy that looks away from what is classified well: :math:`-(1 - p_y)^\gamma \log p_y`.

    With soft targets t it is the sum over classes, each term times t. The paper's own loss is on sigmoids; for several
    classes the softmax is what is compared with cross-entropy.

    Args:
        gamma: focusing exponent, 2 in the paper; 0 is cross-entropy.

    Raises:
        ValueError: gamma is negative.
    """

    soft_targets = True

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = at_least(0, gamma=gamma)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        return self._terms(at_least_float32(logits), target).sum(1).mean()

    def _terms(self, logits: Tensor, target: Tensor) -> Tensor:
        """(B, n) parts of the loss, a class each."""
        log_probability = logits.log_softmax(1)
        # log(1 - p): exact where p is near 1, and without a gradient that is 0 / 0
        others = torch.log(-torch.expm1(log_probability.clamp(max=-1e-7)))
        target = soft(target, logits, self.smoothing)
        return -target * (self.gamma * others).exp() * log_probability


class ClassBalancedFocalLoss(FocalLoss):
    r"""Focal loss with every class weighted by its effective number of samples.

    Weights are :math:`(1 - \beta) / (1 - \beta^{n_y})`, normalised to sum to the number of classes. A class without
    samples counts as one with a single sample. The authors' own code multiplies the sigmoid form, this is the softmax.

    Args:
        class_counts: (n,) training samples of every class.
        gamma: focusing exponent.
        beta: 0.9999 in the paper; 0 weighs all classes alike, near 1 by inverse frequency.

    Raises:
        ValueError: an option is out of range.
    """

    counts_for: ClassVar[tuple[str, ...]] = (SINGLE_LABEL,)
    weight: Tensor

    def __init__(self, class_counts: Tensor, gamma: float = 2.0, beta: float = 0.9999) -> None:
        super().__init__(gamma)
        if not 0 <= beta < 1:
            raise ValueError(f'beta = {beta}: expected 0 or more and below 1.')
        self.beta = beta
        counts = torch.as_tensor(class_counts, dtype=torch.float64).clamp(min=1)
        # 1 - beta^n, exact where beta is near 1
        effective = -torch.expm1(counts * math.log(beta)) if beta else torch.ones_like(counts)
        weight = (1 - beta) / effective
        weight = (weight * len(weight) / weight.sum()).to(torch.get_default_dtype())
        self.register_buffer('weight', weight, persistent=False)  # follows from the data and the options of a run

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        terms = self._terms(at_least_float32(logits), target)
        return (terms * self.weight.to(terms.dtype)).sum(1).mean()
