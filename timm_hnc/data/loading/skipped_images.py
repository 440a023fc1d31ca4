"""Counting the images that were skipped because they could not be decoded, in whatever process that happened."""

import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# loggers, and how their warnings of an image begin
_WARNINGS = {
    'timm.data.dataset': 'Skipped sample',
    'timm.data.readers.reader_wds': 'Handling webdataset error',
    'timm_hnc.data.holdout': 'Skipped sample',
}


@contextmanager
def counting_skipped() -> Iterator['SkippedImages']:
    """A count of what is skipped inside."""
    skipped = SkippedImages()
    try:
        yield skipped
    finally:
        skipped.stop()


class SkippedImages(logging.Filter):
    """Counts the warnings of skipped images across this process and its loader workers.

    timm tells of a skipped image only in its log. The count is shared memory; an object that travels to a worker with
    its data set listens there as well, however the worker was started.
    """

    def __init__(self) -> None:
        super().__init__()
        # a lock of this kind travels to forked and spawned workers alike
        self._count = multiprocessing.get_context('spawn').Value('q', 0)
        self.listen()

    def listen(self) -> None:
        """Count in this process from now on."""
        for name in _WARNINGS:
            logging.getLogger(name).addFilter(self)

    def stop(self) -> None:
        """Count no more in this process."""
        for name in _WARNINGS:
            logging.getLogger(name).removeFilter(self)

    @property
    def count(self) -> int:
        """Images skipped so far."""
        return self._count.value

    def filter(self, record: logging.LogRecord) -> bool:
        """Count the record, and let it pass."""
        if str(record.msg).startswith(_WARNINGS[record.name]):
            with self._count.get_lock():
                self._count.value += 1
        return True

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.listen()
