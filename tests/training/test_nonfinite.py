"""Losses and gradients that are not finite never reach the weights."""

import json
import logging
import math
import re
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from running import SMALL, failure, result, summary, train, training_state

import timm_hnc.training.epoch
from timm_hnc.checkpoints.checkpoints import find_checkpoint
from timm_hnc.errors import DataError
from timm_hnc.training.nonfinite import bad_gradient, leave_out
from timm_hnc.training.update_flags import Notice, Notices


@pytest.fixture
def options(images, tmp_path):
    def build(*argv):
        return [
            *('--data-dir', images, *SMALL, '--output', tmp_path, '--experiment', 'run'),
            *('--lr', 0.05, '--epochs', 2, *argv),
        ]

    return build


@pytest.fixture
def spoil(monkeypatch):
    """Put a value into batches of the second epoch."""
    original = timm_hnc.training.epoch._steps

    def install(batches, value=math.nan):
        def steps(run, epoch, first):
            for step in original(run, epoch, first):
                if epoch == 1 and step.index in batches:
                    step.input[0, 0, 0, 0] = value
                yield step

        monkeypatch.setattr(timm_hnc.training.epoch, '_steps', steps)

    return install


@pytest.mark.parametrize('at_once', [True, False], ids=['before the update', 'one update later'])
def test_stop_names_the_batch_and_its_samples_and_keeps_the_last_good(options, spoil, capsys, monkeypatch, at_once):
    """Accelerators read the numbers one update later."""
    made = Notices.__init__

    def init(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self.at_once = at_once

    monkeypatch.setattr(Notices, '__init__', init)
    spoil({4})
    argv = options('--checkpoint-interval', 1)
    code, message = failure(capsys, 'train', *argv)
    folder = argv[argv.index('--output') + 1] / 'run'
    assert code == 1
    start, _, rest = message.partition(' (samples ')
    assert start == 'the loss is not finite in epoch 1, batch 4'
    samples, _, remedy = rest.partition('): ')
    samples = [int(each) for each in samples.split(', ')]
    assert len(samples) == len(set(samples)) == 8
    assert max(samples) < 59
    assert remedy.startswith('nothing of it is saved, and earlier checkpoints are whole. Lower --lr')
    assert find_checkpoint(folder).name == 'recovery-1-4'
    assert all(tensor.isfinite().all() for tensor in training_state(folder)['model'].values())


def test_a_learning_rate_that_is_too_high(options, capsys, monkeypatch):
    before, finished = [*logging.getLogger('timm.data.dataset').filters], []
    monkeypatch.setattr('accelerate.tracking.TensorBoardTracker.finish', lambda tracker: finished.append(tracker))
    code, message = failure(capsys, 'train', *options('--lr', '1e29', '--warmup-epochs', 0, '--log-tensorboard'))
    assert logging.getLogger('timm.data.dataset').filters == before
    assert len(finished) == 1
    assert code == 1
    assert 'is not finite in epoch 0, batch ' in message


def test_windows_of_accumulated_batches(options, spoil, capsys):
    spoil({4})
    _, message = failure(capsys, 'train', *options('--grad-accum-steps', 2))
    assert 'in epoch 1, batches 4 to 5 (samples ' in message
    assert len(message.partition('(samples ')[2].partition(')')[0].split(', ')) == 16


@pytest.mark.parametrize('extra', [[], ['--grad-accum-steps', 2, '--model-ema', '--opt', 'adamw']])
def test_skip_leaves_the_update_out(options, spoil, caplog, extra):
    spoil({4})
    folder = train(*options('--on-nonfinite', 'skip', '--hnc', 'mse', *extra))
    assert result(folder)['skipped_updates'] == 1
    assert json.loads((folder / 'last' / 'state.json').read_text())['skipped_in_a_row'] == 0
    assert 'the update is left out' in caplog.text
    state = training_state(folder)
    for part in set(state) & {'model', 'model_ema'}:
        assert all(tensor.isfinite().all() for tensor in state[part].values())
    assert all(math.isfinite(value) for row in summary(folder) for value in row.values())


def test_the_rate_goes_by_the_place_in_the_run(options, spoil, caplog):
    argv = ['--on-nonfinite', 'skip', '--sched-on-updates', '--log-interval', 1]
    train(*options(*argv))
    rates = re.findall(r'  lr (\S+)', caplog.text)
    caplog.clear()
    spoil({4, 6})
    folder = train(*options(*argv, '--experiment', 'spoiled')).with_name('spoiled')
    assert json.loads((folder / 'last' / 'state.json').read_text())['skipped_in_a_row'] == 1
    assert re.findall(r'  lr (\S+)', caplog.text) == rates
    assert len(set(rates)) > 8


def test_skip_has_an_end(options, spoil, capsys):
    spoil(range(100), math.inf)
    code, message = failure(capsys, 'train', *options('--on-nonfinite', 'skip', '-b', 2))
    assert code == 1
    assert 'in epoch 1, batch 20' in message
    assert 'as in the 20 updates before' in message


def test_an_epoch_of_which_nothing_is_left(options, spoil, capsys):
    spoil(range(100))
    code, message = failure(capsys, 'train', *options('--on-nonfinite', 'skip'))
    assert code == 1
    assert message.startswith('every update of epoch 1 was left out: losses or gradients are not finite; ')
    assert 'Lower --lr' in message


@pytest.mark.parametrize(('value', 'bad'), [(100.0, False), (math.inf, True), (math.nan, True)])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_large_gradients_are_finite(dtype, value, bad):
    """The norm of a million hundreds is more than float16 has."""
    weight = torch.zeros(1000, 1000, dtype=dtype, requires_grad=True)
    weight.grad = torch.full_like(weight, 100.0)
    weight.grad[3, 4] = value
    run = SimpleNamespace(accelerator=SimpleNamespace(scaler=None), optimizer=torch.optim.SGD([weight]))
    assert bool(bad_gradient(run)) is bad


def test_only_the_process_with_the_loss_names_its_samples():
    Accelerator(cpu=True)  # whose processes tell each other
    options = SimpleNamespace(run=SimpleNamespace(on_nonfinite='stop'))
    run = SimpleNamespace(data=SimpleNamespace(seeded=SimpleNamespace(samples=lambda batch: [7])), options=options)
    for bad_loss, here, named in ((True, False, False), (True, True, True), (False, False, True)):
        notice = Notice(range(1), bad_loss, True, here, 0, False)
        with pytest.raises(DataError) as error:
            leave_out(run, notice, 0)
        assert ('(samples 7)' in str(error.value)) is named


def test_a_notice_is_read_one_update_later_where_reading_waits():
    notices = Notices(Accelerator(cpu=True))
    notices.at_once = False
    good, bad = torch.tensor(False), torch.tensor(True)
    assert notices.exchange(range(1), good, bad, 0, False) is None
    assert notices.exchange(range(1, 2), good, good, 15, True) == Notice(range(1), False, True, False, 0, False)
    assert notices.settle() == Notice(range(1, 2), False, False, False, 15, True)
    assert notices.settle() is None
