"""Losses by name, with what they can be told."""

import inspect
from typing import Any

from torch import Tensor

from timm_hnc.losses.anchor import AnchorLoss
from timm_hnc.losses.attention_consistency import AttentionConsistencyLoss
from timm_hnc.losses.base import GIVEN, MULTI_LABEL, SINGLE_LABEL, Loss
from timm_hnc.losses.center import CenterLoss
from timm_hnc.losses.focal import ClassBalancedFocalLoss, FocalLoss
from timm_hnc.losses.guided_complement import GuidedComplementEntropyLoss
from timm_hnc.losses.lgm import LargeMarginGaussianLoss
from timm_hnc.losses.maps.base import MapLoss
from timm_hnc.losses.maps.boxes import EnergyLoss, OutsideLoss, TargetMapsLoss
from timm_hnc.losses.maps.consistency import ConsistencyLoss
from timm_hnc.losses.maps.separability import SeparabilityLoss
from timm_hnc.losses.maps.teacher import TeacherLoss
from timm_hnc.losses.margin import AdditiveAngularMarginLoss, ASoftmaxLoss, LargeMarginCosineLoss
from timm_hnc.losses.max_entropy import MaxEntropyLoss
from timm_hnc.losses.weighted_sigmoid import WeightedSigmoidLoss

LOSSES: dict[str, type[Loss]] = {
    'focal': FocalLoss,
    'cb-focal': ClassBalancedFocalLoss,
    'center': CenterLoss,
    'lgm': LargeMarginGaussianLoss,
    'a-softmax': ASoftmaxLoss,
    'lmc': LargeMarginCosineLoss,
    'aam': AdditiveAngularMarginLoss,
    'anchor': AnchorLoss,
    'weighted-sigmoid': WeightedSigmoidLoss,
    'attention-consistency': AttentionConsistencyLoss,
    'guided-complement': GuidedComplementEntropyLoss,
    'max-entropy': MaxEntropyLoss,
}
# on class maps, beside any criterion
MAP_LOSSES: dict[str, type[MapLoss]] = {
    'energy': EnergyLoss,
    'outside': OutsideLoss,
    'target-maps': TargetMapsLoss,
    'separability': SeparabilityLoss,
    'consistency': ConsistencyLoss,
    'teacher': TeacherLoss,
}


def loss_options(name: str) -> dict[str, Any]:
    """The options of a loss that a user sets, with their defaults."""
    return LOSSES[name].options()


def create_loss(
    name: str,
    *,
    num_classes: int,
    num_features: int,
    class_counts: Tensor | None = None,
    num_samples: int | None = None,
    multi_label: bool = False,
    smoothing: float = 0.0,
    **options: Any,
) -> Loss:
    """A loss by its name.

    Args:
        name: one of LOSSES.
        num_classes: n.
        num_features: D, inputs of the classifier.
        class_counts: (n,) training samples of every class, for losses that want them (`Loss.counts_for`).
        num_samples: of the training data.
        multi_label: several labels an image.
        smoothing: label smoothing, for losses that take soft targets.
        **options: of the loss, see `loss_options`.

    Raises:
        ValueError: the loss, the task or an option is unknown, a value means nothing, counts are missing, or there are
            too few classes.

    Example:
        >>> create_loss('lmc', num_classes=100, num_features=64, scale=30.0)
        LargeMarginCosineLoss(margin=0.35, scale=30.0)
    """
    if name not in LOSSES:
        raise ValueError(f"loss '{name}' is unknown: expected one of {', '.join(LOSSES)}.")
    kind, task = LOSSES[name], MULTI_LABEL if multi_label else SINGLE_LABEL
    if task not in kind.tasks:
        raise ValueError(f"loss '{name}' is for {' and '.join(kind.tasks)} only.")
    if not 0 <= smoothing < 1:
        raise ValueError(f'smoothing = {smoothing}: expected 0 or more and below 1.')
    if smoothing and not kind.soft_targets:
        raise ValueError(f"loss '{name}' takes no label smoothing.")
    if task in kind.counts_for and (class_counts is None or num_samples is None):
        raise ValueError(f"loss '{name}' needs the class counts of the training data.")
    if class_counts is not None and len(class_counts) != num_classes:
        raise ValueError(f"loss '{name}': {len(class_counts)} class counts for {num_classes} classes.")
    if num_classes < kind.min_classes:
        raise ValueError(f"loss '{name}' needs {kind.min_classes} classes or more, got {num_classes}.")
    allowed = loss_options(name)
    for option in options:
        if option not in allowed:
            known = f'one of {", ".join(allowed)}' if allowed else 'none'
            raise ValueError(f"loss '{name}' has no option '{option}': expected {known}.")
    values = (num_classes, num_features, class_counts, num_samples, multi_label)
    wanted = inspect.signature(kind).parameters
    try:
        given = {key: value for key, value in zip(GIVEN, values, strict=True) if key in wanted}
        loss = kind(**given, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"loss '{name}': {str(error).rstrip('.')}.") from error
    loss.smoothing = smoothing
    return loss
