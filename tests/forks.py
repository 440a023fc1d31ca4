"""Scripts in processes of their own that need not import torch, timm and timm_hnc first.

Importing takes 3 seconds of a core, and many tests start processes. fork_server.py has imported them once; its forks
become the scripts. Use a fresh interpreter (`fresh=True` of `running.run_script`) where starting it, torchrun or an
import is what the test is about.
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

_FOLDER = 'TIMM_HNC_TESTS_FORKS'  # an environment variable: where the server waits


@contextmanager
def fork_server():
    """The server, for this process and those that it starts."""
    folder = tempfile.mkdtemp()  # near the root: the path of a socket has 100 characters
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}
    script = Path(__file__).with_name('fork_server.py')
    pipe = {'stdin': subprocess.PIPE, 'start_new_session': True}
    server = subprocess.Popen([sys.executable, script, folder], env=environment, **pipe)
    os.environ[_FOLDER] = folder
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder)
        del os.environ[_FOLDER]


def connect(path: str, seconds: float = 90) -> socket.socket:
    """A connection to the socket of this path, which may be yet to come."""
    end = time.monotonic() + seconds
    while not os.path.exists(path):
        assert time.monotonic() < end, f'nobody waits at {path}'
        time.sleep(0.01)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


class _Fork:
    """A process of the server's.

    Args:
        imported: 'torch', or 'timm_hnc' with all that it imports.
        request: the arguments of `fork_server.become`.
    """

    def __init__(self, imported: str, request: dict):
        self._socket = connect(f'{os.environ[_FOLDER]}/{imported}')
        self._answers = self._socket.makefile('rb', buffering=0)  # what is unread, select sees
        self._exitcode = None
        self._socket.sendall(json.dumps(request).encode() + b'\n')
        self.pid = int(self._answers.readline())

    def join(self, timeout: float = 0) -> int | None:
        """The exit code, None while it runs."""
        if self._exitcode is None and select.select([self._answers], [], [], timeout)[0]:
            self._exitcode = int(self._answers.readline())
            self._answers.close()
            self._socket.close()
        return self._exitcode

    def send_signal(self, number: int) -> None:
        if self.join() is None:
            os.kill(self.pid, number)


class Script:
    """A script in one process, or in several that form a group as torchrun's do. It has the methods of a Popen.

    Args:
        command: a path or '-m' and a module, and its arguments.
        environment: all variables.
        processes: 0 for one without a group.
        cwd: folder to work in.
        imported: what it need not import: 'timm_hnc' and all that it imports, or 'torch' alone.
    """

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        processes: int = 0,
        cwd: Path | None = None,
        imported: str = 'timm_hnc',
    ):
        self.args = command
        self._folder = tempfile.TemporaryDirectory()
        streams = {name: os.path.join(self._folder.name, name) for name in ('out', 'err')}
        self._streams = list(streams.values())
        request = {'command': command, 'cwd': str(cwd or Path.cwd()), **streams}
        variables = [environment | each for each in _groups(processes)]
        self.ranks = [_Fork(imported, {**request, 'environment': each}) for each in variables]
        self.pid = self.ranks[0].pid

    def poll(self) -> int | None:
        """The exit code, None while a process runs. One that fails ends the others."""
        codes = [rank.join() for rank in self.ranks]
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
        out, err = (Path(path).read_text() if os.path.exists(path) else '' for path in self._streams)
        return out, err

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        for rank in self.ranks:
            rank.send_signal(number)


def _groups(processes: int) -> list[dict[str, str]]:
    """What torchrun tells every process of a group."""
    if not processes:
        return [{}]
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    shared = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'WORLD_SIZE': str(processes)}
    shared['LOCAL_WORLD_SIZE'] = shared['WORLD_SIZE']
    return [{**shared, 'RANK': str(rank), 'LOCAL_RANK': str(rank)} for rank in range(processes)]
