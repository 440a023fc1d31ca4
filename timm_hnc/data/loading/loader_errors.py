"""Reading from loaders; what goes wrong in their processes is an error of one line."""

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any
from weakref import WeakSet

from timm_hnc.alarm import alarm
from timm_hnc.data.loading.worker_signals import children, end_workers, workers_of
from timm_hnc.data.loading.wrapped_dataset import inner_loader
from timm_hnc.errors import DataError

_GRACE = 5  # seconds
_WORKERS: WeakSet[BaseProcess] = WeakSet()  # of the loaders that were read here


def read(loader: Iterable[Any]) -> Iterator[Any]:
    """What a loader yields, the errors of its reader in one line.

    A DataLoader's own timeout ends the waiting for a batch. Where its processes are frozen a batch may be announced
    that never comes: a timer ends this.

    Raises:
        DataError: the data cannot be read, or does not come in time.
    """
    timeout = getattr(inner_loader(loader), 'timeout', 0)
    # timm's prefetching loader waits for two batches before it yields the first
    seconds = 2 * timeout + _GRACE if timeout else 0
    late = RuntimeError(f'DataLoader has waited {seconds:g} seconds for a process that does not go on.')
    others, begun, own = children(), False, workers_of(loader)
    try:
        iterator = iter(loader)
        while True:
            with alarm(seconds, late):
                batch = next(iterator, None)
            if not begun:
                own = children() - others | workers_of(loader)
                _WORKERS.update(own)
                begun = True
            if batch is None:
                return
            yield batch
    except AttributeError as error:
        if not str(error).rstrip().endswith("has no attribute 'ndim'"):  # which timm asks the first target for
            raise
        kind = str(error).rsplit("'", 4)[1]
        raise DataError(
            f'a target is a {kind}: expected a class index or, with --task multilabel, a tensor of a value a class.'
        ) from error
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, ArithmeticError) as error:
        # kinds of RuntimeError are those of devices, and our own
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise
        raise _data_error(error, own if begun else children() - others | own) from error


@contextmanager
def watched_workers() -> Iterator[None]:
    """A loading process that dies ends what is done inside in one line: torch tells of it at any moment, by a signal.

    Raises:
        DataError: a loading process died.
    """
    others = set(_WORKERS)
    try:
        yield
    except RuntimeError as error:
        if not is_of_a_worker(error):
            raise
        raise _data_error(error, set(_WORKERS) - others) from error


def is_of_a_worker(error: Exception) -> bool:
    """Whether torch tells of the end of a loading process."""
    return type(error) is RuntimeError and str(error).startswith('DataLoader worker')


def _data_error(error: Exception, workers: set[BaseProcess]) -> DataError:
    if _is_of_handing_over(error):
        error = RuntimeError('DataLoader worker ended while it handed a batch over.')
    # the last line is the message, where a worker has put its traceback in front
    text = f'KeyError: {error}' if isinstance(error, KeyError) else str(error).strip() or repr(error)
    message = text.splitlines()[-1]
    if message.startswith('DataLoader'):
        end_workers(workers)
        message += ' See --workers, --worker-timeout and the memory that is free.'
    return DataError(f'the data cannot be read: {message}')


def _is_of_handing_over(error: Exception) -> bool:
    """Whether a loading process was gone when its batch's memory was asked for, and torch did not see it yet."""
    gone = isinstance(error, (EOFError, ConnectionError, FileNotFoundError))
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return gone and any(frame.f_globals.get('__name__') == 'torch.multiprocessing.reductions' for frame in frames)
