"""Signals to the loading processes: of the process that reads, and of anybody else."""

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from running import start_script
from torch.utils.data import DataLoader, get_worker_info

from timm_hnc.data.loading import worker_signals

SAMPLES = [torch.full((1,), float(index)) for index in range(8)]


class Prepared:
    """Samples that say how their process was prepared."""

    def __len__(self):
        return len(SAMPLES)

    def __getitem__(self, index):
        return SAMPLES[index], get_worker_info().dataset.prepared


def prepare(worker):
    get_worker_info().dataset.prepared = worker + 10


# its loading process holds the interpreter's lock for hours, and signals come to the group
STUCK = """
import os, re, signal, time
from multiprocessing import active_children, resource_tracker
from torch.utils.data import DataLoader
from timm_hnc.data.loading import worker_signals

class Stuck:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.write(begun, b'1')
        re.match('(a+)+$', 'a' * 60 + 'b')

worker_signals._GRACE = 0.2
begins, begun = os.pipe()
loader = DataLoader(Stuck(), num_workers=1, multiprocessing_context='fork')
worker_signals.outlive_signals(loader)
iterator = iter(loader)
os.read(begins, 1)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
os.killpg(0, signal.SIGUSR1)
time.sleep(0.2)
resource_tracker._resource_tracker._check_alive() or print('no tracker', flush=True)
print(*[each.pid for each in active_children()], flush=True)
"""


def workers_of(loader):
    """Its processes, after a pass."""
    before = set(multiprocessing.active_children())
    assert [prepared.item() for _, prepared in loader] == [10, 11] * 4
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    return workers


def loader_of(context):
    options = {'persistent_workers': True, 'worker_init_fn': prepare, 'multiprocessing_context': context}
    loader = DataLoader(Prepared(), num_workers=2, **options)
    worker_signals.outlive_signals(loader)
    return loader


@pytest.fixture(params=['fork', 'fork by default', 'forkserver by default'])
def context(request):
    """That of a loader, by its name, or None for the default."""
    before = multiprocessing.get_start_method(allow_none=True)
    if request.param == 'fork':
        yield 'fork'
        return
    multiprocessing.set_start_method(request.param.split()[0], force=True)
    forkserver._forkserver._stop()  # another test's, which signals may reach
    multiprocessing.set_forkserver_preload(['torch'])  # once for all its forks
    worker_signals.spare_fork_server()
    yield None
    forkserver._forkserver._stop()
    multiprocessing.set_forkserver_preload(['__main__'])
    multiprocessing.set_start_method(before, force=True)


def test_only_the_process_that_reads_ends_them(context):
    loader = loader_of(context)
    workers = workers_of(loader)
    # this process reads: another one sends them
    numbers = [int(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    pids = [each.pid for each in workers]
    if multiprocessing.get_start_method() == 'forkserver':
        pids.append(forkserver._forkserver._forkserver_pid)
    code = f'import os\nfor pid in {pids}:\n for n in {numbers}: os.kill(pid, n)'
    subprocess.run([sys.executable, '-c', code], check=True)
    assert [sample.item() for sample, _ in loader] == list(range(8))
    assert all(worker.is_alive() for worker in workers)
    for worker in workers:
        worker.terminate()
        worker.join(20)
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_those_that_are_no_forks_are_of_no_group(monkeypatch):
    monkeypatch.setattr(worker_signals, '_forked', lambda: False)  # a fork, quicker than one that is none
    loader = loader_of('fork')  # its processes end with it
    for worker in workers_of(loader):
        assert os.getpgid(worker.pid) == worker.pid


def test_one_that_hangs_does_not_outlive_its_reader(tmp_path):
    script = tmp_path / 'stuck.py'
    script.write_text(STUCK)
    out, errors = start_script(script).communicate(30)
    (pid,) = out.split()
    assert not Path(f'/proc/{pid}').exists()
    assert errors == ''
