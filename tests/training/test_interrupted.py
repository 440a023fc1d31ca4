"""A run that is interrupted inside an epoch goes on as if nothing had happened."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from interruptions import interrupted
from running import (
    SMALL,
    checkpoints,
    contents,
    differences,
    failure,
    result,
    run_differences,
    summary,
    train,
)

from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.train import main
from timm_hnc.training import checkpoint_interval

AUGMENTED = ['--aa', 'rand-m5-mstd0.5-inc1', '--reprob', 0.3, '--drop', 0.1, '--lr', 0.05]


@pytest.fixture(scope='module')
def undisturbed(images, tmp_path_factory):
    argv = ['--data-dir', images, *SMALL, *AUGMENTED, '--epochs', 3, '--output', tmp_path_factory.mktemp('runs')]
    return train(*argv, '--experiment', 'whole')


@pytest.mark.parametrize(
    'extra',
    [
        '--hnc mse --hnc-weight auto:0.2 --warmup-epochs 0 --model-ema --model-ema-decay 0.9 --mixup 0.3',
        '--workers 1 --opt adamw --mixup 0.3 --cutmix 0.5 --mixup-mode elem --model-ema --model-ema-warmup',
        '--grad-accum-steps 2 --sched-on-updates --warmup-epochs 1 --no-prefetcher --mixup 0.3 --clip-grad 1'
        ' --map-loss separability',
        '--label-noise symmetric:0.2 --hnc kd --hnc-start-epoch 1 --loss anchor --drop-path 0.2',
        '--loss center --train-img-sizes 24 32 --opt lookahead_sgd',
        '--aug-splits 2 --jsd-loss --split-bn --sched plateau --patience-epochs 0',
        '--model-dtype bfloat16 --model-ema --model-ema-decay 0.9 --img-size 16',
        '--opt adahessian --lr 0.01 --sched tanh --warmup-epochs 0 --img-size 16',
    ],
    ids=[
        'hnc-ema',
        'workers',
        'accumulation',
        'label-noise-anchor',
        'center-sizes-lookahead',
        'augmix-plateau',
        'bf16',
        'adahessian-tanh',
    ],
)
def test_killed_twice_inside_epochs_is_not_killed(options, at_update, extra):
    argv = [*AUGMENTED, *extra.split(), '--epochs', 2, '--checkpoint-interval', 2]
    whole = train(*options('whole', *argv))
    parts = options('parts', *argv)
    last = 4 if 'accum' in extra else 7
    interrupted(at_update, parts, 0, last)
    interrupted(at_update, [*parts, '--resume', 'auto'], 1, 3)
    folder = train(*parts, '--resume', 'auto')
    assert run_differences(folder, whole) == []
    assert result(folder)['final'] == result(whole)['final']
    assert checkpoints(folder) == {'epoch-0', 'epoch-1'}


def test_data_in_memory_goes_on_exactly(options, at_update):
    argv = ['--data-in-memory', '--train-crop-mode', 'pad', '--color-jitter', 0, '--reprob', 0.3, '--mixup', 0.3]
    argv += ['--epochs', 2, '--checkpoint-interval', 2, '--lr', 0.05, '--hnc', 'mse']
    whole = train(*options('whole', *argv))
    interrupted(at_update, options('parts', *argv), 1, 3)
    folder = train(*options('parts', *argv, '--resume', 'auto', '--workers', 1))
    assert run_differences(folder, whole) == []
    assert result(folder)['final'] == result(whole)['final']


def test_a_weight_that_is_measured_anew_inside_an_epoch_settles_with_the_next(options, at_update, caplog):
    argv = ['--epochs', 3, '--checkpoint-interval', 1, '--warmup-epochs', 0, '--hnc-weight', 'auto', '--hnc']
    interrupted(at_update, options('run', *argv, 'mse'), 1, 3)
    interrupted(at_update, options('run', *argv, 'kd', '--resume', 'auto'), 1, 6)
    train(*options('run', *argv, 'kd', '--resume', 'auto'))
    assert re.findall(r'Weight of HNC: \S+, (\w+)', caplog.text) == ['settled', 'following', 'settled']
    assert caplog.text.count('is measured anew: --hnc mse -> kd.') == 1


def test_a_checkpoint_inside_an_epoch_says_where_it_stands(options, at_update):
    argv = options('run', '--epochs', 2, '--recovery-interval', 3)
    interrupted(at_update, argv, 1, 5)
    folder = argv[argv.index('--output') + 1] / 'run'
    assert (folder / 'last').readlink().name == 'recovery-1-3'
    assert checkpoints(folder) == {'epoch-0', 'recovery-1-3'}
    state = json.loads((folder / 'last' / 'state.json').read_text())
    assert (state['completed_epochs'], state['updates_in_epoch'], state['num_updates']) == (1, 3, 10)
    assert (folder / 'model_best').readlink().parts[1] == 'epoch-0'
    train(*argv, '--resume', 'auto')
    # it goes when the epoch's own is there
    assert checkpoints(folder) == {'epoch-0', 'epoch-1'}


def test_streams_begin_their_epoch_anew_and_say_so(shards, tmp_path, at_update, caplog):
    argv = ['--dataset', 'wds/x', '--data-dir', shards, *SMALL, '--checkpoint-interval', 2]
    argv += ['--output', tmp_path, '--experiment', 'run', '--epochs', 2]
    interrupted(at_update, argv, 1, 4)
    folder = train(*argv, '--resume', 'auto')
    assert 'Epoch 1 begins anew: this data cannot be read from its middle.' in caplog.text
    assert [row['epoch'] for row in summary(folder)] == [0, 1]


@pytest.mark.parametrize(
    ('change', 'what'),
    [
        ('-b 9', 'updates an epoch 7 -> 6, images an update 8 -> 9'),
        ('fewer images', 'training images 59 -> 58'),
        ('another class', 'classes 3 -> 4'),
    ],
)
def test_other_images_inside_an_epoch_are_refused(images, options, tmp_path, at_update, capsys, caplog, change, what):
    argv = options('run', '--epochs', 3, '--checkpoint-interval', 2, '--num-classes', 4)
    interrupted(at_update, argv, 1, 5)
    folder = tmp_path / 'run'
    before = contents(folder)
    again = [*argv, *(change.split() if change.startswith('-b') else [])]
    if not change.startswith('-b'):
        other = shutil.copytree(images, tmp_path / 'images')
        moved = other / 'train' / 'red' / 'red-03.png'
        if change == 'fewer images':
            moved.unlink()
        else:
            for split in ('train', 'validation'):
                (other / split / 'yellow').mkdir()
                shutil.copy(other / split / 'red' / 'red-03.png', other / split / 'yellow')
                (other / split / 'red' / 'red-03.png').unlink()
        again += ['--data-dir', other]
    code, line = failure(capsys, 'train', *again, '--resume', 'auto')
    assert code == 1
    assert line == (
        f"checkpoint '{folder}/checkpoints/recovery-1-4' stands inside epoch 1, which would go on with other images "
        f"than were meant ({what}): bring data and options back, or go on from an epoch's end with --resume "
        f'{folder}/checkpoints/epoch-0.'
    )
    assert contents(folder) == before
    train(*again, '--resume', folder / 'checkpoints' / 'epoch-0', '--stop-epoch', 2)
    assert f'{what}; no longer exact from here on.' in caplog.text
    assert [row['epoch'] for row in summary(folder)] == [0, 1]


@pytest.mark.parametrize(
    ('number', 'code', 'update'),  # inside an epoch, and at its end
    [(signal.SIGTERM, 0, 4), (signal.SIGINT, 130, 4), (signal.SIGUSR1, 0, 4), (signal.SIGTERM, 0, 7)],
)
def test_a_signal_saves_and_says_how_to_go_on(options, undisturbed, at_update, capsys, number, code, update):
    before = signal.getsignal(number)
    argv = [str(word) for word in options('parts', *AUGMENTED, '--epochs', 3)]
    at_update(1, update - 1, lambda: os.kill(os.getpid(), number))
    assert run_command(main, argv) == code
    assert signal.getsignal(number) is before
    folder = Path(argv[argv.index('--output') + 1]) / 'parts'
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f'Stopped by {number.name} in epoch 1, update {update}. It is saved; to go on: '
        f'train.py -c {folder}/args.yaml --resume {folder}'
    )
    assert (folder / 'last').readlink().name == f'recovery-1-{update}'
    at_update.undo()
    if number == signal.SIGTERM:
        train(*line.split('train.py ')[1].split())
        assert run_differences(folder, undisturbed) == []


def test_minutes_are_counted_from_the_last_checkpoint(monkeypatch):
    moments = iter([1000.0, 1119.0, 1120.0, 1120.0, 1121.0, 1239.0, 1240.0, 1240.0])
    monkeypatch.setattr(checkpoint_interval.time, 'monotonic', lambda: next(moments))
    interval = checkpoint_interval.CheckpointInterval('2m')
    assert [interval.passed() for _ in range(5)] == [False, True, False, False, True]
    assert not any(interval.after(update) for update in range(1, 20))


def test_minutes_between_checkpoints(options, at_update):
    argv = options('run', '--epochs', 1, '--checkpoint-interval', '0.0001m')  # 6 ms
    interrupted(at_update, argv, 0, 4)
    folder = argv[argv.index('--output') + 1] / 'run'
    assert (folder / 'last').readlink().name == 'recovery-0-3'


def test_the_data_may_not_depend_on_the_number_of_workers(options):
    """Random numbers follow from a sample's place, whichever process reads it."""
    folders = [
        train(*options(f'workers-{n}', *AUGMENTED, '--epochs', 2, '--mixup', 0.3, '--workers', n)) for n in (0, 3)
    ]
    assert differences(*map(summary, folders)) == []
