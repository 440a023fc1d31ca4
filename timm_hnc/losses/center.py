"""Center loss (Wen et al., ECCV 2016)."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from timm_hnc.cam import ClassMaps
from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.losses.base import Loss, Needs, at_least, features

_IGNORED = -100  # the label of images that cross-entropy leaves out


class CenterLoss(Loss):
    r"""Cross-entropy + :math:`\lambda / 2` times the mean squared distance of features to the center of their class.

    The centers are parameters that follow the paper's own rule (its Eq. 4), not the gradient of the loss: a step of
    plain SGD at rate alpha moves :math:`c_j` by :math:`-\alpha \sum_i [y_i = j] (c_j - x_i) / (1 + m_j)`
    with m_j samples of class j in the batch. `--loss-lr` is alpha, 0.5 in the paper. Of several processes, and of
    batches whose gradients are accumulated, each has its own m_j, and the step is the mean of theirs.

    Args:
        num_classes: n.
        num_features: D, inputs of the classifier.
        weight: lambda, 0.003 in the paper's experiments.

    Raises:
        ValueError: the weight is negative.
    """

    needs: ClassVar[Needs] = 'class_maps'
    needs_features = True
    steps_of_sgd = True

    def __init__(self, num_classes: int, num_features: int, weight: float = 0.003) -> None:
        super().__init__()
        self.weight = at_least(0, weight=weight)
        # features behind ReLU and a mean begin near 0, and the centers reach them within a few visits
        self.centers = nn.Parameter(torch.zeros(num_classes, num_features))

    def forward(self, class_maps: ClassMaps, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        vectors, known = features(class_maps), target != _IGNORED
        centers = self.centers.to(vectors.dtype)[target.where(known, 0)]
        squares = (vectors - centers.detach()).square().sum(1)
        distance = squares.where(known, 0).sum() / known.sum().clamp(min=1) / 2
        criterion = functional.cross_entropy(at_least_float32(class_maps.logits), target)
        return criterion + self.weight * distance + self._center_update(vectors.detach(), centers, target)

    def _center_update(self, vectors: Tensor, centers: Tensor, target: Tensor) -> Tensor:
        """Nothing in value, the paper's update of the centers as its gradient."""
        count = (target[:, None] == target[None]).sum(1)
        pulls = (vectors - centers).square().sum(1) / (2 * (1 + count))
        pull = pulls.where(target != _IGNORED, 0).sum()
        return pull - pull.detach()
