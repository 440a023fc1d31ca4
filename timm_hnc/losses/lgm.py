"""Large-margin Gaussian mixture loss (Wan et al., CVPR 2018, arXiv 1803.02988), with identity covariance."""

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from timm_hnc.cam import ClassMaps
from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.losses.base import Loss, Needs, at_least, features, linear_in_full, unused_bias


class LargeMarginGaussianLoss(Loss):
    r"""Features as a mixture of Gaussians around the classifier's rows, a class each.

    With :math:`d_k = \|x - \mu_k\|^2 / 2`: cross-entropy of :math:`-d_k`, the image's own class at
    :math:`-(1 + \alpha) d_y`, + :math:`\lambda d_y` (likelihood). Without the margin it is the softmax of the linear
    classifier with rows mu and biases :math:`-\|\mu\|^2 / 2`, which is exported.

    Args:
        margin: alpha; 0.1, where the authors' schedule for CIFAR-100 begins.
        likelihood_weight: lambda, 0.1.

    Raises:
        ValueError: an option is negative.
    """

    needs: ClassVar[Needs] = 'class_maps'
    needs_features = True
    export_note = 'the saved classifier has the biases -|w|^2 / 2: the same probabilities as in training'

    def __init__(self, margin: float = 0.1, likelihood_weight: float = 0.1) -> None:
        super().__init__()
        self.margin = at_least(0, margin=margin)
        self.likelihood_weight = at_least(0, likelihood_weight=likelihood_weight)

    def forward(self, class_maps: ClassMaps, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        vectors = features(class_maps)
        means = at_least_float32(class_maps.weight).to(vectors.dtype)
        own = (vectors - means[target]).square().sum(1) / 2
        weight, bias = self.plain_classifier(means, None)
        # -d_k but for |x|^2 / 2, which the softmax does not see
        scores = linear_in_full(vectors, weight, bias)
        margin = functional.one_hot(target, len(means)) * (self.margin * own)[:, None]
        criterion = functional.cross_entropy(scores - margin, target)
        return criterion + self.likelihood_weight * own.mean() + unused_bias(class_maps)

    def plain_classifier(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The rows, and -|row|^2 / 2 as bias: the same probabilities."""
        return weight, -weight.square().sum(1) / 2
