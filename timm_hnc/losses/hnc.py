"""Homogeneous Negative CAM loss.

Paper: Fixing Localization Errors to Improve Image Classification (Sun et al., ECCV 2020), section 3.2.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from timm_hnc.cam import ClassMaps
from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.losses.base import mean_over_images

# mse, kd: of the authors' ImageNet runs in the paper's own scale (sum over the k maps); the halves of mse weigh as it
DEFAULT_WEIGHTS = {'mse': 0.0007, 'kd': 0.0065, 'var': 0.0007, 'logit': 0.0007}
VARIANTS = tuple(DEFAULT_WEIGHTS)
REDUCTIONS = ('sum', 'mean')


def check_options(variant: str, topk: int, alpha: float, reduction: str) -> None:
    """Refuse options of the HNC loss that mean nothing.

    Raises:
        ValueError: with the option's name, its value and what is allowed.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant '{variant}' of the HNC loss is unknown: expected one of {', '.join(VARIANTS)}.")
    if not (_is_finite(topk) and topk >= 1 and topk == int(topk)):
        raise ValueError(f'topk = {topk!r}: the HNC loss looks at a whole number of negative classes, 1 or more.')
    if not _is_finite(alpha):
        raise ValueError(f'alpha = {alpha!r}: the HNC loss pulls maps towards a finite number, 0 in the paper.')
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction '{reduction}' is unknown: expected one of {', '.join(REDUCTIONS)}.")


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError of tensors
        return False


def hnc_loss(
    class_maps: ClassMaps,
    target: Tensor,
    variant: str = 'mse',
    topk: int = 100,
    alpha: float = 0.0,
    reduction: str = 'sum',
    target_floor: float = 0.0,
) -> Tensor:
    r"""Homogeneous Negative CAM loss of a batch.

    Per image, over the top-k negative classes :math:`J'_>` (absent classes with the highest logits):

    .. math::
        \text{mse (Eq. 2):} \quad \frac{1}{hw} \sum_{o \in J'_>} \sum_{i,j} (M_o(i, j) - \alpha)^2 \qquad
        \text{kd (Eq. 5):} \quad -\frac{1}{hw} \sum_{o \in J'_>} \sum_{i,j} \log \sigma(M_o)(i, j)

    with the softmax :math:`\sigma` over positions; then the mean over the batch. An image without negatives adds 0.
    As a map's mean is its logit :math:`s_o`, Eq. 2 is the sum of two halves, which are there alone as well (not in the
    paper): flat maps, and small logits, which need no maps.

    .. math::
        \text{var:} \quad \frac{1}{hw} \sum_{o \in J'_>} \sum_{i,j} (M_o(i, j) - s_o)^2 \qquad
        \text{logit:} \quad \sum_{o \in J'_>} (s_o - \alpha)^2

    Present classes are never among the k. The authors' code sets the present class's score to minus infinity and then
    takes 100: of 100 classes that takes the present one in as well, of fewer its `topk` fails. Here k is cut to the
    negatives that there are.

    Args:
        class_maps: of a batch of B images and n classes.
        target: (B,) class indices, or (B, n) values for several labels, mixup, cutmix or smoothing.
        variant: 'mse' (Eq. 2), 'kd' (Eq. 5), or half of Eq. 2: 'var' or 'logit'.
        topk: k, how many negatives; more than an image has takes them all.
        alpha: the value that 'mse' pulls the maps to and 'logit' the logits, 0 in the paper.
        reduction: 'sum' over the k maps, as in the paper, or their 'mean'.
        target_floor: the value that smoothing gives to absent classes; a class is present above it.

    Returns:
        A scalar, in float32 or float64.

    Raises:
        ValueError: an option or the target's shape is wrong, or a gradient is wanted of maps that have none.
        TypeError: the class maps or the target are of another type.

    Example:
        >>> maps = CamModel(timm.create_model('resnet18')).class_maps(torch.randn(2, 3, 224, 224))
        >>> hnc_loss(maps, torch.tensor([7, 3]), 'kd', topk=10).backward()
    """
    if not torch.compiler.is_compiling():  # numbers may then be symbols
        check_options(variant, topk, alpha, reduction)
    if not isinstance(class_maps, ClassMaps):
        kind = type(class_maps).__name__
        raise TypeError(f'class_maps are a {kind}: expected what cam_model.class_maps(images) returns.')
    class_maps.check_gradient()
    indices, valid = class_maps.topk_negatives(target, int(topk), target_floor)
    return mean_over_images(_of_every_map(class_maps, indices, variant, alpha), valid, reduction)


