"""A share of the training data kept for validation (section 4.5 of the paper retains 10 %)."""

import logging
from typing import Any

import numpy as np
from timm.data import ImageDataset

from timm_hnc.data.loading.wrapped_dataset import WrappedDataset, WrappedReader, innermost
from timm_hnc.errors import DataError

_logger = logging.getLogger(__name__)
_ATTEMPTS = 10  # as many as timm's data sets make


class Selection(WrappedDataset):
    """Some samples of a data set; the next of them takes the place of one that cannot be read, and none of the others.

    Args:
        dataset: of samples accessed by index. If it is timm's, it skips no images itself from now on.
        indices: of the samples.
    """

    def __init__(self, dataset: Any, indices: np.ndarray) -> None:
        super().__init__(dataset)
        self.indices = indices
        read = innermost(dataset)
        if isinstance(read, ImageDataset) and not isinstance(read.reader, _StrictReader):
            read.reader = _StrictReader(read.reader)

    def __getitem__(self, index: int) -> Any:
        """A sample of the data set.

        Raises:
            RuntimeError: too many in a row cannot be read.
        """
        for place in range(index, index + _ATTEMPTS):
            sample = int(self.indices[place % len(self.indices)])
            try:
                return self.dataset[sample]
            except _UnreadableImage as error:
                _logger.warning(f'Skipped sample (index {sample}). {error}')
        raise RuntimeError(f'Failed to load {_ATTEMPTS} consecutive samples')

    def __len__(self) -> int:
        return len(self.indices)


class _UnreadableImage(Exception):
    """An OSError that timm does not catch."""


class _StrictReader(WrappedReader):
    """A reader whose errors come through timm's `ImageDataset`, which would read the image of the next index."""

    def __getitem__(self, index: int) -> Any:
        try:
            return self.unchecked[index]
        except OSError as error:
            raise _UnreadableImage(str(error)) from error


def split_off(dataset: Any, share: float, seed: int) -> tuple[Selection, Selection]:
    """A data set without the share held out, and that share: disjoint, the same ones for the same seed.

    Args:
        dataset: of samples accessed by index.
        share: of the samples to hold out, above 0 and below 1; rounded to whole samples.
        seed: of the run.

    Raises:
        DataError: one of the two parts would be empty.
    """
    count = round(share * len(dataset))
    if not 0 < count < len(dataset):
        raise DataError(f'--holdout {share:g}: {count} of {len(dataset)} images, both parts need one or more.')
    order = np.random.default_rng(seed).permutation(len(dataset))
    return Selection(dataset, np.sort(order[count:])), Selection(dataset, np.sort(order[:count]))
