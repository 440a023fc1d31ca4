"""The classes whose maps are asked for."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from timm_hnc.cam.transforms import in_transform

Classes = Tensor | Sequence[int] | int


def class_indices(classes: Classes, batch: int, num_classes: int, device: torch.device) -> Tensor:
    """(B, k) class indices in int64 of what `ClassMaps.maps` takes, which tells of the errors too."""
    if not isinstance(classes, Tensor):
        indices = _numbers(classes, batch)
        wrong = [index for index in indices if not 0 <= index < num_classes]
        if wrong:
            raise _out_of_range(wrong[0], num_classes)
        return torch.tensor(indices, dtype=torch.int64, device=device).expand(batch, -1)
    integers = not (classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool)
    if integers and not classes.ndim:
        classes = classes.expand(batch, 1)
    if not integers or classes.ndim != 2 or classes.shape[0] != batch:
        found = f'{str(classes.dtype).removeprefix("torch.")} of shape {tuple(classes.shape)}'
        raise ValueError(
            f'classes are {found}: expected ({batch}, k) class indices, k an image (one an image: classes[:, None]).'
        )
    classes = classes.long()
    if torch.compiler.is_compiling() or in_transform() or classes.is_meta or classes.is_cuda:
        return classes
    outside = classes[(classes < 0) | (classes >= num_classes)]
    if len(outside):
        raise _out_of_range(outside[0].item(), num_classes)
    return classes


def _numbers(classes: Any, batch: int) -> list[int]:
    each = classes if isinstance(classes, (list, tuple, range)) else [classes]
    try:
        if any(isinstance(index, bool) for index in each):
            raise TypeError
        return [operator.index(index) for index in each]
    except TypeError:
        text = repr(classes)
        raise TypeError(
            f'classes are {text if len(text) <= 60 else type(classes).__name__}: expected a class index or a list of '
            f'them (the same classes for every image), a ({batch}, k) tensor of class indices, or None for all classes.'
        ) from None


def _out_of_range(index: int | float, num_classes: int) -> IndexError:
    return IndexError(f'class {index} is out of range: the model has {num_classes} classes, from 0 on.')
