"""How many training samples have each class, counted without reading an image."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from timm_hnc.data.holdout import Selection
from timm_hnc.data.noise import NoisyLabels
from timm_hnc.errors import DataError


def sample_targets(dataset: Any) -> list[Any] | None:
    """The target of every sample as the data set's reader gives it; None where that takes reading the images.

    Labels behind `NoisyLabels` are the noisy ones, and of a `Selection` only those that are in it.
    """
    if isinstance(dataset, Selection):
        targets = sample_targets(dataset.dataset)
        return targets if targets is None else [targets[index] for index in dataset.indices]
    if isinstance(dataset, NoisyLabels):
        targets = sample_targets(dataset.dataset)
        return targets if targets is None else [dataset.label(index, int(t)) for index, t in enumerate(targets)]
    reader: Any = getattr(dataset, 'reader', None)
    if isinstance(getattr(reader, 'samples', None), list):
        return [sample[-1] for sample in reader.samples]
    for source in (reader, dataset):
        if hasattr(source, 'targets'):
            return list(source.targets)
        if hasattr(source, 'iter_targets'):
            return list(source.iter_targets())
    return None


def class_counts(dataset: Any, num_classes: int, multi_label: bool) -> tuple[Tensor, int]:
    """How many samples of a training set have each class.

    Args:
        dataset: from `create_train_dataset`.
        num_classes: n.
        multi_label: targets are label sets.

    Returns:
        (n,) counts in float64, and the number of samples.

    Raises:
        DataError: the labels cannot be had without reading the images, or do not fit.

    Example:
        >>> class_counts(dataset, num_classes=3, multi_label=False)
        (tensor([21., 20., 18.], dtype=torch.float64), 59)
    """
    targets = sample_targets(dataset)
    if targets is None:
        raise DataError('the classes of this data set cannot be counted without its images: give --class-stats FILE.')
    encode = _encoder(dataset)
    if multi_label:
        rows: Iterable[Tensor] = (encode(target) for target in targets)
        return sum((row.double() for row in rows), torch.zeros(num_classes, dtype=torch.float64)), len(targets)
    labels = torch.tensor([encode(target) for target in targets], dtype=torch.long)
    return torch.bincount(labels, minlength=num_classes).double(), len(targets)


def _encoder(dataset: Any) -> Any:
    """The innermost data set's target transform, which checks what it encodes."""
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    return dataset.target_transform
