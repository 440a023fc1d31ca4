"""Loading processes that live through the signals by which a run is stopped, until the run has been saved."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkProcess
from typing import Any

# of a user, of a scheduler that ends the job, and of one that warns before it does (Slurm's --signal=USR1)
STOP_SIGNALS = {getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGUSR1') if hasattr(signal, name)}


def outlive_signals(loader: Any) -> None:
    """Let a loader's processes end when the process that reads ends them, and at no signal of anybody else.

    A terminal, a scheduler and torchrun signal whole groups of processes. The one that trains saves the run first, and
    needs batches until then.
    """
    inner = getattr(loader, 'loader', loader)
    inner.worker_init_fn = partial(_begin, inner.worker_init_fn)


def _begin(before: Callable[[int], None] | None, worker: int) -> None:
    if before is not None:
        before(worker)
    reader = multiprocessing.parent_process()
    if _forked() and hasattr(signal, 'sigwaitinfo') and reader:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        threading.Thread(target=_end_with, args=(reader.pid,), daemon=True).start()
    elif hasattr(os, 'setpgrp'):
        # started anew, it has threads of libraries that would take the signals: those to a group do not reach it
        os.setpgrp()


def _forked() -> bool:
    """Whether this process is a copy of the one that reads: of a context of its own, or of the default one."""
    process = multiprocessing.current_process()
    default = type(process) is multiprocessing.Process and multiprocessing.get_start_method() == 'fork'
    return isinstance(process, ForkProcess) or default


def _end_with(reader: int) -> None:
    """Wait for the signals that no thread takes; that of the reader ends this process, as torch's own handler does."""
    while True:
        received = signal.sigwaitinfo(STOP_SIGNALS)
        if received.si_signo == signal.SIGTERM and received.si_pid == reader:
            os._exit(0)
