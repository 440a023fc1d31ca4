"""One run to a folder: a lock that a run holds as long as it lives.

The lock is POSIX's (fcntl), of the process and not of the open file: loading workers that outlive a killed run do not
keep it, as they would keep flock's, which filelock takes; and the kernel frees it however the process ends. The file
says who holds it, and goes when the run ends.
"""

import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from timm_hnc.errors import DataError, UsageError

if sys.platform != 'win32':
    import fcntl

LOCK = '.run.lock'
_logger = logging.getLogger(__name__)


@contextmanager
def run_lock(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold a run folder, made if it is missing, while something is done in it; all processes of a run call it.

    The main process holds it for all of them. A folder that nothing was written into goes again. A file system without
    locks is told in the log.

    Raises:
        DataError: another run holds it, or it cannot be written; in all processes.
        UsageError: this is Windows.
    """
    if sys.platform == 'win32':
        raise UsageError("a run's folder needs locks and links that Windows lacks: train on Linux, on macOS or in WSL.")
    lock, problem = _Lock(folder), ''
    if accelerator.is_main_process:
        try:
            lock.acquire()
        except DataError as error:
            problem = str(error)
    [problem] = broadcast_object_list([problem])
    if problem:
        raise DataError(problem)
    try:
        yield
    finally:
        lock.release()


class _Lock:
    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / LOCK
        self._file: int | None = None
        self._made: list[Path] = []

    def acquire(self) -> None:
        try:
            self._made = [each for each in (self.folder, *self.folder.parents) if not each.exists()]
            while not self._try():
                pass  # its holder has just ended, and taken file or folder away
        except OSError as error:
            self.release()
            raise DataError(f"run folder '{self.folder}' cannot be written: {error}. See --output.") from error

    def release(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self.path.unlink()  # while it is held: nobody else's
            os.close(self._file)
            self._file = None
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()  # only if it is empty

    def _try(self) -> bool:
        """Whether the folder is held, or cannot be; False to try again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            return False
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file), self.path.stat()):
                raise FileNotFoundError(self.path)
        except FileNotFoundError:
            os.close(file)
            return False
        except OSError as error:
            os.close(file)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return self._refuse()
            self.path.unlink(missing_ok=True)
            _logger.warning(
                f"Run folder '{self.folder}': no locks on this file system ({error.strerror or error}); make sure that "
                'no other run uses this folder.'
            )
            return True
        self._file = file
        holder = f'process {os.getpid()} on {socket.gethostname()}, since {datetime.now().astimezone():%F %T %z}\n'
        os.ftruncate(file, os.pwrite(file, holder.encode(), 0))
        return True

    def _refuse(self) -> bool:
        """Say who holds the folder; False if its holder has just ended."""
        holder, end = '', time.monotonic() + 1
        while not holder and time.monotonic() < end:
            try:
                holder = self.path.read_text(errors='replace').strip()
            except FileNotFoundError:
                return False
            time.sleep(0 if holder else 0.02)  # it writes who it is right after it has the lock
        raise DataError(
            f"run folder '{self.folder}' is in use by {holder or 'another run'}: wait for its end, or choose another "
            '--experiment.'
        )
