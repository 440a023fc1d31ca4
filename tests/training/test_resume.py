"""Going on with a run: exactly where it stopped, or not at all and nothing harmed."""

import json
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
import torch
from interruptions import interrupted
from running import (
    SMALL,
    WITH_REPORT,
    arguments,
    checkpoints,
    contents,
    differences,
    equal_tensors,
    failure,
    result,
    run_differences,
    summary,
    train,
    training_state,
)

from timm_hnc.files.manifest import write_manifest
from timm_hnc.training.averages import Averages
from timm_hnc.training.outputs import state

AUGMENTED = ['--aa', 'rand-m5-mstd0.5', '--reprob', 0.3, '--mixup', 0.3, '--drop', 0.1, '--lr', 0.05]


@pytest.mark.parametrize(
    ('how', 'extra'),
    [
        ('auto', ['--hnc', 'mse', '--model-ema', '--model-ema-decay', 0.9]),
        ('run folder', ['--opt', 'adamw', '--sched', 'plateau', '--patience-epochs', 0, '--lr-noise', 0.0, 0.9]),
        ('run folder', ['--sched-on-updates', '--warmup-epochs', 1, '--grad-accum-steps', 2, '--no-prefetcher']),
    ],
    ids=['hnc-ema', 'adamw-plateau', 'updates-accumulation'],
)
def test_two_epochs_and_one_more_are_three(options, tmp_path, extra, how):
    whole = train(*options('whole', *AUGMENTED, *extra, '--epochs', 3))
    parts = train(*options('parts', *AUGMENTED, *extra, '--epochs', 3, '--stop-epoch', 2))
    assert len(summary(parts)) == 2
    argv = options('parts', *AUGMENTED, *extra, '--epochs', 3)
    if how == 'auto':
        train(*argv, '--resume', 'auto')
    else:
        at = argv.index('--experiment')
        train(*argv[:at], *argv[at + 2 :], '--resume', parts)
    assert run_differences(parts, whole) == []
    assert result(parts)['final'] == result(whole)['final']


def test_what_a_kill_at_the_end_left_out_is_made_up_for(images, tmp_path):
    argv = ['--data-dir', images, *WITH_REPORT, '--output', tmp_path, '--experiment', 'run']
    folder = train(*argv)
    before = result(folder)
    for lost in ('result.json', 'report.html'):
        (folder / lost).unlink()
        train(*argv, '--resume', 'auto')
        assert (folder / 'report.html').is_file()
        assert {**result(folder), 'seconds': 0, 'command': ''} == {**before, 'seconds': 0, 'command': ''}


def test_an_epoch_that_begins_anew_counts_none_of_its_images_twice(options, tmp_path):
    argv = options('run', '--epochs', 2, '--lr', 1e-9, '--no-aug', '--checkpoint-interval', 3)
    with mock.patch('timm_hnc.training.fit._add_row', side_effect=KeyboardInterrupt), suppress(KeyboardInterrupt):
        train(*argv)
    assert (tmp_path / 'run' / 'last').resolve().name.startswith('recovery-0-')
    counts = []
    compute = Averages.compute
    with mock.patch.object(Averages, 'compute', lambda own, *args: counts.append(own.count) or compute(own, *args)):
        train(*argv, '--resume', 'auto', '--start-epoch', 0)
    assert counts == [56, 56]  # of 59 images, in batches of 8


def test_auto_starts_anew_where_there_is_no_run_yet(options):
    folder = train(*options('new', '--resume', 'auto'))
    assert result(folder)['epochs'] == 1
    # and where a run was killed before its first checkpoint
    shutil.rmtree(folder / 'checkpoints')
    train(*options('new', '--resume', 'auto', '--epochs', 2))
    assert [row['epoch'] for row in summary(folder)] == [0, 1]


def test_a_checkpoint_of_the_run_can_be_gone_back_to(options, caplog):
    folder = train(*options('run', '--epochs', 3, '--lr', 0.05))
    rows = (folder / 'summary.csv').read_text()
    weights = training_state(folder)
    train(*options('run', '--epochs', 3, '--lr', 0.05, '--resume', folder / 'checkpoints' / 'epoch-0'))
    assert "epoch-0' with epoch 1, update 0." in caplog.text
    assert (folder / 'summary.csv').read_text() == rows
    assert differences(training_state(folder), weights) == []


