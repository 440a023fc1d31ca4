"""The labels of a data set's samples, as far as they can be had without reading an image."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from timm_hnc.data.holdout import Selection
from timm_hnc.data.loading.wrapped_dataset import WrappedDataset, innermost, unwrapped_reader
from timm_hnc.data.noise import NoisyLabels
from timm_hnc.data.targets import ClassIndex, LabelSet
from timm_hnc.errors import DataError, first_lines


def sample_labels(dataset: Any) -> Sequence[Any] | None:
    """The label of every sample, as the data set's reader gives it to `dataset.target_transform`.

    Labels behind `NoisyLabels` are the noisy ones, and of a `Selection` only those that are in it.

    Returns:
        A class index or a label set a sample; None where that takes reading the images (streamed data).

    Raises:
        DataError: a label is not in the class map, or (with `NoisyLabels`) is no class index.
    """
    if isinstance(dataset, Selection):
        labels = sample_labels(dataset.dataset)
        return None if labels is None else [labels[index] for index in dataset.indices]
    if isinstance(dataset, NoisyLabels):
        labels, encode = sample_labels(dataset.dataset), label_encoder(dataset)
        return None if labels is None else [dataset.label(index, encode(label)) for index, label in enumerate(labels)]
    if isinstance(dataset, WrappedDataset):
        return sample_labels(dataset.dataset)
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1].tolist() if len(dataset.tensors) == 2 else None
    reader = unwrapped_reader(dataset)
    if isinstance(getattr(reader, 'samples', None), list):
        return [sample[-1] for sample in reader.samples]
    if hasattr(reader, 'iter_targets'):
        return _table_labels(reader)
    targets: Any = getattr(reader, 'targets', getattr(dataset, 'targets', None))
    if getattr(targets, 'ndim', 1) == 2:
        targets = targets[:, 0]  # torchvision's QMNIST: who wrote the digit, and more, stands behind it
    return targets.tolist() if hasattr(targets, 'tolist') else targets


def label_encoder(dataset: Any) -> Callable[[Any], Any]:
    """What makes targets of labels: the target transform of the innermost data set, where it has one."""
    return getattr(innermost(dataset), 'target_transform', None) or (lambda label: label)


def label_columns(reader: Any) -> set[str]:
    """Columns that timm's reader of Hugging Face's `datasets` takes labels from: of objects/category, objects."""
    names = reader.dataset.column_names
    keys = reader.target_keys or (reader.label_key,)
    return {key if key in names else key.split('/')[0] for key in keys if key}


def _table_labels(reader: Any) -> list[Any] | None:
    """Labels of timm's reader of Hugging Face's `datasets`; columns of anything else stay unread."""
    columns = label_columns(reader)
    if not columns or not columns.issubset(reader.dataset.column_names):
        return None
    if columns == {reader.label_key} and not reader.remap_class:
        return list(reader.dataset.select_columns([reader.label_key])[:][reader.label_key])
    narrow = copy.copy(reader)
    narrow.dataset = reader.dataset.select_columns([reader.image_key, *sorted(columns)])
    try:
        return list(narrow.iter_targets())
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(f'a label of the data set fits no class ({first_lines(error)}): see --class-map.') from error


def class_counts(dataset: Any, num_classes: int, multi_label: bool) -> tuple[Tensor, int]:
    """How many samples of a training set have each class, (n,) in float64, and how many samples there are.

    Raises:
        DataError: the labels cannot be had without reading the images, or do not fit.
    """
    labels = sample_labels(dataset)
    if labels is None:
        raise DataError('the classes of this data set cannot be counted without its images: give --class-stats FILE.')
    encode = label_encoder(dataset)
    if multi_label:
        counts = torch.zeros(num_classes, dtype=torch.float64)
        multihot = LabelSet(num_classes, dense=True)
        for label in labels:
            counts += multihot(encode(label))
        return counts, len(labels)
    index = ClassIndex(num_classes)
    indices = torch.tensor([index(encode(label)) for label in labels], dtype=torch.long)
    return torch.bincount(indices, minlength=num_classes).double(), len(labels)
