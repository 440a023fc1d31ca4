"""Counting the images that timm skipped because they could not be decoded, in whatever process that happened."""

import logging
import multiprocessing
from typing import Any

_TIMM_LOGGER = 'timm.data.dataset'


class SkippedImages(logging.Filter):
    """Counts timm's 'Skipped sample' warnings across this process and its loader workers.

    timm tells of a skipped image only in its log. The count is shared memory; an object that travels to a worker with
    its data set listens there as well, however the worker was started.
    """

    def __init__(self) -> None:
        super().__init__()
        self._count = multiprocessing.Value('q', 0)
        self.listen()

    def listen(self) -> None:
        """Count in this process from now on."""
        logging.getLogger(_TIMM_LOGGER).addFilter(self)

    def stop(self) -> None:
        """Count no more in this process."""
        logging.getLogger(_TIMM_LOGGER).removeFilter(self)

    @property
    def count(self) -> int:
        """Images skipped so far."""
        return self._count.value

    def filter(self, record: logging.LogRecord) -> bool:
        """Count the record, and let it pass."""
        if str(record.msg).startswith('Skipped sample'):
            with self._count.get_lock():
                self._count.value += 1
        return True

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.listen()
