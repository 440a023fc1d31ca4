"""timm_hnc's commands and Python code in processes of their own that talk to the test Hub; they wait for nothing."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from hub_server import WITHOUT_WAITING, client_environment
from running import ROOT, subprocess_environment

# importing takes 3 seconds: it is done once, and every worker is a fork
SERVER = (
    f'import sys; sys.path.insert(0, {str(ROOT / "tests")!r})'
    + """
import contextlib, gc, io, json, os, select, socketserver
import torch, timm, timm_hnc, timm_hnc.weights.hub_errors
from running import forget_run, main_of
from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.console import COMMANDS

timm_hnc.weights.hub_errors.time = no_waiting
os.fsync = lambda file: None  # as conftest.py says
for name in COMMANDS:
    main_of(name)

def outcome(command, *argv):
    WAITS.clear()
    found, code, streams = None, 0, (io.StringIO(), io.StringIO())
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            if command == 'python':
                names = {}
                exec(argv[0], names)
                found = names.get('found')
            else:
                forget_run()
                code = run_command(main_of(command), argv)
        except SystemExit as exit:
            code = exit.code
        except Exception as error:
            code, found = 1, f'{type(error).__name__}: {error}'
    return [code, found, streams[0].getvalue(), streams[1].getvalue(), WAITS]

class Fork(socketserver.StreamRequestHandler):
    def handle(self):
        home, variables = json.loads(self.rfile.readline())
        os.chdir(home)
        os.environ.update(variables)
        for line in self.rfile:
            self.wfile.write(json.dumps(outcome(*json.loads(line))).encode() + b'\\n')

class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    def service_actions(self):
        super().service_actions()
        if select.select([0], [], [], 0)[0]:
            raise SystemExit  # whoever started this process closed its input, or is no more

with Server(sys.argv[1], Fork) as server:
    gc.collect()
    gc.freeze()
    print(flush=True)
    server.serve_forever()
"""
)


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
        command = [sys.executable, '-c', WITHOUT_WAITING + SERVER, self._path]
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
        self._process = subprocess.Popen(command, env=environment, **pipes)
        self._process.stdout.readline()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.stdin.close()
        self._process.stdout.close()
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
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
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
