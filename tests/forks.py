"""Scripts in processes of their own that need not import torch, timm and timm_hnc first.

Importing takes 3 seconds of a core, and many tests start processes. Here a server that has imported them and done
nothing else forks itself (multiprocessing's forkserver); the fork becomes the script's process. Use a fresh interpreter
(`fresh=True` of `running.run_script`) where starting it, torchrun or an import is what the test is about.
"""

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from timm_hnc.commands.console import COMMANDS

_IMPORTED = [*(f'timm_hnc.commands.{module}' for module, _ in COMMANDS.values()), 'datasets']
assert all(map(find_spec, _IMPORTED)), 'the server passes over what it cannot import, and every fork imports it anew'
_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(_IMPORTED)


class Script:
    """A script in one process, or in several that form a group as torchrun's do. It has the methods of a Popen.

    Args:
        command: a path or '-m' and a module, and its arguments.
        environment: all variables.
        processes: 0 for one without a group.
        cwd: folder to work in.
    """

    def __init__(self, command: list[str], environment: dict[str, str], processes: int = 0, cwd: Path | None = None):
        self.args = command
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [os.path.join(self._folder.name, name) for name in ('out', 'err')]
        start_server(environment)
        variables = [environment | each for each in _groups(processes)]
        ranks = [(command, each, str(cwd or Path.cwd()), *self._streams) for each in variables]
        self.ranks = [_context.Process(target=_become, args=args) for args in ranks]
        for rank in self.ranks:
            rank.start()
        self.pid = self.ranks[0].pid

    def poll(self) -> int | None:
        """The exit code, None while a process runs. One that fails ends the others."""
        codes = [rank.exitcode for rank in self.ranks]
        failed = next((code for code in codes if code), 0)
        if failed:
            self.kill()
        elif None in codes:
            return None
        return failed

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def wait(self, timeout: float = 150) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.005)
        for rank in self.ranks:
            rank.join(20)
        return code

    def communicate(self, timeout: float = 150) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (Path(path).read_text() for path in self._streams)
        return out, err

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        for rank in self.ranks:
            if rank.is_alive():
                os.kill(rank.pid, number)


def start_server(environment: dict[str, str]) -> None:
    """The server reads variables as it starts (threads of OpenMP, settings of the Hub's client)."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in environment.items() if name != 'PYTHONPATH'})
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _groups(processes: int) -> list[dict[str, str]]:
    """What torchrun tells every process of a group."""
    if not processes:
        return [{}]
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    shared = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'WORLD_SIZE': str(processes)}
    shared['LOCAL_WORLD_SIZE'] = shared['WORLD_SIZE']
    return [{**shared, 'RANK': str(rank), 'LOCAL_RANK': str(rank)} for rank in range(processes)]


def _become(command: list[str], environment: dict[str, str], cwd: str, out: str, err: str) -> None:
    """Run the script in this process."""
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # the default of a fresh interpreter, not that of the parent
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.fsync = lambda file: None  # as conftest.py says
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if command[0] == '-m':
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name='__main__', alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name='__main__')
