"""A loader's errors, and the end of waiting for processes that are frozen."""

import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader

from timm_hnc.data.loading import loader_errors as reading
from timm_hnc.data.loading import worker_signals
from timm_hnc.errors import DataError

SAMPLES = [torch.full((3,), float(index)) for index in range(12)]


class Deadly:
    """Its second sample ends the process that reads it."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index:
            os.kill(os.getpid(), signal.SIGKILL)
        return SAMPLES[index]


def loader_with(timeout):
    return DataLoader(SAMPLES, batch_size=2, num_workers=2, timeout=timeout)


@pytest.fixture(autouse=True)
def kept_signals(no_timer):
    """With torch's handler of dying processes after."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGALRM)}
    yield
    found = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    signal.signal(signal.SIGCHLD, handlers[signal.SIGCHLD])
    signal.signal(signal.SIGALRM, handlers[signal.SIGALRM])
    assert found == (handlers[signal.SIGALRM], (0, 0))


def signal_workers(workers, number):
    for process in workers:
        os.kill(process.pid, number)


def test_frozen_processes_whose_batches_lie_ready(monkeypatch):
    """Torch's own timeout is no help: a batch is announced, and its memory must come from the process."""
    monkeypatch.setattr(reading, '_GRACE', 0)
    others = worker_signals.children()
    batches = reading.read(loader_with(timeout=1))
    next(batches)
    time.sleep(0.5)  # the next batches are announced
    workers = worker_signals.children() - others
    signal_workers(workers, signal.SIGSTOP)
    for worker in workers:
        os.waitpid(worker.pid, os.WUNTRACED)  # until it has stopped
    rescue = threading.Timer(30, signal_workers, [workers, signal.SIGCONT])
    rescue.start()
    with pytest.raises(DataError, match=r'DataLoader has waited 2 seconds .* See --workers'):
        list(batches)  # one may have come before its turn
    rescue.cancel()
    for worker in workers:
        worker.join(5)
        assert worker.exitcode == -signal.SIGKILL


def test_processes_of_others_live_on():
    """A data set that fails ends the processes that load it, and no other daemon of the caller's."""
    other = multiprocessing.get_context('spawn').Process(target=time.sleep, args=(60,), daemon=True)
    other.start()
    others = worker_signals.children()
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        with pytest.raises(DataError, match='DataLoader worker'), reading.watched_workers():
            for _ in reading.read(DataLoader(Deadly(), batch_size=1, num_workers=1)):
                pass
        assert other.is_alive()
        assert worker_signals.children() <= others
        assert signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL, 'the handler that was there is back'
    finally:
        other.kill()
        other.join()


def test_only_waiting_is_timed(monkeypatch):
    monkeypatch.setattr(reading, '_GRACE', 0)
    found = []
    for batch in reading.read(loader_with(timeout=0.5)):
        found.append(batch)
        time.sleep(1.2 if len(found) == 1 else 0)
    assert torch.equal(torch.cat(found), torch.stack(SAMPLES))


def test_other_threads_read_without_a_timer():
    found = []
    thread = threading.Thread(target=lambda: found.extend(reading.read(loader_with(timeout=20))))
    thread.start()
    thread.join(30)
    assert torch.equal(torch.cat(found), torch.stack(SAMPLES))


def test_a_timer_of_the_caller_is_left_alone():
    signal.setitimer(signal.ITIMER_REAL, 1000)
    for _ in reading.read(loader_with(timeout=20)):
        assert 900 < signal.getitimer(signal.ITIMER_REAL)[0] < 1000
    signal.setitimer(signal.ITIMER_REAL, 0)


def test_a_batch_whose_process_died_on_the_way(monkeypatch):
    """Its memory cannot be fetched any more, and torch has not yet seen that the process died."""
    others = worker_signals.children()
    batches = iter(loader_with(timeout=5))
    while batches._worker_result_queue.empty():  # until one is announced
        time.sleep(0.01)
    workers = worker_signals.children() - others
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, 'is_alive', lambda process: True)
    signal_workers(workers, signal.SIGKILL)
    for worker in workers:
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(DataError, match=r'^the data cannot be read: DataLoader worker ended while it handed a batch'):
        list(reading.read(batches))


@pytest.mark.parametrize('error', [ConnectionResetError(104, 'reset'), EOFError('in the middle of a file')])
def test_a_source_that_breaks_off_is_no_process_that_died(error):
    def broken():
        yield 1
        raise error

    with pytest.raises(DataError) as caught:
        list(reading.read(broken()))
    assert str(caught.value) == f'the data cannot be read: {error}'
