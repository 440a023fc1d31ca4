"""Real processes that are killed, stopped, or left alone by another."""

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from background import TRAIN, descendants, kill_all, running, wait_for, workers_of
from running import failure, run_differences, run_script, summary, train

from timm_hnc.checkpoints.checkpoints import find_checkpoint

EXACT = ['--model-ema', '--grad-accum-steps', 2, '--hnc', 'mse', '--hnc-weight', 'auto', '--aa', 'rand-m5', '-b', 4]
EXACT += ['--epochs', 2, '--workers', 1, '--checkpoint-interval', 1, '--lr', 0.05, '--drop', 0.1, '--mixup', 0.3]
STANDING = Path(__file__).parent / 'standing_train.py'


# one process and a second kill: test_interrupted.py kills one twice inside its epochs, with every kind of option
@pytest.mark.parametrize(
    ('processes', 'epochs'), [(2, [1]), *(pytest.param(n, [0, 1], marks=pytest.mark.slow) for n in (0, 2))]
)
def test_killed_and_resumed_is_as_never_killed(options, tmp_path, processes, epochs):
    done = run_script(TRAIN, *options('whole', *EXACT), processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    argv = options('parts', *EXACT, '--resume', 'auto')
    for epoch in epochs:
        with running(epoch, *argv, script=STANDING, processes=processes) as process:
            wait_for(process, tmp_path / 'parts' / 'checkpoints' / f'recovery-{epoch}-2')
            kill_all(process)
    done = run_script(TRAIN, *argv, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'Going on from ' in done.stderr
    assert run_differences(tmp_path / 'whole', tmp_path / 'parts') == []


@pytest.mark.parametrize('launcher', ['', pytest.param('torchrun', marks=pytest.mark.slow)])
def test_a_scheduler_that_ends_two_processes(options, tmp_path, capsys, launcher):
    """SIGTERM reaches the processes and those that load for them; torchrun, if it is there, passes it on to them.

    The first process holds the folder for both. They save and end with 0, torchrun does not, as the documentation says.
    """
    argv = options('run', '--epochs', 100_000, '-b', 4, '--recovery-interval', 1, '--workers', 1)
    with running(*argv, processes=2, fresh=bool(launcher)) as process:
        wait_for(process, tmp_path / 'run' / 'checkpoints' / 'epoch-0')
        code, line = failure(capsys, 'train', *argv, '--resume', 'auto')
        assert code == 1
        first = descendants(process.pid)[0] if launcher else process.pid
        assert int(re.search('is in use by process ([0-9]+) on ', line)[1]) == first
        if launcher:
            process.send_signal(signal.SIGTERM)
        else:
            for rank in process.ranks:
                os.killpg(rank.pid, signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    assert len(re.findall('Stopped by SIGTERM (?:in|after) epoch ', errors)) == 1
    assert '--resume' in errors
    assert process.returncode == (1 if launcher else 0)
    assert bool(re.search('SignalException: Process [0-9]+ got signal: 15', errors)) == bool(launcher)
    assert 'error:' not in errors
    found = find_checkpoint(tmp_path / 'run')
    assert found is not None
    assert found == (tmp_path / 'run' / 'last').resolve()


@pytest.mark.slow  # that a killed run of two processes goes on, the first test says
def test_one_process_that_dies_ends_the_other(options, tmp_path):
    argv = options('run', '--epochs', 100_000, '-b', 4)
    with running(*argv, processes=2, fresh=True) as process:
        wait_for(process, tmp_path / 'run' / 'checkpoints' / 'epoch-0')
        started = time.monotonic()
        first, second = descendants(process.pid)[:2]
        os.kill(second, signal.SIGKILL)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode not in (0, None)
    assert time.monotonic() - started < 60
    assert 'SIGKILL' in errors
    assert find_checkpoint(tmp_path / 'run') is not None
    assert not Path(f'/proc/{first}').exists()


def signal_workers(process, number):
    """Send loading processes a signal until the run ends."""
    end = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < end:
        for pid in workers_of(process):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(0.01)


LONG_STEPS = ['--dataset', 'hnc/digits', '--num-classes', 10, '--img-size', 96, '-b', 64, '--checkpoint-interval', 4]


@pytest.mark.parametrize('moment', ['anywhere', 'while the model computes'])
def test_a_worker_that_dies(options, tmp_path, moment):
    argv = options('run', '--epochs', 100_000, '--workers', 2)
    computes = moment == 'while the model computes'
    with running(*argv, *(LONG_STEPS if computes else [])) as process:
        wait_for(process, tmp_path / 'run' / 'checkpoints' / ('recovery-*' if computes else 'epoch-0'))
        signal_workers(process, signal.SIGKILL)
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert 'Traceback' not in errors
    last = errors.strip().splitlines()[-1]
    assert re.search(r'error: the data cannot be read: DataLoader worker (\(pid|ended while it handed)', last)
    assert last.endswith('See --workers, --worker-timeout and the memory that is free.')


def test_a_worker_that_hangs(options, tmp_path):
    """It may or may not have announced a batch; tests/data/loading/test_loader_errors.py is sure of one that has."""
    with running(*options('run', '--epochs', 100_000, '--workers', 1, '--worker-timeout', 1)) as process:
        wait_for(process, tmp_path / 'run' / 'checkpoints' / 'epoch-0')
        signal_workers(process, signal.SIGSTOP)
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert 'Traceback' not in errors
    assert re.search('error: the data cannot be read: DataLoader (timed out after 1.0|has waited 7) seconds', errors)


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_to_all_processes_saves_the_run(options, tmp_path, number, code):
    """A terminal's Ctrl-C and a scheduler's SIGTERM reach the loading processes as well."""
    with running(*options('run', '--epochs', 100_000, '--workers', 2)) as process:
        wait_for(process, tmp_path / 'run' / 'checkpoints' / 'epoch-0')
        assert workers_of(process)
        os.killpg(process.pid, number)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert len(re.findall(f'Stopped by {number.name} (?:in|after) epoch ', errors)) == 1
    assert 'Traceback' not in errors
    rows = len(summary(tmp_path / 'run'))
    train(*options('run', '--epochs', 100_000, '--stop-epoch', rows + 1, '--resume', 'auto'))
    assert len(summary(tmp_path / 'run')) == rows + 1
