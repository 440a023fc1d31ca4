"""Margins on the angles between features and classifier rows: A-Softmax, large-margin cosine, additive angular margin.

SphereFace (Liu et al., CVPR 2017), CosFace (Wang et al., CVPR 2018), ArcFace (Deng et al., CVPR 2019).
"""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from timm_hnc.cam import ClassMaps
from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.losses.base import Loss, Needs, at_least, features, linear_in_full, unused_bias

_EDGE = 1e-7  # acos has no gradient at 1 and -1
_SHORT = 1e-6  # vectors below this length are divided by it: an angle's gradient grows as 1 / length


class AngularLoss(Loss):
    """Softmax of scaled cosines, in which the image's own class has to win by a margin.

    The bias of the classifier and the lengths of its rows play no part. What is exported has rows of length 1 and
    no bias: the same ranking of classes, other probabilities.
    """

    needs: ClassVar[Needs] = 'class_maps'
    needs_features = True
    export_note = (
        'the saved classifier has rows of length 1 and no bias: the same ranking of classes, other probabilities'
    )

    def forward(self, class_maps: ClassMaps, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        vectors = features(class_maps)
        rows = functional.normalize(at_least_float32(class_maps.weight).to(vectors.dtype), eps=_SHORT)
        cosine = linear_in_full(functional.normalize(vectors, eps=_SHORT), rows)
        own = cosine.gather(1, target[:, None])
        scores = cosine.scatter(1, target[:, None], self.with_margin(own)) * self.scale_of(vectors)
        return functional.cross_entropy(scores, target) + unused_bias(class_maps)

    def with_margin(self, cosine: Tensor) -> Tensor:
        """What takes the place of the image's own cosine."""
        raise NotImplementedError

    def scale_of(self, vectors: Tensor) -> Tensor | float:
        """The factor on cosines: a number, or (B, 1)."""
        raise NotImplementedError

    def plain_classifier(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Rows of length 1 and no bias."""
        return functional.normalize(weight, eps=_SHORT), None if bias is None else torch.zeros_like(bias)


class ASoftmaxLoss(AngularLoss):
    r"""SphereFace: :math:`\|x\| \psi(\theta_y)` with :math:`\psi(\theta) = (-1)^k \cos(m \theta) - 2k`.

    As in the authors' code it begins near the softmax: in place of the own cosine stands
    :math:`(\lambda \cos \theta + \psi(\theta)) / (1 + \lambda)` with
    lambda = max(min_weight, base / (1 + gamma * step)). Steps are counted in training mode.

    Args:
        margin: m, a whole number; 4 in the paper.
        base: of lambda; with base and min_weight 0 there is no annealing.
        gamma: of lambda.
        min_weight: smallest lambda.

    Raises:
        ValueError: an option is out of range.
    """

    step: Tensor

    def __init__(self, margin: int = 4, base: float = 1000.0, gamma: float = 0.12, min_weight: float = 5.0) -> None:
        super().__init__()
        if not (math.isfinite(margin) and margin >= 1 and margin == int(margin)):
            raise ValueError(f'margin = {margin}: expected a whole number of 1 or more, it multiplies the angle.')
        self.margin = int(margin)
        self.base = at_least(0, base=base)
        self.gamma = at_least(0, gamma=gamma)
        self.min_weight = at_least(0, min_weight=min_weight)
        self.register_buffer('step', torch.zeros((), dtype=torch.long))

    def with_margin(self, cosine: Tensor) -> Tensor:
        """See `AngularLoss.with_margin`."""
        if self.training:
            self.step += 1
        annealing = (self.base / (1 + self.gamma * self.step)).clamp(min=self.min_weight).to(cosine.dtype)
        angle = torch.acos(cosine.clamp(_EDGE - 1, 1 - _EDGE))
        interval = (angle.detach() * self.margin / math.pi).floor()
        sign = 1 - 2 * (interval % 2)
        psi = sign * torch.cos(self.margin * angle) - 2 * interval
        return (annealing * cosine + psi) / (1 + annealing)

    def scale_of(self, vectors: Tensor) -> Tensor:
        """The length of the features."""
        return vectors.square().sum(1, keepdim=True).clamp(min=_SHORT**2).sqrt()


class LargeMarginCosineLoss(AngularLoss):
    r"""CosFace (LMC): :math:`s (\cos \theta_y - m)`.

    Args:
        margin: m, 0.35 in the paper.
        scale: s, 64 in the paper.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(self, margin: float = 0.35, scale: float = 64.0) -> None:
        super().__init__()
        self.margin = at_least(0, margin=margin)
        self.scale = at_least(0, scale=scale)
        if scale == 0:
            raise ValueError(f'scale = {scale}: expected a number above 0, all scores would be 0.')

    def with_margin(self, cosine: Tensor) -> Tensor:
        """See `AngularLoss.with_margin`."""
        return cosine - self.margin

    def scale_of(self, vectors: Tensor) -> float:
        """A number."""
        return self.scale


class AdditiveAngularMarginLoss(LargeMarginCosineLoss):
    r"""ArcFace (AAM): :math:`s \cos(\theta_y + m)`.

    Beyond :math:`\theta_y = \pi - m`, where that would rise again, it is :math:`s (\cos \theta_y - m \sin m)`.

    Args:
        margin: m in radians, 0.5 in the paper.
        scale: s, 64 in the paper.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(self, margin: float = 0.5, scale: float = 64.0) -> None:
        super().__init__(margin, scale)
        if margin > math.pi:
            raise ValueError(f'margin = {margin}: expected radians, 0 to pi.')

    def with_margin(self, cosine: Tensor) -> Tensor:
        """See `AngularLoss.with_margin`."""
        angle = torch.acos(cosine.clamp(_EDGE - 1, 1 - _EDGE))
        return torch.where(
            angle <= math.pi - self.margin, torch.cos(angle + self.margin), cosine - self.margin * math.sin(self.margin)
        )
