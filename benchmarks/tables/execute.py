"""Runs as processes, several at a time; what fails is noted and the others go on."""

import fcntl
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tables.runs import Run
from timm_hnc.errors import DataError

_POLL = 0.2  # seconds between looks at the processes


def command_line(run: Run, step: str, launcher: str = '') -> list[str]:
    """The whole command of a step ('train' or 'test'); `launcher` is what stands before the script, Python if empty."""
    return [*(shlex.split(launcher) or [sys.executable]), *run.command(step)]


def execute(
    runs: Sequence[Run] | Callable[[], Sequence[Run]],
    jobs: int,
    launcher: str = '',
    failures: dict[str, str] | None = None,
) -> dict[str, str]:
    """Do what is missing of the runs.

    Args:
        runs: complete ones are passed over, incomplete ones go on from their last checkpoint. A function gives those
            that can be done by now, the most urgent first; it is asked again when one has ended.
        jobs: processes at a time.
        launcher: see `command_line`.
        failures: what is returned, filled as it happens.

    Returns:
        What went wrong, by name of the run.
    """
    environment = {'OMP_NUM_THREADS': str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}
    running: list[_Process] = []
    failures = {} if failures is None else failures
    due = runs if callable(runs) else lambda: runs
    known = due()
    for run in known:
        if run.next_step is None:
            _check(run, failures)
    print(f'{len(known)} runs, {sum(run.next_step is None for run in known)} of them complete.', flush=True)
    try:
        while True:
            for run in known:
                if len(running) < jobs and _is_missing(run, running, failures):
                    _start(run, launcher, environment, running, failures)
            if not running:
                return failures
            _wait(running, failures)
            known = due()
    finally:
        _stop(running)


@dataclass
class _Process:
    run: Run
    step: str
    popen: subprocess.Popen
    log: Path
    offset: int
    started: float


def told(failures: Mapping[str, str], script: str) -> int:
    """Write what went wrong, a line a run; the script's exit code."""
    for name, message in failures.items():
        sys.stderr.write(f'{script}: {name}: {message}\n')
    return 1 if failures else 0


def _is_missing(run: Run, running: Sequence[_Process], failures: dict[str, str]) -> bool:
    under_way = any(process.run.folder == run.folder for process in running)
    return not under_way and run.name not in failures and run.next_step is not None


def _wait(running: list[_Process], failures: dict[str, str]) -> None:
    """Until at least one process has ended."""
    while not (ended := [process for process in running if process.popen.poll() is not None]):
        time.sleep(_POLL)
    for process in ended:
        running.remove(process)
        _finish(process, failures)


def _check(run: Run, failures: dict[str, str]) -> None:
    """A complete run that was made with other options is a failure."""
    try:
        run.check_options()
    except DataError as error:
        failures[run.name] = str(error)


def _start(
    run: Run, launcher: str, environment: dict[str, str], running: list[_Process], failures: dict[str, str]
) -> None:
    step = run.next_step or ''
    try:
        run.check_options()
        running.append(_open(run, step, command_line(run, step, launcher), environment))
        print(f'{run.name}: {step}', flush=True)
    except (DataError, OSError) as error:
        failures[run.name] = str(error)
        print(f'{run.name}: {error}', flush=True)


def _open(run: Run, step: str, command: list[str], environment: dict[str, str]) -> _Process:
    run.folder.mkdir(parents=True, exist_ok=True)
    log = run.folder / 'log.txt'
    # the process holds the lock as long as it lives, whatever becomes of this one
    with (run.folder / '.lock').open('w') as lock, log.open('a') as output:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError('is under way in another process.') from error
        output.write(f'$ {shlex.join(command)}\n')
        output.flush()
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[lock.fileno()],
        )
        return _Process(run, step, popen, log, output.tell(), time.monotonic())


def _finish(process: _Process, failures: dict[str, str]) -> None:
    run, minutes = process.run, (time.monotonic() - process.started) / 60
    if process.popen.returncode == 0 and process.step == 'test':
        run.keep_evaluation()
    if process.popen.returncode:
        failures[run.name] = f'{process.step}: {_last_error(process)}'
    elif run.next_step == process.step:
        failures[run.name] = f'{process.step}: ended without its result, see {process.log}'
    print(f'{run.name}: {failures.get(run.name, f"{process.step} done in {minutes:.1f} min")}', flush=True)


def _last_error(process: _Process) -> str:
    """The last line of this attempt's output that says error, else its last line."""
    with process.log.open(errors='replace') as file:
        file.seek(process.offset)
        lines = [line.strip() for line in file.read().splitlines() if line.strip()]
    said = [line for line in lines if ': error: ' in line or 'Error' in line]
    return (said or lines or [f'exit code {process.popen.returncode}, no output'])[-1]


def _stop(running: list[_Process]) -> None:
    for process in running:
        process.popen.terminate()
    for process in running:
        try:
            process.popen.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.popen.kill()
