"""Ending what takes too long."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_AGAIN = 5  # seconds


@contextmanager
def alarm(seconds: float, error: Exception) -> Iterator[None]:
    """Interrupt what is done inside with an error after so many seconds, 0: never.

    It is raised again every few seconds, as what runs inside may catch it. Only the main thread of a POSIX system can,
    and a timer that somebody else has set is left alone.
    """
    possible = hasattr(signal, 'setitimer') and threading.current_thread() is threading.main_thread()
    if not seconds or not possible or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def interrupt(*_: object) -> None:
        raise error

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, min(seconds, _AGAIN))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
