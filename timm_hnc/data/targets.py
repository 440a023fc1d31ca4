"""Targets checked while they are read, so that a wrong one is a message and not an index error on a device."""

from typing import Any

from timm.data import MultiLabelTarget
from torch import Tensor

from timm_hnc.errors import DataError

OTHER_CLASSES = "set --num-classes to the classes of the data, or give data of the model's classes"


def batch_of(loaded: Any) -> tuple[Any, Tensor]:
    """(images, targets) as a loader gives them, integers of any kind as losses take them: (B,) long, (B, n) float.

    Raises:
        DataError: it gives something else.
    """
    if not (isinstance(loaded, (list, tuple)) and len(loaded) == 2 and isinstance(loaded[1], Tensor)):
        raise DataError(f'the loader gives a {_kind(loaded)} a batch: expected (images, targets), two tensors.')
    images, target = loaded
    if isinstance(images, Tensor) and not images.is_floating_point():
        kind = str(images.dtype).removeprefix('torch.')
        raise DataError(f'the loader gives images of {kind}: expected normalised ones, of floats.')
    if not target.is_floating_point():
        target = target.float() if target.ndim == 2 else target.long()
    return images, target


def check_classes(target: Tensor, num_classes: int, ignored: int | None = None) -> None:
    """Refuse class indices that the model does not have, where a look at them does not wait for a device.

    Raises:
        DataError: with such an index, unless it is `ignored`.
    """
    if target.ndim != 1 or target.is_floating_point() or target.device.type != 'cpu':
        return
    wrong = (target < 0) | (target >= num_classes)
    if ignored is not None:
        wrong &= target != ignored
    if wrong.any():
        index = int(target[wrong][0])
        way_out = 'give the model more classes' if index > 0 else 'leave such images out'
        raise DataError(f'a target is class {index}, outside the range 0 to {num_classes - 1}: {way_out}.')


def _kind(loaded: Any) -> str:
    name = type(loaded).__name__
    if not isinstance(loaded, (list, tuple)):
        return name
    return f'{name} of {", ".join(type(each).__name__ for each in loaded)}'


def check_batch(target: Tensor, num_classes: int, indices: bool, values: bool) -> None:
    """Refuse targets that a loss does not take.

    Args:
        target: of a batch.
        num_classes: of the model.
        indices: (B,) class indices can be used.
        values: (B, n) values, one a class, can be used.

    Raises:
        DataError: with the targets' shape.
    """
    floats = target.is_floating_point()
    if (values and floats and target.shape[1:] == (num_classes,)) or (indices and not floats and target.ndim == 1):
        return
    kind = '' if target.ndim > 1 else ', floats' if floats else ', integers'
    expected = ['(B,), integer class indices'] * indices + [f'(B, {num_classes}), a value a class'] * values
    raise DataError(f'a batch has targets of shape {tuple(target.shape)}{kind}: expected {", or ".join(expected)}.')


class ClassIndex:
    """A single label: an integer in [0, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def __call__(self, target: Any) -> int:
        """The target as an int.

        Raises:
            DataError: it is none, or outside the class range.
        """
        if type(target) is int and 0 <= target < self.num_classes:
            return target
        if isinstance(target, (list, tuple, dict, str)) or getattr(target, 'ndim', 0) > 0:
            raise DataError(f'a target is {target!r}, not one class index: for several labels pass --task multilabel.')
        try:
            index = int(target)
        except (TypeError, ValueError, OverflowError):
            index = None
        if index is None or index != target:
            raise DataError(f'a target is {target!r}: expected a class index; see --target-key.')
        if not 0 <= index < self.num_classes:
            last = self.num_classes - 1
            raise DataError(f'a target is class {index}, outside the range 0 to {last}: {OTHER_CLASSES}.')
        return index


class LabelSet(MultiLabelTarget):
    """Several labels: timm's targets, with a message that says what to do."""

    def __call__(self, target: Any) -> Tensor:
        """(num_classes,) float targets."""
        if isinstance(target, int):
            raise DataError(f'a target is {target}, one class index: for a single label pass --task classification.')
        listed = isinstance(target, (list, tuple)) and len(target) == self.num_classes > 2
        if listed and not self.dense and {*target} <= {0, 1}:  # as indices they are of two classes
            raise DataError(
                f'a target is {str(target)[:60]}, {self.num_classes} zeros and ones: pass --target-format multihot.'
            )
        try:
            return super().__call__(target)
        except (ValueError, TypeError, RuntimeError) as error:
            raise DataError(
                f'a target is {str(target)[:60]!r}: {error} See --target-key, --target-format and --num-classes.'
            ) from error
