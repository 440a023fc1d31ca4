"""Loading processes that live through the signals by which a run is stopped, until the run has been saved."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

from timm_hnc.data.loading.wrapped_dataset import inner_loader

# of a user, of a scheduler that ends the job, and of one that warns before it does (Slurm's --signal=USR1)
STOP_SIGNALS = {getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGUSR1') if hasattr(signal, name)}

_GRACE = 5  # seconds


def outlive_signals(loader: Any) -> None:
    """Let a loader's processes end when the process that reads ends them, and at no signal of anybody else.

    A terminal, a scheduler and torchrun signal whole groups of processes. The one that trains saves the run first, and
    needs batches until then.
    """
    inner = inner_loader(loader)
    if not inner.num_workers:
        return
    inner.worker_init_fn = partial(_begin, inner.worker_init_fn)
    _spare_tracker()
    Finalize(None, _end_daemons, (_GRACE,), exitpriority=0)  # at the end of this process, as Python does


def workers_of(loader: Any) -> set[BaseProcess]:
    """Processes that a loader of torch's or timm's keeps from epoch to epoch, once they were started."""
    inner = inner_loader(loader)
    iterators = [getattr(inner, name, None) for name in ('_iterator', 'iterator')]
    return {process for iterator in iterators for process in getattr(iterator, '_workers', ())}


def children() -> set[BaseProcess]:
    """Processes of this one that end with it, as those of loaders do; of others as well."""
    return {process for process in multiprocessing.active_children() if process.daemon}


def end_workers(workers: Iterable[BaseProcess], grace: float = 0) -> None:
    """End loading processes, those too that would not end when they are asked to, for which Python would wait.

    Args:
        workers: those to end; what is no child of this process any more is passed over.
        grace: seconds that they have to end by themselves.
    """
    workers = children().intersection(workers)
    is_main = threading.current_thread() is threading.main_thread() and hasattr(signal, 'SIGCHLD')
    # torch's handler would raise at their end
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if is_main else None
    try:
        for process in workers:
            process.terminate()
        end = time.monotonic() + grace
        for process in workers:
            process.join(max(0, end - time.monotonic()))
            process.kill()
        for process in workers:
            process.join(_GRACE)  # one that waits for a disk does not end even so
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _end_daemons(grace: float) -> None:
    end_workers(children(), grace)


def spare_fork_server() -> None:
    """Where Python forks from a server, start it so that signals spare it and its forks.

    For commands alone: they spare all its forks, and those of others may count on them.
    """
    if multiprocessing.get_start_method() == 'forkserver':
        _spare_tracker()  # the server would start it, and Python lets the signals through then
        with _blocked():
            forkserver.ensure_running()


def _spare_tracker() -> None:
    """Start Python's process that tracks what is shared: it would end at SIGUSR1."""
    with _blocked():
        resource_tracker.ensure_running()


@contextmanager
def _blocked() -> Iterator[None]:
    """Signals are blocked here, and for good in a process that is started here."""
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(before: Callable[[int], None] | None, worker: int) -> None:
    if before is not None:
        before(worker)
    reader = multiprocessing.parent_process()
    if reader and hasattr(signal, 'sigwaitinfo') and (_forked() or _all_blocked()):
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        threading.Thread(target=_end_with, args=(reader.pid,), daemon=True).start()
    elif hasattr(os, 'setpgrp'):
        # started anew, it has threads of libraries that take the signals: those to a group do not reach it
        os.setpgrp()


def _forked() -> bool:
    """Whether this process is a copy of the one that reads: of a context of its own, or of the default one."""
    process = multiprocessing.current_process()
    default = type(process) is multiprocessing.Process and multiprocessing.get_start_method() == 'fork'
    return type(process).__name__ == 'ForkProcess' or default  # a class that Windows lacks


def _all_blocked() -> bool:
    """Whether this process was started with the signals blocked, and so were all its threads."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= STOP_SIGNALS


def _end_with(reader: int) -> None:
    """Wait for the signals that no thread takes; that of the reader ends this process, as torch's own handler does."""
    while True:
        received = signal.sigwaitinfo(STOP_SIGNALS)
        if received.si_signo == signal.SIGTERM and received.si_pid == reader:
            os._exit(0)
