"""Processes that have torch imported, for tests that start many: python fork_server.py FOLDER

One process imports torch and torchvision and waits at the socket FOLDER/torch; a fork of it imports timm_hnc's commands
as well and waits at FOLDER/timm_hnc. A request is one line of JSON, the arguments of `become`; a fork of whoever was
asked becomes the script. The answers are two lines, its process and its exit code. It is killed when the one who asked
goes away; the server ends when its standard input does.
"""

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import select
import socketserver
import sys
import warnings
from multiprocessing.connection import wait
from pathlib import Path

TESTS = Path(__file__).parent
OFTEN = ('datasets', 'matplotlib.backends.backend_agg', 'sklearn.metrics')  # what runs import where it is used


class Request(socketserver.StreamRequestHandler):
    """Handled in a fork of the server."""

    def handle(self) -> None:
        script = multiprocessing.get_context('fork').Process(target=become, kwargs=json.loads(self.rfile.readline()))
        script.start()
        self._answer(script.pid)
        end = os.pidfd_open(script.pid)  # script.sentinel waits for the script's own forks too
        if self.request in wait([end, self.request]):
            script.kill()
        script.join()
        self._answer(script.exitcode)

    def _answer(self, number: int | None) -> None:
        with contextlib.suppress(OSError):  # nobody may listen any more
            self.wfile.write(b'%d\n' % number)


class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    request_queue_size = 64
    block_on_close = False

    def service_actions(self) -> None:
        super().service_actions()
        if select.select([0], [], [], 0)[0]:
            raise SystemExit


def become(command: list[str], environment: dict[str, str], cwd: str, out: str, err: str) -> None:
    """Run a script in this process, as a fresh interpreter would.

    Args:
        command: a path or '-m' and a module, and its arguments.
        environment: all variables.
        cwd: folder to work in.
        out: file that it prints to.
        err: file of its standard error.
    """
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # the default of a fresh interpreter
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.fsync = lambda file: None  # as conftest.py says
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [path for path in environment.get('PYTHONPATH', '').split(os.pathsep) if path not in sys.path]
    os.chdir(cwd)
    if command[0] == '-m':
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name='__main__', alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name='__main__')


def serve(path: str) -> None:
    gc.collect()
    gc.freeze()  # as conftest.py says
    gc.set_threshold(100_000, 50, 100)
    with Server(f'{path}.new', Request) as server:
        os.rename(f'{path}.new', path)  # whoever finds it may connect
        server.serve_forever(poll_interval=0.1)


def main(folder: str) -> None:
    sys.path.remove(str(TESTS))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        importlib.import_module('torchvision')
        if os.fork():
            serve(f'{folder}/torch')
        sys.path.insert(0, str(TESTS.parent))
        console = importlib.import_module('timm_hnc.commands.console')
        for module in [*(f'timm_hnc.commands.{module}' for module, _ in console.COMMANDS.values()), *OFTEN]:
            importlib.import_module(module)
    serve(f'{folder}/timm_hnc')


if __name__ == '__main__':
    main(sys.argv[1])
