"""Whatever happens to a save, a whole checkpoint is there afterwards: killed, disk full, no right to write."""

import errno
import json
import os
import resource
import shutil
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from timm_hnc.checkpoints.checkpoints import CheckpointFolder, Progress, find_checkpoint
from timm_hnc.errors import DataError

# every call through which a save reaches the disk
CALLS = [(os, 'open'), (os, 'fsync'), (os, 'mkdir'), (os, 'rename'), (os, 'replace'), (os, 'symlink'), (os, 'unlink')]
CALLS += [(os, 'rmdir'), (Path, 'open'), (Path, 'rename'), (Path, 'mkdir'), (torch, 'save')]


def content(epoch):
    return {'weights': torch.full((2000,), float(epoch))}


def save(checkpoints, name, updates):
    def write(folder):
        (folder / 'model').mkdir()
        (folder / 'model' / 'config.json').write_text(json.dumps({'updates': updates}))
        torch.save(content(updates), folder / 'training_state.pt')

    checkpoints.progress.num_updates = updates
    checkpoints.save(name, write, float(updates))


def prepared(folder):
    checkpoints = CheckpointFolder(folder, 2, False, Progress('net'))
    for epoch in range(3):
        save(checkpoints, f'epoch-{epoch}', epoch)
    return checkpoints


def in_a_process(action) -> int:
    """Fork; the status of the child that does it."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


@contextmanager
def ending(number, end):
    """Inside, the end comes on the way to a call's number, or after it where that is odd."""
    count = 0

    def step():
        nonlocal count
        count += 1
        if count == number:
            end()

    def counted(original):
        def call(*args, **kwargs):
            step()
            result = original(*args, **kwargs)
            step()
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in CALLS:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        yield


def killed_at(number, action) -> bool:
    """Whether a process that does something is killed at a call's number."""

    def killed():
        with ending(number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            action()

    return os.WIFSIGNALED(in_a_process(killed))


def stopped_at(number, action) -> bool:
    """The same of a thread that stands still there for good, which leaves the disk as a killed process does."""
    reached = threading.Event()

    def stand_still():
        reached.set()
        threading.Event().wait()

    with ending(number, stand_still):
        thread = threading.Thread(target=action, daemon=True)
        thread.start()
        while thread.is_alive() and not reached.wait(0.001):
            pass
    return reached.is_set()


@pytest.mark.parametrize('name', ['epoch-3', 'epoch-2'], ids=['another', 'in its place'])
def test_killed_at_every_step_of_a_save(tmp_path, name):
    template = tmp_path / 'template'
    prepared(template)
    reached = 0
    for number in range(1, 200):
        folder = tmp_path / str(number)
        shutil.copytree(template, folder, symlinks=True)
        checkpoints = CheckpointFolder(folder, 2, False, Progress('net', ranking=[('epoch-2', 2.0), ('epoch-1', 1.0)]))
        end_at = killed_at if number % 10 == 1 else stopped_at  # a fork of all that is imported takes long
        ended = end_at(number, lambda c=checkpoints: save(c, name, 3))
        found = find_checkpoint(folder)
        assert found is not None
        updates = json.loads((found / 'state.json').read_text())['num_updates']
        assert updates in (1, 2, 3)
        if name == 'epoch-3':
            assert updates in (2, 3)
        assert torch.load(found / 'training_state.pt', weights_only=True)['weights'][0] == updates
        # the next save tidies up
        save(CheckpointFolder(folder, 2, False, Progress('net')), 'epoch-4', 4)
        assert all(not path.name.startswith('.') for path in (folder / 'checkpoints').iterdir())
        assert find_checkpoint(folder).name == 'epoch-4'
        if not ended:
            break
        reached += 1
    assert reached > 40, 'too few boundaries were met'
    assert updates == 3


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_an_error_at_every_step_of_a_save(tmp_path, monkeypatch, code):
    checkpoints = prepared(tmp_path)
    failed = 0
    for number in range(1, 100):
        count = 0

        def counted(original, number=number):
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count == number:
                    raise OSError(code, os.strerror(code))
                return original(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for owner, name in CALLS:
                if name not in ('unlink', 'rmdir'):
                    patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                save(checkpoints, 'epoch-3', 3)
                break
            except DataError as error:
                message = str(error)
        assert 'cannot be written' in message
        assert os.strerror(code) in message
        assert message.endswith('earlier ones are whole.')
        assert find_checkpoint(tmp_path).name in ('epoch-2', 'epoch-3')
        failed += 1
    assert failed > 15
    assert find_checkpoint(tmp_path).name == 'epoch-3'


def test_a_file_that_may_not_grow(tmp_path):
    """The kernel's own limit: torch tells of it in an error of its own."""
    checkpoints = prepared(tmp_path)

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            save(checkpoints, 'epoch-3', 3)
        except DataError as error:
            os._exit(7 if 'cannot be written' in str(error) else 8)

    assert os.waitstatus_to_exitcode(in_a_process(limited)) == 7
    assert find_checkpoint(tmp_path).name == 'epoch-2'


def test_the_newest_whole_one_is_taken_and_the_others_named(tmp_path, caplog):
    prepared(tmp_path)
    (tmp_path / 'checkpoints' / 'epoch-2' / 'training_state.pt').write_bytes(b'')
    assert find_checkpoint(tmp_path).name == 'epoch-1'
    assert 'Checkpoint epoch-2 is passed over: ' in caplog.text
    assert "training_state.pt' is damaged" in caplog.text
    (tmp_path / 'checkpoints' / 'epoch-1' / 'manifest.json').unlink()
    with pytest.raises(DataError, match=r"no checkpoint of '.*' is whole: .*epoch-2.*Remove the folder"):
        find_checkpoint(tmp_path)
