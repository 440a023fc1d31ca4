"""Rows of Hugging Face data sets, read several at a time: one by one they are a good part of loading a small image."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from timm.data import AugMixDataset, ImageDataset
from torch.utils.data import Subset

from timm_hnc.data.labels import label_columns
from timm_hnc.data.loading.loader_errors import is_of_a_worker
from timm_hnc.data.loading.wrapped_dataset import WrappedDataset, Wrapper, stored_places, unwrapped_reader

_AT_ONCE = 32  # rows hold encoded images, which may be large


class RowsAhead(Wrapper):
    """A data set of the `datasets` package whose rows, by index, have the columns that timm's reader looks at.

    Rows that are expected are read in groups. Whatever hinders that, they are read by themselves.

    Args:
        dataset: with all columns, which are still there by name.
        columns: of a row; others, such as images that somebody else reads, are not decoded.
    """

    def __init__(self, dataset: Any, columns: Sequence[str]) -> None:
        self.dataset = dataset
        self._narrow = dataset.select_columns(list(columns))
        self._groups: dict[int, list[int]] = {}
        self._read: dict[int, Any] = {}

    def expect(self, indices: Sequence[int]) -> None:
        """These rows come next, about in this order; those read before are forgotten."""
        self._groups, self._read = {}, {}
        distinct = list(dict.fromkeys(indices))
        for start in range(0, len(distinct), _AT_ONCE):
            group = distinct[start : start + _AT_ONCE]
            self._groups |= dict.fromkeys(group, group)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, Integral):
            return self.dataset[index]
        index = int(index)
        if index in self._groups and index not in self._read:
            self._read = self._read_group(self._groups[index])
        return self._read[index] if index in self._read else self._narrow[index]

    def _read_group(self, group: list[int]) -> dict[int, Any]:
        try:
            return dict(zip(group, self._narrow.__getitems__(group), strict=True))
        except Exception as error:  # the row that is to blame says so when it is read
            if is_of_a_worker(error):
                raise
            self._groups = {index: each for index, each in self._groups.items() if each is not group}
            return {}


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
        self.rows.expect(indices if self.places is None else self.places[indices].tolist())
        try:
            if isinstance(self.dataset, WrappedDataset):
                return self.dataset.__getitems__(indices)
            return [self.dataset[index] for index in indices]
        finally:
            self.rows.expect(())


def keep_rows_ahead(dataset: Any) -> None:
    """Let timm's data set of the `datasets` package (`hfds/`) read rows in groups where a loader asks for batches."""
    reader = dataset.reader
    columns = {reader.image_key, *label_columns(reader), *(reader.additional_features or ())}
    if columns.issubset(reader.dataset.column_names):
        reader.dataset = RowsAhead(reader.dataset, sorted(columns))


def read_rows_ahead(dataset: Any) -> Any:
    """A data set of samples accessed by index as a loader should have it: with `BatchedRows`, where it has rows."""
    inside = dataset
    # whose samples are those of the same index, or of their `indices`
    while isinstance(inside, WrappedDataset) or type(inside) in (AugMixDataset, Subset):
        inside = inside.dataset
    rows = getattr(unwrapped_reader(inside), 'dataset', None) if isinstance(inside, ImageDataset) else None
    return BatchedRows(dataset, rows) if isinstance(rows, RowsAhead) else dataset
