"""timm_hnc's commands and Python code in a process of its own that talks to the test Hub; it waits for nothing."""

import json
import subprocess
import sys
from typing import NamedTuple

from hub_server import WITHOUT_WAITING
from running import ROOT

WORKER = (
    f'import sys; sys.path.insert(0, {str(ROOT / "tests")!r})'
    + """
import contextlib, io, json, logging, types
import torch, timm, timm_hnc, timm_hnc.hub.problems
from running import forget_run, main_of
from timm_hnc.command_line import run_command

timm_hnc.hub.problems.time = no_waiting

for line in sys.stdin:
    WAITS.clear()
    command, *argv = json.loads(line)
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
    print(json.dumps([code, found, streams[0].getvalue(), streams[1].getvalue(), WAITS]), flush=True)
"""
)


class Outcome(NamedTuple):
    """What became of a command or of code: `found` is the value of that name, or the error."""

    code: int
    found: object
    out: str
    err: str
    waits: list


class Worker:
    """Runs commands (`'train'`, `'validate'`, `'hub'`) and code (`'python'`), one after the other.

    Args:
        environment: what client_environment gave.
    """

    def __init__(self, environment):
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
        self.process = subprocess.Popen([sys.executable, '-c', WITHOUT_WAITING + WORKER], env=environment, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(20)

    def become(self, token: str | None) -> None:
        """Take another token, or none."""
        code = "import os\nos.environ.pop('HF_TOKEN', None)\n"
        self('python', code + (f"os.environ['HF_TOKEN'] = {token!r}" if token else ''))

    def __call__(self, command, *argv) -> Outcome:
        self.process.stdin.write(json.dumps([command, *map(str, argv)]) + '\n')
        self.process.stdin.flush()
        return Outcome(*json.loads(self.process.stdout.readline()))
