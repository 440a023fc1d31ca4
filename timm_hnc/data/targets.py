"""Targets checked while they are read, so that a wrong one is a message and not an index error on a device."""

from typing import Any

from timm.data import MultiLabelTarget
from torch import Tensor

from timm_hnc.errors import DataError


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
            raise DataError(
                f'a target is class {index}, outside the range 0 to {self.num_classes - 1}: '
                'set --num-classes to the classes of the data.'
            )
        return index


class LabelSet(MultiLabelTarget):
    """Several labels: timm's targets, with a message that says what to do."""

    def __call__(self, target: Any) -> Tensor:
        """(num_classes,) float targets."""
        if isinstance(target, int):
            raise DataError(f'a target is {target}, one class index: for a single label pass --task classification.')
        try:
            return super().__call__(target)
        except (ValueError, TypeError, RuntimeError) as error:
            raise DataError(
                f'a target is {str(target)[:60]!r}: {error} See --target-key, --target-format and --num-classes.'
            ) from error
