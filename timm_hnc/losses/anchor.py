"""Anchor loss (Ryou et al., ICCV 2019, arXiv 1909.11155)."""

from torch import Tensor
from torch.nn import functional

from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.losses.base import Loss, at_least


class AnchorLoss(Loss):
    r"""Binary cross-entropy that weighs a class by how far its probability is above that of the image's class.

    With sigmoids q: :math:`-\log q_y - \sum_{k \ne y} (1 + q_k - (q_y - \delta))^\gamma \log(1 - q_k)`.
    The anchor :math:`q_y` carries no gradient in the weight. The authors' code also keeps the anchor at 0 or above and
    begins with five epochs of cross-entropy; the formula does neither.

    Args:
        gamma: exponent, 0.5 in the paper.
        slack: delta, 0.05 in the paper.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(self, gamma: float = 0.5, slack: float = 0.05) -> None:
        super().__init__()
        self.gamma = at_least(0, gamma=gamma)
        self.slack = at_least(0, slack=slack)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        logits = at_least_float32(logits)
        probability = logits.sigmoid()
        anchor = probability.gather(1, target[:, None]).detach() - self.slack
        # with no slack an absent class can be as far below the anchor as 1: the power has no gradient at 0
        weight = (1 + probability - anchor).clamp(min=1e-6).pow(self.gamma)
        absent = 1 - functional.one_hot(target, logits.shape[1])
        negative = (absent * weight * -functional.logsigmoid(-logits)).sum(1)
        positive = -functional.logsigmoid(logits.gather(1, target[:, None])).squeeze(1)
        return (positive + negative).mean()
