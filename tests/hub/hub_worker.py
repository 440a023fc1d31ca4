"""timm_hnc's commands and Python code in processes of their own that talk to the test Hub; they wait for nothing."""

import json
import os
import signal
import socket
import tempfile
from pathlib import Path
from typing import NamedTuple

from forks import Script, connect
from hub_server import client_environment
from running import subprocess_environment

SERVER = Path(__file__).with_name('hub_commands.py')


class Workers:
    """Starts workers.

    The Hub's client reads its address and cache when it is imported: all workers talk to one server, and the cache of
    each is in the folder that it works in.

    Args:
        server: the HubServer.
    """

    def __init__(self, server):
        self._folder = tempfile.TemporaryDirectory()  # near the root: the path of a socket has 100 characters
        self._path = os.path.join(self._folder.name, 'workers')
        environment = client_environment(server, 'home', start=subprocess_environment())
        self._process = Script([str(SERVER), self._path], environment, imported='torch')

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)
        self._folder.cleanup()

    def start(self, home: Path, token: str | None = None, **variables: str) -> 'Worker':
        """A worker with a cache of its own.

        Args:
            home: the folder that it works in; a fresh one is an empty cache.
            token: without one it is nobody.
            variables: of its environment, which are not read when modules are imported.
        """
        home.mkdir(exist_ok=True)
        return Worker(self._path, home, variables | ({'HF_TOKEN': token} if token else {}))


class Outcome(NamedTuple):
    """What became of a command or of code: `found` is the value of that name, or the error."""

    code: int
    found: object
    out: str
    err: str
    waits: list


class Worker:
    """Runs commands (`'train'`, `'validate'`, `'push'`, ...) and code (`'python'`), one after the other.

    Args:
        path: of the socket where Workers wait.
        home: the folder that it works in.
        variables: of its environment.
    """

    def __init__(self, path: str, home: Path, variables: dict[str, str]):
        self._socket = connect(path)
        self._socket.settimeout(100)
        self._answers = self._socket.makefile()
        self._send([str(home), variables])

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._socket.shutdown(socket.SHUT_WR)
        self._answers.read()  # to the end of the process
        self._answers.close()
        self._socket.close()

    def become(self, token: str | None) -> None:
        """Take another token, or none."""
        code = "import os\nos.environ.pop('HF_TOKEN', None)\n"
        self('python', code + (f"os.environ['HF_TOKEN'] = {token!r}" if token else ''))

    def begin(self, command, *argv) -> None:
        """Start a command whose outcome `end` waits for."""
        self._send([command, *map(str, argv)])

    def end(self) -> Outcome:
        return Outcome(*json.loads(self._answers.readline()))

    def __call__(self, command, *argv) -> Outcome:
        self.begin(command, *argv)
        return self.end()

    def _send(self, message: list) -> None:
        self._socket.sendall(json.dumps(message).encode() + b'\n')
