"""Maximum-entropy fine-grained classification (Dubey et al., NeurIPS 2018)."""

from torch import Tensor

from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.losses.base import Loss, at_least, soft


class MaxEntropyLoss(Loss):
    r"""Cross-entropy minus :math:`\gamma` times the entropy of the predicted probabilities.

    Args:
        gamma: weight of the entropy, 1 in most of the paper's experiments; 0 is cross-entropy.

    Raises:
        ValueError: gamma is negative.
    """

    soft_targets = True

    def __init__(self, gamma: float = 1.0) -> None:
        super().__init__()
        self.gamma = at_least(0, gamma=gamma)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        log_probability = at_least_float32(logits).log_softmax(1)
        target = soft(target, log_probability, self.smoothing)
        entropy = -(log_probability.exp() * log_probability).sum(1)
        return (-(target * log_probability).sum(1) - self.gamma * entropy).mean()