def test_a_run_that_went_back_and_was_killed_goes_on_from_there(options, at_update, caplog):
    folder = train(*options('run', '--epochs', 3, '--lr', 0.05))
    argv = options('run', '--epochs', 3, '--lr', 0.01)
    interrupted(at_update, [*argv, '--resume', folder / 'checkpoints' / 'epoch-0'], 1, 3)
    train(*argv, '--resume', 'auto')
    assert caplog.text.count("checkpoints/epoch-0' with epoch 1, update 0.") == 2
    assert [row['epoch'] for row in summary(folder)] == [0, 1, 2]


def test_copies_of_checkpoints_stay(options):
    folder = train(*options('run', '--checkpoint-hist', 1))
    for name in ('mine', 'epoch-0-mine'):
        shutil.copytree(folder / 'checkpoints' / 'epoch-0', folder / 'checkpoints' / name)
    train(*options('run', '--epochs', 4, '--stop-epoch', 3, '--checkpoint-hist', 1, '--resume', 'auto'))
    kept = {(folder / link).resolve().relative_to(folder.resolve()).parts[1] for link in ('last', 'model_best')}
    assert checkpoints(folder) == kept | {'mine', 'epoch-0-mine'}


def test_the_best_weights_are_those_that_were_saved(options, capsys):
    folder = train(*options('run', '--epochs', 2, '--stop-epoch', 1))
    claim(folder / 'last', **{'epoch-0': 101.0})
    path = folder / 'model_best' / 'model.safetensors'
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 64]) + content[-8:])
    other = shutil.copytree(folder / 'checkpoints' / 'epoch-0', folder / 'checkpoints' / 'copy')
    write_manifest(other)
    code, message = failure(capsys, 'train', *options('run', '--epochs', 2, '--resume', other))
    assert code == 1
    assert "model.safetensors' is damaged: it is not what was written. Remove '" in message
    shutil.rmtree(folder / 'checkpoints' / 'epoch-0')
    train(*options('run', '--epochs', 2, '--resume', 'auto'))
    assert result(folder)['best_checkpoint'] == 'epoch-1'


def test_an_epoch_that_begins_anew_begins_with_the_first_rate(options, at_update):
    rates = []
    argv = ['--epochs', 2, '--lr', 0.05, '--sched-on-updates', '--use-multi-epochs-loader', '--recovery-interval', 3]
    interrupted(at_update, options('part', *argv), 0, 5)
    original = state.start_schedule
    note = lambda run: original(run) or rates.append([group['lr'] for group in run.optimizer.param_groups])  # noqa: E731
    for name in ('part', 'fresh'):
        with mock.patch('timm_hnc.training.run.start_schedule', note):
            train(*options(name, *argv, '--resume', 'auto'))
    assert rates[0] == rates[1]


def test_a_run_goes_on_in_another_folder(options):
    argv = ['--epochs', 3, '--lr', 0.05, '--save-epochs', 1]
    first = train(*options('first', *argv, '--stop-epoch', 2))
    before = contents(first)
    second = train(*options('second', *argv, '--resume', first))
    whole = train(*options('whole', *argv))
    assert contents(first) == before
    assert summary(second) == summary(whole)[2:]
    assert differences(training_state(second), training_state(whole)) == []
    assert checkpoints(second) == {'epoch-2'}


def claim(checkpoint, **metrics):
    """Let a checkpoint say that checkpoints scored this."""
    path = checkpoint / 'state.json'
    state = json.loads(path.read_text())
    state['ranking'] = sorted(metrics.items(), key=lambda entry: -entry[1])
    path.write_text(json.dumps(state))
    write_manifest(checkpoint)


def test_the_best_in_another_folder_is_one_of_its_own(options):
    first = train(*options('first', '--epochs', 2, '--stop-epoch', 1))
    claim(first / 'last', **{'epoch-0': 101.0})
    second = train(*options('second', '--epochs', 2, '--resume', first))
    assert result(second)['best_checkpoint'] == 'epoch-1'
    assert (second / 'model_best').readlink().parts[1] == 'epoch-1'


def test_the_best_after_going_back_is_the_best_of_what_is_kept(options):
    folder = train(*options('run', '--epochs', 3))
    first = folder / 'checkpoints' / 'epoch-0'
    claim(first, **{'epoch-0': 101.0})
    (folder / 'model_best').unlink()
    (folder / 'model_best').symlink_to('checkpoints/epoch-2/model')
    train(*options('run', '--epochs', 3, '--resume', first))
    assert (folder / 'model_best').readlink().parts[1] == 'epoch-0'
    assert result(folder)['best_checkpoint'] == 'epoch-0'


