"""Choosing the top-k negative classes of every image (J'_> in section 3.2 of the paper), and the present ones."""

import torch
from torch import Tensor

# timm's mixup builds its targets by rounding arithmetic; an absent class may exceed its smoothing value by that much
ROUNDING = 1e-6


def holds_indices(target: Tensor) -> bool:
    """Whether a target is (B,) class indices, integers of any type."""
    return target.ndim == 1 and not target.is_floating_point() and target.dtype != torch.bool


def negative_classes(target: Tensor, num_classes: int, target_floor: float = 0.0) -> Tensor:
    """Which classes are absent from every image.

    Args:
        target: (B,) class indices, or (B, n) with a value a class (several labels, mixup, cutmix, smoothing). What is
            absent is not known of an index outside 0 to n - 1, such as the -100 that cross-entropy ignores: no class. A
            class whose value is below 0 is not known to be absent.
        num_classes: n.
        target_floor: the value that smoothing gives to absent classes; a class is present above it.

    Returns:
        (B, n) bool, True where the class is negative.

    Raises:
        ValueError: the target has neither shape, or the floor is out of range.
        TypeError: the target is no tensor.
    """
    if not isinstance(target, Tensor):
        raise TypeError(f'the target is a {type(target).__name__}: expected a tensor.')
    if not 0 <= target_floor < 1:
        raise ValueError(f'target_floor = {target_floor}: expected 0 or more and below 1.')
    if holds_indices(target):
        own = _own_classes(target, num_classes)
        return ~own & own.any(1, keepdim=True)
    if target.ndim == 2 and target.shape[1] == num_classes:
        values = target if target.dtype == torch.float64 else target.float()
        return (values <= _highest_absent(target, target_floor)) & (values > -ROUNDING)
    raise ValueError(
        f'target of shape {tuple(target.shape)} and type {target.dtype}: expected (batch,) integer class indices '
        f'or (batch, {num_classes}) values, one a class.'
    )


@torch.no_grad()
def topk_negatives(logits: Tensor, target: Tensor, k: int, target_floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """The k negative classes with the highest logits of every image (J'_> of Eq. 2, without its ties).

    Args:
        logits: (B, n).
        target: (B,) class indices, or (B, n) values, one a class.
        k: how many negatives; more than there are takes them all.
        target_floor: the value that smoothing gives to absent classes.

    Returns:
        indices (B, k') of classes by falling logit and valid (B, k') bool, k' = min(k, n). Where valid is False the
        image has fewer negatives of finite logits than k' and the index means nothing. No gradient flows through the
        choice.

    Raises:
        ValueError: k is below 1, or the target's shape does not fit the logits.

    Example:
        >>> topk_negatives(torch.tensor([[0.1, 3.0, 2.0]]), torch.tensor([1]), k=2)[0]
        tensor([[2, 0]])
    """
    if k < 1:
        raise ValueError(f'k = {k}: at least one negative class must be chosen.')
    return _topk(logits, negative_classes(target, logits.shape[1], target_floor), k)


@torch.no_grad()
def topk_positives(logits: Tensor, target: Tensor, k: int, target_floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """The k present classes with the highest logits of every image; arguments, result and errors as `topk_negatives`.

    Of class indices k' is 1: every image has one present class.
    """
    if k < 1:
        raise ValueError(f'k = {k}: at least one present class must be chosen.')
    negative = negative_classes(target, logits.shape[1], target_floor)
    if target.ndim == 1:
        return _topk(logits, _own_classes(target, logits.shape[1]), 1)
    return _topk(logits, ~negative & (target >= 0), k)


def _highest_absent(target: Tensor, target_floor: float) -> float:
    step = torch.finfo(target.dtype).eps if target.is_floating_point() else 0.0
    return target_floor + max(ROUNDING, 2 * step * target_floor)


def _own_classes(target: Tensor, num_classes: int) -> Tensor:
    """(B, n) bool of (B,) class indices."""
    return torch.arange(num_classes, device=target.device) == target.long()[:, None]


def _topk(logits: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if len(candidates) != len(logits):
        raise ValueError(f'target of {len(candidates)} images: expected {len(logits)}, as there are logits.')
    indices = logits.masked_fill(~candidates, -torch.inf).topk(min(k, logits.shape[1]), dim=1).indices
    return indices, candidates.gather(1, indices)
