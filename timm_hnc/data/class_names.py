"""Names of classes, and the numbers that their images come with."""

import logging
from collections.abc import Sequence
from typing import Any

from timm_hnc.data.loading.wrapped_dataset import innermost
from timm_hnc.data.targets import ClassIndex, LabelSet
from timm_hnc.errors import DataError

_logger = logging.getLogger(__name__)


class ClassMap(dict[Any, int]):
    """A --class-map of timm's, which refuses a label that it lacks in one line."""

    def __missing__(self, label: Any) -> int:
        names = ', '.join(repr(name) for name in [*self][:5]) + (', ...' if len(self) > 5 else '')
        is_number = '; of numbers, give a dictionary in a .pkl file' if isinstance(label, int) else ''
        raise DataError(f'--class-map: has {names} but not {label!r}, a label of the data{is_number}.')


def class_to_idx(dataset: Any) -> dict[str, int]:
    """Class names and the indices that their images come with, empty where the data set does not know them."""
    reader = getattr(dataset, 'reader', dataset)
    # timm's reader of tar files calls it differently
    found = getattr(reader, 'class_to_idx', None) or getattr(reader, 'class_name_to_idx', None) or {}
    return {name: as_target(dataset, index) for name, index in found.items()}


def as_target(dataset: Any, label: Any) -> Any:
    """A label as a provided data set's own target transform numbers it; as it is where that makes no number of it."""
    transform = getattr(innermost(dataset), 'target_transform', None)
    if transform is None or isinstance(transform, (ClassIndex, LabelSet)):
        return label
    try:
        return int(transform(label))
    except Exception:  # whatever somebody's transform raises
        return label


def class_names(dataset: Any, num_classes: int) -> list[str]:
    """The name of every class, its index where the data set has no name."""
    names = {index: str(name) for name, index in class_to_idx(dataset).items()}
    return [names.get(index, str(index)) for index in range(num_classes)]


def check_same_classes(train: Any, evaluation: Any) -> None:
    """Refuse validation data whose class names have other indices than the training data's.

    Folders number their own classes: one that lacks a class numbers those behind it differently.

    Raises:
        DataError: with a class that differs.
    """
    known = class_to_idx(train)
    for name, index in class_to_idx(evaluation).items() if known else ():
        if known.get(name) != index:
            raise DataError(
                f"class '{name}' is number {index} in the validation data but {known.get(name, 'none')} in the "
                'training data: give both the same class folders, or a --class-map.'
            )


def check_classes_of_model(names: Sequence[str], dataset: Any) -> None:
    """Refuse data in which a class that the model knows by its name has another index; warn where it knows none.

    A name that is its own index is none: it stands where the training data had no name.

    Raises:
        DataError: with a class that differs.
    """
    known = {name: index for index, name in enumerate(names) if name != str(index)}
    found = class_to_idx(dataset)
    if known and found and known.keys().isdisjoint(map(str, found)):
        _logger.warning(
            f"The data has classes such as '{next(iter(found))}', the weights such as '{next(iter(known))}', and none "
            'in common by name: they should be the same classes in the same order.'
        )
    for name, index in found.items():
        if known.get(str(name), index) != index:
            raise DataError(
                f"class '{name}' is number {index} in the data but {known[str(name)]} in the model: "
                'give the --class-map that the model was trained with.'
            )
