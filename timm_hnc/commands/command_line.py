"""How a command runs: errors as one line on stderr, exit codes, and what the user typed."""

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.files.tables import without_nan
from timm_hnc.launcher import command_words, is_first_process, process_count

_OTHER_ENDED = ('Connection closed by peer', 'Connection reset by peer')  # gloo's
# a path that is no name of a file or may not be read or written, a disk that is full
_OF_PATHS = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
_INTERRUPTED = 130
_SECONDS_TO_SPEAK = 5.0  # a launcher ends all processes with the first that ends


def run_command(command: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command and turn the user's errors into one line on stderr and an exit code.

    Of several processes that of rank 0 speaks for all. Another one waits, as most errors are met by all of them, and
    the launcher then ends it; of what it met alone it says which process it is.

    Returns:
        The command's exit code, 0 for None; 2 after a `UsageError`, 1 after a `DataError` or a path that the system
        refuses, 130 after Ctrl-C.
    """
    try:
        return command(argv) or 0
    except UsageError as error:
        message, code = f'error: {one_line(error)}', 2
    except DataError as error:
        message, code = f'error: {one_line(error)}', 1
    except OSError as error:
        if error.errno not in _OF_PATHS:
            raise
        message, code = f'error: {one_line(error)}', 1
    except KeyboardInterrupt:
        message, code = 'interrupted', _INTERRUPTED
    except RuntimeError as error:
        if type(error).__name__ == 'OutOfMemoryError':  # torch's, which is not imported here
            message, code = f'error: {first_lines(error)} A smaller batch or image needs less.', 1
        elif process_count() == 1 or not any(words in str(error) for words in _OTHER_ENDED):
            raise
        else:
            message, code = 'error: another process of the run ended: its own line says why.', 1
    process = '' if is_first_process() else f'[rank {os.environ["RANK"]}] '
    if process and code == _INTERRUPTED:
        return code
    if process:
        with suppress(KeyboardInterrupt):
            time.sleep(_SECONDS_TO_SPEAK)
    sys.stderr.write(f'{process}{" ".join(command_words(Path(sys.argv[0]).name))}: {message}\n')
    return code


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM and a closed terminal end what is inside as Ctrl-C does: temporary files go."""
    endings = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, 'SIGHUP') else [])]
    before = {number: signal.getsignal(number) for number in endings}
    replaced = [number for number in endings if before[number] not in (signal.SIG_IGN, None)]  # nohup ignores one
    for number in replaced:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, before[number])


def print_result(result: Any) -> None:
    """Print figures behind --result, as timm's scripts do, for programs that read them."""
    sys.stdout.write(f'--result\n{json.dumps(without_nan(result), indent=4)}\n')


def one_line(error: BaseException) -> str:
    """An error's message on one line, without the traceback that a DataLoader worker wraps around it."""
    message = str(error)
    name = f'{type(error).__module__}.{type(error).__qualname__}'
    if message.startswith('Caught ') and 'Original Traceback' in message:
        message = message.rpartition(f'\n{name}: ')[2]
    return ' '.join(message.split()) or type(error).__name__
