"""What the workers of hub_worker.py are forks of: python hub_commands.py SOCKET

A connection is a worker. Its first line is its folder and its variables; every other line is a command or Python code,
and is answered with what became of it.
"""

import contextlib
import gc
import io
import json
import os
import socketserver
import sys

from hub_waits import WAITS, no_waiting
from running import forget_run, main_of

import timm_hnc.weights.hub_errors
from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.console import COMMANDS


def outcome(command: str, *argv: str) -> list:
    """Exit code, what was found, standard output and error, waits."""
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


class Worker(socketserver.StreamRequestHandler):
    """Handled in a fork."""

    def handle(self) -> None:
        home, variables = json.loads(self.rfile.readline())
        os.chdir(home)
        os.environ.update(variables)
        for line in self.rfile:
            self.wfile.write(json.dumps(outcome(*json.loads(line))).encode() + b'\n')


class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    pass


if __name__ == '__main__':
    timm_hnc.weights.hub_errors.time = no_waiting
    for name in COMMANDS:
        main_of(name)
    gc.collect()
    gc.freeze()
    path = sys.argv[1]
    with Server(f'{path}.new', Worker) as server:
        os.rename(f'{path}.new', path)  # whoever finds it may connect
        server.serve_forever()
