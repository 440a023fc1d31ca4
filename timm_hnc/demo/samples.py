"""Photographs to pick from: validation images of a run."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch.utils.data import IterableDataset

from timm_hnc.data.samples import evenly_spread
from timm_hnc.errors import DataError


@dataclass(frozen=True, eq=False)
class Sample:
    """A photograph with its classes.

    Args:
        photo: in the colours of its data set.
        expected: indices of its classes.
    """

    photo: Image.Image
    expected: tuple[int, ...]


def spread_over(dataset: Any, count: int) -> list[Sample]:
    """Samples evenly spread over a data set of PIL images, the first ones where it can only be read in order."""
    dataset.transform = None
    try:
        return [Sample(photo, _classes(target)) for photo, target in islice(_pairs(dataset, count), count)]
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f'the validation images cannot be read: {error}') from error


def _pairs(dataset: Any, count: int) -> Iterator[tuple[Image.Image, Any]]:
    if isinstance(dataset, IterableDataset):
        yield from dataset
    else:
        yield from (dataset[index] for index in evenly_spread(len(dataset), count))


def _classes(target: Any) -> tuple[int, ...]:
    values = torch.as_tensor(target)
    return tuple(values.nonzero().flatten().tolist()) if values.ndim else (int(values),)