def test_no_resume_opt_starts_with_a_fresh_optimizer(options, tmp_path):
    folder = train(*options('run', '--epochs', 2, '--stop-epoch', 1, '--lr', 0.05))
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy, symlinks=True)
    path = copy / 'checkpoints' / 'epoch-0' / 'training_state.pt'
    state = torch.load(path, weights_only=True)
    for entry in state['optimizer']['state'].values():
        entry['momentum_buffer'].fill_(1e3)
    torch.save(state, path)
    write_manifest(path.parent)
    train(*options('copy', '--epochs', 2, '--lr', 0.05, '--resume', 'auto', '--no-resume-opt'))
    train(*options('run', '--epochs', 2, '--lr', 0.05, '--resume', 'auto', '--no-resume-opt'))
    assert equal_tensors(training_state(copy)['model'], training_state(folder)['model'])


def test_start_epoch_overrides_where_a_checkpoint_stopped(options, caplog):
    folder = train(*options('run', '--epochs', 4, '--lr', 0.05, '--sched', 'step', '--decay-epochs', 1))
    rates = [row['lr'] for row in summary(folder)]
    argv = options('run', '--epochs', 4, '--lr', 0.05, '--sched', 'step', '--decay-epochs', 1)
    train(*argv, '--resume', 'auto', '--start-epoch', 2)
    assert 'is complete' not in caplog.text
    assert [row['epoch'] for row in summary(folder)] == [0, 1, 2, 3]
    assert [row['lr'] for row in summary(folder)] == rates
    fresh = train(*options('fresh', '--epochs', 4, '--start-epoch', 3))
    assert [row['epoch'] for row in summary(fresh)] == [3]


@pytest.mark.parametrize('schedule', ['cosine --sched-on-updates', 'cosine', 'plateau', 'plateau --warmup-epochs 0'])
def test_a_run_that_begins_anew_has_the_first_rate_again(options, schedule, caplog):
    argv = options('run', '--epochs', 2, '--lr', 0.05, '--warmup-epochs', 1, '--sched', *schedule.split())
    folder = train(*argv)
    rate = summary(folder)[0]['lr']
    train(*argv, '--resume', 'auto', '--start-epoch', 0)
    assert 'is complete' not in caplog.text
    assert summary(folder)[0]['lr'] == rate


def test_the_rate_of_a_plateau_goes_on_from_a_start_epoch_where_the_run_stopped(options):
    argv = ['--epochs', 4, '--lr', 0.05, '--warmup-epochs', 0, '--sched', 'plateau', '--patience-epochs', 0]
    whole, part = train(*options('whole', *argv)), train(*options('part', *argv, '--stop-epoch', 3))
    train(*options('part', *argv, '--resume', 'auto', '--start-epoch', 3))
    rates = [row['lr'] for row in summary(whole)]
    assert [row['lr'] for row in summary(part)] == rates
    assert rates[3] < rates[0]


def test_what_lay_behind_a_start_epoch_is_not_gone_on_from(options, caplog):
    folder = train(*options('run', '--epochs', 4, '--save-epochs', 3))
    train(*options('run', '--epochs', 4, '--resume', 'auto', '--start-epoch', 1, '--stop-epoch', 2))
    assert checkpoints(folder) == {'epoch-0', 'epoch-1'}
    train(*options('run', '--epochs', 4, '--resume', 'auto'))
    assert [row['epoch'] for row in summary(folder)] == [0, 1, 2, 3]
    assert 'with epoch 2, update 0.' in caplog.text


def test_a_run_that_is_killed_behind_a_start_epoch_goes_on_there(options, at_update, caplog):
    folder = train(*options('run', '--epochs', 3))
    argv = options('run', '--epochs', 3, '--recovery-interval', 2, '--resume', 'auto')
    interrupted(at_update, [*argv, '--start-epoch', 0], 0, 3)
    assert (folder / 'model_best' / 'model.safetensors').is_file()
    train(*argv)
    assert 'with epoch 0, update' in caplog.text


