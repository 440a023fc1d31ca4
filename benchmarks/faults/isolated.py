"""Do something in a forked process, and see how it ends: well, with one clear line, with a traceback, or never."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class End:
    """How it ended.

    Args:
        kind: 'success', 'one line', 'traceback', 'silence' (an error without a line), 'crash' (a signal) or 'hang'.
        text: the last lines of stderr.
    """

    kind: str
    text: str

    @property
    def good(self) -> bool:
        """Whether a user can live with it."""
        return self.kind in ('success', 'one line')


def isolated(action: Callable[[], int], log: Path, seconds: float) -> End:
    """Do something that returns an exit code in a forked process; what takes more than so many seconds hangs."""
    child = os.fork()
    if child == 0:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(file, number)
        sys.stdout = sys.stderr = os.fdopen(2, 'w', buffering=1, errors='replace')
        code = 1
        try:
            code = action()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = _wait(child, seconds)
    text = log.read_text(errors='replace')
    tail = '\n'.join(text.strip().splitlines()[-3:])
    if status is None:
        return End('hang', tail)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return End('crash', f'signal {-code}\n{tail}')
    if 'Traceback (most recent call last)' in text:
        return End('traceback', '\n'.join(text.strip().splitlines()[-12:]))
    if code == 0:
        return End('success', '')
    return End('one line' if text.count(': error: ') == 1 else 'silence', tail)


def _wait(child: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