def _of_every_map(class_maps: ClassMaps, indices: Tensor, variant: str, alpha: float) -> Tensor:
    """(B, k) losses of the maps of these classes."""
    if variant == 'logit':
        return (at_least_float32(class_maps.logits.gather(1, indices)) - alpha).square()
    scores = at_least_float32(class_maps.scores(indices))
    if variant == 'mse':  # Eq. 2
        return class_maps.mean((scores - alpha).square())
    if variant == 'var':
        return class_maps.mean(_centred(class_maps, scores).square())
    return -class_maps.mean(class_maps.log_softmax(scores))  # kd, Eq. 5


def _centred(class_maps: ClassMaps, scores: Tensor) -> Tensor:
    """(B, k, L) scores without their mean over positions."""
    return scores - class_maps.mean(scores)[..., None]


class HNCLoss(nn.Module):
    """`hnc_loss` as a module.

    Args:
        variant: 'mse' (Eq. 2), 'kd' (Eq. 5), or half of Eq. 2: 'var' or 'logit'.
        topk: how many negative classes of every image.
        alpha: the value that 'mse' pulls the maps to, and 'logit' the logits.
        reduction: 'sum' over the maps, as in the paper, or their 'mean'.

    Raises:
        ValueError: an option is wrong.
    """

    needs = 'class_maps'

    def __init__(self, variant: str = 'mse', topk: int = 100, alpha: float = 0.0, reduction: str = 'sum') -> None:
        super().__init__()
        check_options(variant, topk, alpha, reduction)
        self.variant = variant
        self.topk = int(topk)
        self.alpha = alpha
        self.reduction = reduction

    def __call__(self, class_maps: ClassMaps, target: Tensor, target_floor: float = 0.0) -> Tensor:
        """The loss of a batch, as `forward`."""
        loss: Tensor = super().__call__(class_maps, target, target_floor)
        return loss

    def forward(self, class_maps: ClassMaps, target: Tensor, target_floor: float = 0.0) -> Tensor:
        """The loss of a batch, a scalar; see `hnc_loss`."""
        return hnc_loss(class_maps, target, self.variant, self.topk, self.alpha, self.reduction, target_floor)

    @torch.no_grad()
    def norm(self, class_maps: ClassMaps, target: Tensor, target_floor: float = 0.0) -> Tensor:
        """Frobenius norm of the loss's gradient with respect to the maps of a batch, a scalar in float32 or float64."""
        indices, valid = class_maps.topk_negatives(target, self.topk, target_floor)
        count = class_maps.num_positions
        if self.variant == 'kd':  # softmax - 1 / (h w) at every position, and 1 / (h w) is its mean
            shares = class_maps.log_softmax(at_least_float32(class_maps.scores(indices))).exp()
            squares = class_maps.mean(_centred(class_maps, shares).square()) * count
        else:  # twice the distance over h w at every position
            squares = _of_every_map(class_maps, indices, self.variant, self.alpha) * (4 / count)
        squares = squares.masked_fill(~valid, 0.0).sum(1)
        if self.reduction == 'mean':
            squares = squares / valid.sum(1).clamp(min=1).square()
        return squares.sum().sqrt() / len(squares)

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        return f'variant={self.variant}, topk={self.topk}, alpha={self.alpha}, reduction={self.reduction}'
