"""One run to a folder: real processes that want the same one."""

import errno
import fcntl
import os
import re
import signal
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from background import TRAIN, freeze, running, state_of, wait_for, workers_of
from running import contents, failure, main_of, run_script, summary, train, validate

from timm_hnc.hub.publish import bundled_run

LOCK = '.run.lock'


@pytest.fixture
def pair(options, tmp_path):
    """Two runs that were started together, of which one goes on."""
    argv = options('run', '--epochs', 100_000)
    with running(*argv) as first, running(*argv) as second:
        end = time.monotonic() + 90
        while first.poll() is None and second.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        refused, holder = (first, second) if first.poll() is not None else (second, first)
        wait_for(holder, tmp_path / 'run' / 'checkpoints' / 'epoch-1')
        yield SimpleNamespace(folder=tmp_path / 'run', argv=argv, refused=refused, holder=holder)


def test_of_two_that_start_together_one_is_refused(pair):
    assert pair.refused.returncode == 1
    errors = pair.refused.communicate()[1]
    assert 'Traceback' not in errors
    (line,) = re.findall('train.py: error: (.*)\n', errors)
    holder = rf'process {pair.holder.pid} on {re.escape(os.uname().nodename)}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d '
    assert re.match(rf"run folder '{pair.folder}' is in use by {holder}[+-]\d{{4}}: wait for its end, or", line)
    assert pair.holder.poll() is None


def test_several_processes_are_refused_in_one_line(pair):
    done = run_script(TRAIN, *pair.argv, processes=2)
    assert done.returncode != 0
    assert re.findall('error: .* is in use by process ([0-9]+) on ', done.stderr) == [str(pair.holder.pid)]


def test_readers_and_other_runs_leave_a_folder_in_use_as_it_is(pair, images, tmp_path, capsys):
    """The run is frozen meanwhile: it holds its folder all the same, and what is in it can be compared."""
    pair.holder.send_signal(signal.SIGSTOP)
    before = contents(pair.folder)
    validate(capsys, '--checkpoint', pair.folder, '--data-dir', images, '--workers', 0, '--device', 'cpu')
    for kind, name in (('curves', 'curves.png'), ('report', 'report.html')):
        main_of(kind)([str(pair.folder), '--out', str(tmp_path / name)])
    with bundled_run(pair.folder, 'user/name') as bundle:
        published = {path.name for path in bundle.iterdir()}
    assert published == {'README.md', 'args.yaml', 'config.json', 'model.safetensors', 'summary.csv'}
    for how in ([], ['--resume', 'auto'], ['--resume', pair.folder]):
        code, line = failure(capsys, 'train', *pair.argv, *how)
        assert code == 1
        assert f'is in use by process {pair.holder.pid} on ' in line
    assert contents(pair.folder) == before
    pair.holder.send_signal(signal.SIGCONT)
    pair.holder.send_signal(signal.SIGTERM)
    assert pair.holder.wait(60) == 0
    rows = [row['epoch'] for row in summary(pair.folder)]
    assert rows == list(range(len(rows)))
    assert not (pair.folder / LOCK).exists()
    train(*pair.argv, '--resume', 'auto', '--stop-epoch', len(rows) + 1)
    assert [row['epoch'] for row in summary(pair.folder)] == [*rows, len(rows)]


def test_a_resume_right_after_a_kill_is_not_held_up_by_workers_that_live_on(options, tmp_path):
    folder = tmp_path / 'run'
    argv = options('run', '--epochs', 100_000, '--resume', 'auto')
    with running(*argv, '--workers', 2) as process:
        wait_for(process, folder / 'checkpoints' / 'epoch-0')
        workers = workers_of(process)
        assert len(workers) >= 2
        freeze(workers)  # else they see that their parent is gone, and end
        try:
            process.kill()
            process.wait(20)
            assert f'process {process.pid} on ' in (folder / LOCK).read_text()
            done = len(summary(folder))
            train(*argv, '--stop-epoch', done + 1)
            assert all(state_of(pid) == 'T' for pid in workers)
        finally:
            for pid in workers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    assert [row['epoch'] for row in summary(folder)] == list(range(done + 1))
    assert not (folder / LOCK).exists()


def test_a_file_system_without_locks(options, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'lockf', refuse)
    folder = train(*options('run'))
    assert (
        f"Run folder '{folder}': no locks on this file system (No locks available); make sure that no other run uses "
        'this folder.'
    ) in caplog.text
    assert [row['epoch'] for row in summary(folder)] == [0]
    assert not (folder / LOCK).exists()


def test_an_end_of_any_kind_frees_the_folder(options, tmp_path, capsys):
    code, _ = failure(capsys, 'train', *options('run', '--data-dir', tmp_path / 'nowhere'))
    assert code == 1
    assert not (tmp_path / 'run').exists()
    folder = train(*options('run'))
    assert not (folder / LOCK).exists()
    code, line = failure(capsys, 'train', *options('run'))
    assert (code, 'exists already' in line) == (2, True)
    train(*options('run', '--epochs', 2, '--resume', 'auto'))


def test_a_lock_that_its_holder_takes_away_meanwhile(options, tmp_path, monkeypatch):
    """Between the opening of the file and its locking: what is locked then is no longer in the folder."""
    original, removed = fcntl.lockf, []

    def lockf(*args):
        if not removed:
            removed.append((tmp_path / 'run' / LOCK).unlink())
        original(*args)
        removed.append((tmp_path / 'run' / LOCK).exists())

    monkeypatch.setattr(fcntl, 'lockf', lockf)
    train(*options('run'))
    assert removed == [None, False, True]
