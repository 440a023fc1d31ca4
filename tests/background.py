"""train.py in the background, in processes that may be killed."""

import os
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from running import ROOT, start_script

TRAIN = ROOT / 'train.py'


@contextmanager
def running(*argv, script=TRAIN, **kwargs):
    """A train.py that runs in the background, in a session of its own."""
    process = start_script(script, *argv, **kwargs)
    try:
        yield process
    finally:
        kill_all(process)


def kill_all(process):
    """SIGKILL to the launcher, its processes and their workers."""
    ranks = [rank.pid for rank in getattr(process, 'ranks', [process])]
    for pid in [pid for rank in ranks for pid in (*descendants(rank), rank)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(20)


def descendants(pid: int) -> list[int]:
    try:
        children = [int(each) for each in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it has ended, before or while this is read
        return []
    return [*children, *(each for child in children for each in descendants(child))]


def wait_for(process, pattern: Path, seconds: float = 90):
    """Until a path of this pattern is there."""
    end = time.monotonic() + seconds
    while not list(pattern.parent.glob(pattern.name)):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end, f'{pattern} did not come'
        time.sleep(0.02)


def freeze(pids: list[int], seconds: float = 20):
    """SIGSTOP to processes, until they have stopped: a signal that is sent is not yet received."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + seconds
    while any(state_of(pid) != 'T' for pid in pids):
        assert time.monotonic() < end, 'a process does not stop'
        time.sleep(0.01)


def state_of(pid: int) -> str:
    """As in proc(5): T is stopped, Z has ended."""
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]


def workers_of(process) -> list[int]:
    """The loading processes of a run; they are forks of it."""
    own = _command_line(process.pid)
    return [pid for pid in descendants(process.pid) if own and _command_line(pid) == own]


def _command_line(pid: int) -> bytes:
    """Nothing of a process that has ended."""
    try:
        return Path(f'/proc/{pid}/cmdline').read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b''