@pytest.fixture(scope='module')
def trained(images, tmp_path_factory):
    output = tmp_path_factory.mktemp('trained')
    return train('--data-dir', images, *SMALL, '--output', output, '--experiment', 'run', '--lr', 0.05)


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run of one epoch."""
    return shutil.copytree(trained, tmp_path / 'run', symlinks=True)


def test_an_existing_run_folder_is_refused_without_resume(run, options, capsys):
    before = contents(run)
    code, message = failure(capsys, 'train', *options('run'))
    assert code == 2
    assert f"run folder '{run}' exists already: go on with --resume auto" in message
    assert contents(run) == before


def test_a_folder_without_anything_to_go_on_with_is_no_run(tmp_path, options):
    folder = tmp_path / 'ended-early'
    folder.mkdir()
    (folder / 'args.yaml').write_text('epochs: 3')
    assert train(*options(folder.name)) == folder


@pytest.mark.parametrize('name', ['..', '.', 'a/../..'])
def test_a_run_keeps_to_a_folder_of_its_own(tmp_path, options, capsys, name):
    code, message = failure(capsys, 'train', *options(name))
    assert (code, message) == (2, f"--experiment '{name}': expected the name of a folder in that of --output.")
    assert not (tmp_path / 'args.yaml').exists()


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (
            ['--model', 'test_efficientnet', '--model-kwargs'],
            "of the architecture 'test_resnet', not 'test_eff",
        ),
        (['--num-classes', '4'], 'does not fit this run: Error(s) in loading state_dict'),
        (['--model-kwargs', *SMALL[3:6], 'layers=(1,2,1,1)'], 'does not fit this run'),
        (['--opt', 'adamw', '--layer-decay', '0.5'], 'has the state of --opt sgd, with which --opt adamw cannot go on'),
    ],
    ids=['architecture', 'classes', 'layers', 'optimizer'],
)
@pytest.mark.parametrize('how', ['auto', 'folder'])
def test_a_checkpoint_of_another_model_is_refused_and_nothing_harmed(run, options, capsys, argv, message, how):
    before = contents(run)
    code, line = failure(capsys, 'train', *options('run', '--resume', 'auto' if how == 'auto' else run, *argv))
    assert code == 1
    assert message in line
    assert 'checkpoints/epoch-0' in line
    assert contents(run) == before


@pytest.mark.parametrize(
    ('name', 'damage'),
    [
        ('training_state.pt', lambda path: torch.save([1, 2], path)),
        ('training_state.pt', lambda path: torch.save({'weights': {}}, path)),
        ('training_state.pt', lambda path: torch.save({'model': 3, 'optimizer': 4}, path)),
        ('training_state.pt', lambda path: path.write_bytes(pickle.dumps(Path('/')))),
        ('state.json', lambda path: path.write_text('[1]')),
        ('state.json', lambda path: path.write_text('{"architecture": "test_resnet"}')),
        ('state.json', lambda path: path.write_text('{"architecture": "test_resnet", "ranking": [1]}')),
        ('state.json', lambda path: path.write_text('{"architecture": "test_resnet", "ranking": [], "more": 1}')),
        ('state.json', lambda path: path.write_bytes(b'\xff\xfe')),
    ],
)
def test_a_checkpoint_of_something_else_is_named(run, options, capsys, name, damage):
    """Its manifest is right, what stands in it is not."""
    checkpoint = run / 'checkpoints' / 'epoch-0'
    damage(checkpoint / name)
    write_manifest(checkpoint)
    before = contents(run)
    code, message = failure(capsys, 'train', *options('run', '--resume', 'auto', '--epochs', 2))
    assert code == 1
    assert 'checkpoints/epoch-0' in message
    assert name in message or 'does not fit this run' in message
    assert contents(run) == before


@pytest.mark.parametrize('name', ['model.safetensors', 'config.json'])
def test_damaged_weights_are_not_evaluated(run, images, capsys, name):
    path = run / 'model_best' / name
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    for place in (run, run / 'model_best'):
        code, message = failure(capsys, 'validate', '--checkpoint', place, '--data-dir', images, '--device', 'cpu')
        assert code == 1
        assert f"model/{name}' is damaged: it is not what was written." in message


def test_what_is_no_checkpoint_is_refused(run, options, tmp_path, capsys):
    weights = run / 'model_best' / 'model.safetensors'
    for path in (tmp_path / 'nowhere', weights, run / 'checkpoints'):
        code, message = failure(capsys, 'train', *options('other', '--resume', path))
        assert code == 1
        assert f"--resume '{path}' is no run folder and no checkpoint of one" in message
        assert not (tmp_path / 'other').exists()
    code, message = failure(capsys, 'train', '--data-dir', tmp_path, *SMALL, '--resume', 'auto')
    assert (code, message) == (2, '--resume auto: needs --experiment, the run to go on with.')


def test_options_of_the_resumed_run_are_those_now_in_force(run, options):
    train(*options('run', '--lr', 0.01, '--epochs', 2, '--resume', 'auto'))
    assert (arguments(run)['lr'], arguments(run)['epochs']) == (0.01, 2)
