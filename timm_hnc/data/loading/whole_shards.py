"""WebDataset shards that several processes evaluate on: each reads its own to their end, once."""

from collections.abc import Iterator
from typing import Any

from timm.data.readers.reader_wds import ReaderWds


class WholeShardsReader(ReaderWds):
    """timm's reader without its cut to as many samples in each process, which leaves some out and repeats others.

    Processes and workers take the shards in turn; one that gets none has no samples. Evaluation needs no even numbers:
    processes exchange nothing between its batches.
    """

    def __iter__(self) -> Iterator[Any]:
        """The samples, (image, target)."""
        if self.ds is None:
            self._lazy_init()
        self.dist_num_replicas = 1  # the pipeline has been made for all of them
        return super().__iter__()


def read_whole_shards(dataset: Any) -> None:
    """Let a data set of timm's for WebDataset shards read them so, if it is one for evaluation."""
    reader = getattr(dataset, 'reader', None)
    if type(reader) is ReaderWds and not reader.is_training:
        reader.__class__ = WholeShardsReader
