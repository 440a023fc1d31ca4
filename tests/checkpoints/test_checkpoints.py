import json
import math
import shutil
from types import SimpleNamespace

import pytest

from timm_hnc.checkpoints.checkpoints import CheckpointFolder, Progress, find_checkpoint, read_progress, run_folder_of
from timm_hnc.errors import DataError


def write(text):
    def fill(folder):
        (folder / 'model').mkdir()
        (folder / 'model' / 'weights').write_text(text)

    return fill


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def names(folder):
    return {path.name for path in (folder / 'checkpoints').iterdir()}


@pytest.mark.parametrize(
    ('decreasing', 'metrics', 'best', 'kept'),
    [
        (False, [1, 3, 2, 0], 1, {1, 2, 3}),
        (True, [1, 3, 2, 4], 0, {0, 2, 3}),
        (False, [5, 5, 5, 5], 0, {0, 1, 3}),  # of equals the earlier one stays in front
        (False, [0, 1, 2, 3], 3, {2, 3}),
        (True, [math.nan, 2, 1, math.nan], 2, {1, 2, 3}),
        (False, [math.nan, 1, math.nan, 2], 3, {1, 3}),
        (False, [math.nan, math.nan, math.nan, 0], 3, {0, 3}),
    ],
)
def test_the_best_are_kept_and_the_last(folder, decreasing, metrics, best, kept):
    checkpoints = CheckpointFolder(folder, 2, decreasing, Progress('net'))
    for epoch, metric in enumerate(metrics):
        checkpoints.save(f'epoch-{epoch}', write(str(epoch)), metric)
        assert (folder / 'last' / 'model' / 'weights').read_text() == str(epoch)
    assert names(folder) == {f'epoch-{epoch}' for epoch in kept}
    assert (folder / 'model_best' / 'weights').read_text() == str(best)
    assert not (folder / 'last').readlink().is_absolute()
    assert not (folder / 'model_best').readlink().is_absolute()


def test_what_others_put_beside_checkpoints_stays(folder):
    checkpoints = CheckpointFolder(folder, 1, False, Progress('net'))
    for name in ('mine', 'epoch-0-best', '.epoch-0.unfinished', 'recovery-0-7'):
        (folder / 'checkpoints' / name).mkdir(parents=True)
    checkpoints.save('epoch-0', write(''), 1.0)
    assert names(folder) == {'epoch-0', 'mine', 'epoch-0-best'}


def test_a_process_that_does_not_write_ranks_alike(folder):
    writer, other = (CheckpointFolder(folder, 2, False, Progress('net')) for _ in range(2))
    for epoch, metric in enumerate([1.0, 3.0, 2.0]):
        writer.save(f'epoch-{epoch}', write(''), metric, milestone=epoch == 0)
        other.save(f'epoch-{epoch}', None, metric, milestone=epoch == 0)
    assert other.progress == writer.progress
    assert other.progress.ranking == [('epoch-1', 3.0), ('epoch-2', 2.0)]
    assert names(folder) == {'epoch-0', 'epoch-1', 'epoch-2'}


def test_a_failed_write_leaves_everything_as_it_was(folder, monkeypatch):
    checkpoints = CheckpointFolder(folder, 1, False, Progress('net'))
    checkpoints.save('epoch-0', write('first'), 1.0)

    def fail(path):
        (path / 'half').write_text('half')
        raise OSError('no space')

    with monkeypatch.context() as patch:
        patch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=100))
        with pytest.raises(DataError, match=r'cannot be written \(no space left on the disk\)'):
            checkpoints.save('epoch-1', fail, 2.0)
    assert names(folder) == {'epoch-0'}, 'what is half there takes no space'
    with pytest.raises(DataError, match=r'cannot be written \(no space\); earlier ones are whole'):
        checkpoints.save('epoch-1', fail, 2.0)
    assert (folder / 'last').readlink().name == 'epoch-0'
    assert (folder / 'model_best' / 'weights').read_text() == 'first'
    # what a crash leaves behind is swept away by the next one
    checkpoints = CheckpointFolder(folder, 1, False, read_progress(find_checkpoint(folder), 'net'))
    checkpoints.save('epoch-1', write('second'), 2.0)
    assert names(folder) == {'epoch-1'}


def test_a_checkpoint_can_be_written_again(folder):
    checkpoints = CheckpointFolder(folder, 1, False, Progress('net'))
    checkpoints.save('epoch-0', write('first'), 1.0)
    checkpoints.save('epoch-0', write('second'), 0.5)
    assert (folder / 'model_best' / 'weights').read_text() == 'second'
    assert checkpoints.progress.ranking == [('epoch-0', 0.5)]


def test_progress_comes_back_as_it_was(folder):
    progress = Progress('net', completed_epochs=3, num_updates=21)
    CheckpointFolder(folder, 2, False, progress).save('epoch-2', write(''), 1.5, milestone=True)
    checkpoint = find_checkpoint(folder)
    assert checkpoint == (folder / 'checkpoints' / 'epoch-2').resolve()
    assert run_folder_of(checkpoint) == folder.resolve()
    assert find_checkpoint(checkpoint) == checkpoint
    assert find_checkpoint(folder / 'nowhere') is None
    assert read_progress(checkpoint, 'net') == progress
    with pytest.raises(DataError, match="of the architecture 'net', not 'other': see --model"):
        read_progress(checkpoint, 'other')
    assert json.loads((checkpoint / 'state.json').read_text())['milestones'] == ['epoch-2']


def test_only_checkpoints_that_are_there_are_ranked(folder):
    progress = Progress('net', ranking=[('epoch-7', 9.0), ('epoch-0', 1.0)], milestones=['epoch-5'])
    CheckpointFolder(folder, 2, False, Progress('net')).save('epoch-0', write(''), 1.0)
    checkpoints = CheckpointFolder(folder, 2, False, progress)
    assert checkpoints.progress.ranking == [('epoch-0', 1.0)]
    assert checkpoints.progress.milestones == []
