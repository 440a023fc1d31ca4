"""Guided Complement Entropy (Chen et al., ICCV 2019, arXiv 1903.09799): flat scores where HNC has flat maps."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.losses.base import Loss, at_least


class GuidedComplementEntropyLoss(Loss):
    r"""Entropy of the absent classes among themselves, as far as the image's class is found already.

    :math:`p_y^\alpha \sum_{k \ne y} c_k \log c_k / \log(n - 1)` with :math:`c_k = p_k / (1 - p_y)`: from 0 down to -1.

    Args:
        alpha: guiding exponent, 0.2 in the paper.

    Raises:
        ValueError: alpha is negative.
    """

    min_classes = 3

    def __init__(self, alpha: float = 0.2) -> None:
        super().__init__()
        self.alpha = at_least(0, alpha=alpha)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Raises:
            ValueError: there are fewer than three classes.
        """
        logits = at_least_float32(logits)
        num_classes = logits.shape[1]
        if num_classes < self.min_classes:
            raise ValueError(f'{num_classes} classes: guided complement entropy needs {self.min_classes} or more.')
        present = functional.one_hot(target, num_classes).bool()
        # a softmax over the absent classes alone; a finite number keeps 0 * log 0 out of the gradient
        absent = logits.masked_fill(present, torch.finfo(logits.dtype).min).log_softmax(1)
        entropy = -(absent.exp() * absent.masked_fill(present, 0.0)).sum(1)
        guide = (self.alpha * logits.log_softmax(1).gather(1, target[:, None]).squeeze(1)).exp()
        return -(guide * entropy).mean() / math.log(num_classes - 1)
