"""Rows of Hugging Face data sets, read several at a time: one by one they take a seventh of a CIFAR image's loading."""

from collections.abc import Sequence
from typing import Any

from timm_hnc.data.loading.wrapped_dataset import WrappedDataset, Wrapper, innermost_reader, stored_places

_AT_ONCE = 32  # rows hold encoded images, which may be large


class RowsAhead(Wrapper):
    """A data set of the `datasets` package, whose rows that are expected are read with those that come with them."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._together: dict[int, list[int]] = {}
        self._ahead: dict[int, Any] = {}

    def expect(self, indices: list[int]) -> None:
        """These rows come next, about in this order; others are read by themselves."""
        self._together, self._ahead = {}, {}
        for start in range(0, len(indices), _AT_ONCE):
            part = indices[start : start + _AT_ONCE]
            self._together |= dict.fromkeys(part, part)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, int) or index not in self._together:
            return self.dataset[index]
        if index not in self._ahead:
            together = self._together[index]
            self._ahead = dict(zip(together, self.dataset.__getitems__(together), strict=True))
        return self._ahead[index]


class BatchedRows(WrappedDataset):
    """A data set that says which rows it will read, and reads the same ones.

    Args:
        dataset: of samples accessed by index.
        rows: from which its reader takes them.
    """

    def __init__(self, dataset: Any, rows: RowsAhead) -> None:
        super().__init__(dataset)
        self.rows, self.places = rows, stored_places(dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        """The samples of a batch."""
        places = [index[0] if isinstance(index, tuple) else index for index in indices]
        self.rows.expect(places if self.places is None else self.places[places].tolist())
        if isinstance(self.dataset, WrappedDataset):
            return self.dataset.__getitems__(indices)
        return [self.dataset[index] for index in indices]


def read_rows_ahead(dataset: Any) -> Any:
    """A data set of samples accessed by index as a loader should have it: with `BatchedRows`, where it has rows."""
    rows = getattr(innermost_reader(dataset), 'dataset', None)
    return BatchedRows(dataset, rows) if isinstance(rows, RowsAhead) else dataset
