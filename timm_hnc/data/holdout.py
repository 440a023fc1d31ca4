"""A share of the training data kept for validation (section 4.5 of the paper retains 10 %)."""

from typing import Any

import numpy as np

from timm_hnc.data.loading.wrapped_dataset import WrappedDataset
from timm_hnc.errors import DataError


class Selection(WrappedDataset):
    """Some samples of a data set."""

    def __init__(self, dataset: Any, indices: np.ndarray) -> None:
        super().__init__(dataset)
        self.indices = indices

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]

    def __len__(self) -> int:
        return len(self.indices)


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
