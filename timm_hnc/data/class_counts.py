"""How many training samples have each class, counted without reading an image."""

from typing import Any

import torch
from torch import Tensor

from timm_hnc.data.labels import label_encoder, sample_labels
from timm_hnc.errors import DataError


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
    labels = sample_labels(dataset)
    if labels is None:
        raise DataError('the classes of this data set cannot be counted without its images: give --class-stats FILE.')
    encode = label_encoder(dataset)
    if multi_label:
        counts = torch.zeros(num_classes, dtype=torch.float64)
        for label in labels:
            counts += encode(label)
        return counts, len(labels)
    indices = torch.tensor([encode(label) for label in labels], dtype=torch.long)
    return torch.bincount(indices, minlength=num_classes).double(), len(labels)
