"""A resumed run says what it is trained with that it was not trained with before."""

import json
import re
import shutil
from unittest import mock

import pytest
from interruptions import interrupted
from running import (
    SMALL,
    arguments,
    checkpoints,
    contents,
    failure,
    forget_run,
    main_of,
    result,
    summary,
    train,
    training_state,
)

from timm_hnc.hub.publish import bundled_run

LINE = re.compile('Going on with other options than before: (.*)')


@pytest.fixture(scope='module')
def begun(images, tmp_path_factory):
    """One of three epochs."""
    output = tmp_path_factory.mktemp('begun')
    argv = ['--data-dir', images, *SMALL, '--epochs', 3, '--output', output, '--experiment', 'run']
    return train(*argv, '--stop-epoch', 1)


@pytest.fixture
def resume(begun, images, tmp_path, caplog):
    """Go on with a copy of it; the line that names what differs."""
    shutil.copytree(begun, tmp_path / 'run', symlinks=True)

    def go_on(*argv, how='auto'):
        caplog.clear()
        options = ['--data-dir', images, *SMALL, '--epochs', 3, '--stop-epoch', 2]
        train(*options, '--output', tmp_path, '--experiment', 'run', '--resume', how, *argv)
        lines = LINE.findall(caplog.text)
        assert len(lines) <= 1
        return lines[0] if lines else None

    go_on.folder = tmp_path / 'run'
    return go_on


def test_another_optimizer_needs_a_fresh_state(resume, images, tmp_path, capsys):
    argv = ['--data-dir', images, *SMALL, '--epochs', 3, '--resume', 'auto', '--output', tmp_path]
    argv += ['--experiment', 'run']
    before = contents(resume.folder)
    for other in ('lion', 'adamw', 'rmsprop'):
        code, line = failure(capsys, 'train', *argv, '--opt', other)
        assert code == 1
        assert line.endswith(
            f'has the state of --opt sgd, with which --opt {other} cannot go on: pass --no-resume-opt, or go on with '
            '--opt sgd.'
        )
    assert contents(resume.folder) == before
    assert '--opt sgd -> momentum' in resume('--opt', 'momentum')  # whose state is the same
    assert training_state(resume.folder)['optimizer']['param_groups'][0]['nesterov'] is False
    assert '--opt momentum -> lion' in resume('--opt', 'lion', '--no-resume-opt', '--stop-epoch', 3)


def test_what_a_new_loss_learns_begins_anew_if_that_is_said(resume, images, tmp_path, capsys):
    argv = ['--data-dir', images, *SMALL, '--epochs', 3, '--resume', 'auto', '--output', tmp_path]
    code, line = failure(capsys, 'train', *argv, '--experiment', 'run', '--loss', 'center')
    assert code == 1
    assert line.endswith(
        'has another --loss than this run, and one of them learns: go on with the loss that it was trained with, or '
        'pass --no-resume-opt, and what is learned begins anew.'
    )
    assert '--loss ce -> center' in resume('--loss', 'center', '--no-resume-opt')
    assert 'loss' in training_state(resume.folder)
    assert failure(capsys, 'train', *argv, '--experiment', 'run')[0] == 1
    assert '--loss center -> ce' in resume('--no-resume-opt', '--stop-epoch', 3)


def test_fewer_epochs_than_there_are(resume):
    resume()
    resume('--stop-epoch', 1)
    found = result(resume.folder)
    assert found['epochs'] == 2
    assert found['train']['loss'] == summary(resume.folder)[1]['train_loss']


def test_shares_of_the_rate_by_layer_are_those_that_are_asked_for(options):
    first = train(*options('first', '--layer-decay', 0.5))
    train(*options('first', '--epochs', 2, '--layer-decay', 0.9, '--resume', 'auto'))
    fresh = train(*options('fresh', '--layer-decay', 0.9))
    groups = (training_state(folder)['optimizer']['param_groups'] for folder in (first, fresh))
    found, expected = ([group['lr_scale'] for group in each] for each in groups)
    assert found == expected


def test_the_best_is_that_by_the_metric_in_force(options):
    argv = ['--lr', 0.05, '--warmup-epochs', 0]
    folder = train(*options('run', *argv, '--epochs', 2, '--eval-metric', 'top5'))
    assert result(folder)['best_metric'] == {'top5': 100}
    train(*options('run', *argv, '--epochs', 4, '--resume', 'auto'))
    rows = [row['eval_top1'] for row in summary(folder)]
    assert result(folder)['best_metric'] == {'top1': max(rows)}
    assert result(folder)['best_checkpoint'] == f'epoch-{rows.index(max(rows))}'
    train(*options('run', *argv, '--epochs', 5, '--resume', 'auto', '--eval-metric', 'loss'))
    rows = [row['eval_loss'] for row in summary(folder)]
    assert result(folder)['best_checkpoint'] == f'epoch-{rows.index(min(rows))}'


def test_the_best_by_another_metric_is_found_where_nothing_is_left_to_train(options):
    folder = train(*options('run', '--lr', 0.05, '--warmup-epochs', 0, '--epochs', 3, '--eval-metric', 'top5'))
    (folder / 'result.json').unlink()  # as if it was killed behind its last checkpoint
    train(*options('run', '--epochs', 3, '--resume', 'auto', '--eval-metric', 'loss'))
    rows = [row['eval_loss'] for row in summary(folder)]
    best = f'epoch-{rows.index(min(rows))}'
    assert best != 'epoch-0'
    assert (folder / 'model_best').resolve().parent.name == best == result(folder)['best_checkpoint']


def test_the_best_stays_until_another_is_found(options, at_update):
    folder = train(*options('run', '--epochs', 2, '--val-split', ''))
    (folder / 'summary.csv').unlink()
    argv = options('run', '--epochs', 3, '--resume', 'auto', '--recovery-interval', 3)
    interrupted(at_update, argv, 2, 4)
    assert (folder / 'model_best' / 'model.safetensors').is_file()
    train(*argv)
    assert result(folder)['best_checkpoint'] == 'epoch-2'


def test_a_picture_of_earlier_weights_goes(options):
    folder = train(*options('run', '--cam-images', 2))
    assert (folder / 'cams' / 'best.png').is_file()
    train(*options('run', '--epochs', 2, '--resume', 'auto'))
    assert not (folder / 'cams' / 'best.png').exists()


def test_classes_that_have_other_numbers_now(resume, images, tmp_path, capsys):
    """Folders number their classes by name: one that is renamed moves the others."""
    other = shutil.copytree(images, tmp_path / 'images')
    for split in ('train', 'validation'):
        (other / split / 'blue').rename(other / split / 'yellow')
    before = contents(resume.folder)
    argv = ['--data-dir', other, *SMALL, '--epochs', 3, '--output', tmp_path, '--experiment', 'run', '--resume', 'auto']
    code, line = failure(capsys, 'train', *argv)
    assert code == 1
    assert "does not fit this data: class 'green' is number 0 in the data but 1 in the model" in line
    assert contents(resume.folder) == before


def parts(folder):
    return json.loads((folder / 'parts.json').read_text())


@pytest.mark.parametrize(
    ('argv', 'line'),
    [
        (['--seed', 7], '--seed 42 -> 7; no longer exact from here on.'),
        (
            ['-b', 16],
            '--batch-size 8 -> 16, --lr 0.003125 -> 0.00625, updates an epoch 7 -> 3, images an update 8 -> 16; '
            'no longer exact from here on.',
        ),
        (['--lr', 0.01], '--lr 0.003125 -> 0.01; no longer exact from here on.'),
        (['--hnc', 'kd'], '--hnc none -> kd, --hnc-weight none -> 0.0065; no longer exact from here on.'),
        (['--img-size', 48], '--img-size 32 -> 48; no longer exact from here on.'),
        (
            ['--model-ema', '--scale', 0.5, 1, '--amp', '--loss', 'bce', '--no-resume-opt'],
            '--loss ce -> bce, --amp off -> on, --scale 0.08 1.0 -> 0.5 1.0, --model-ema off -> on, '
            '--no-resume-opt off -> on; no longer exact from here on.',
        ),
        (['--on-nonfinite', 'skip'], '--on-nonfinite stop -> skip.'),
    ],
    ids=lambda each: str(each[0]) if isinstance(each, list) else '',
)
def test_what_differs_is_named_in_one_line(begun, resume, argv, line):
    before = arguments(begun)
    assert resume(*argv) == line
    first, second = parts(resume.folder)
    assert (first['epoch'], first['changed'], second['epoch'], second['update']) == (0, {}, 1, 0)
    assert second['exact'] == ('no longer' not in line)
    # what the first part was trained with can be read, and is no more than its args.yaml said
    assert (first['options']['seed'], first['options']['lr'], first['options']['hnc']) == (42, 0.003125, 'none')
    said = {name: value for name, value in first['options'].items() if name in before and name != 'loss'}
    assert len(said) > 100
    assert all(before[name] == value for name, value in said.items())
    assert json.loads((resume.folder / 'last' / 'state.json').read_text())['parts'] == parts(resume.folder)


def test_what_does_not_differ_or_matter_is_not_named(resume):
    of_no_matter = ['--log-interval', 3, '--workers', 1, '--checkpoint-hist', 4, '--pin-mem', '--cam-images', 1]
    of_no_matter += ['--log-tensorboard', '--checkpoint-interval', 2]
    resolved_alike = ['--lr', 0.003125, '--loss', 'ce']
    without_effect = ['--model-ema-decay', 0.9, '--amp-dtype', 'bfloat16']
    assert resume(*of_no_matter, *resolved_alike, *without_effect) is None
    assert not (resume.folder / 'parts.json').exists()


@pytest.mark.parametrize(
    'argv',
    [
        ['--opt', 'adamw', '--hnc', 'mse', '--mixup', 0.2, '--model-ema', '--drop-connect', 0.1],
        ['--model-kwargs', 'layers=(1,2,1,1)', '--jsd-loss', '--aug-splits', 2, '--opt-kwargs', 'nesterov=False'],
        ['--amp', '--img-size', 16],
    ],
    ids=['adamw', 'tuple', 'amp'],
)
def test_the_same_command_line_differs_in_nothing(images, tmp_path, caplog, argv):
    argv = ['--data-dir', images, *SMALL, '--epochs', 3, '--output', tmp_path, *argv]
    argv += ['--experiment', 'run', '--resume', 'auto']
    folder = train(*argv, '--stop-epoch', 1)
    train(*argv, '--stop-epoch', 2)
    forget_run()
    main_of('train')(['-c', str(folder / 'args.yaml'), '--resume', str(folder), '--stop-epoch', '3'])
    assert len(summary(folder)) == 3
    assert LINE.findall(caplog.text) == []


def test_settings_that_were_changed_are_in_force(resume, images, tmp_path):
    """The optimizer's state brings those that it was saved with."""
    resume('--weight-decay', 0.5, '--momentum', 0.25, '--opt-kwargs', 'nesterov=False')
    for group in training_state(resume.folder)['optimizer']['param_groups']:
        assert (group['weight_decay'] in (0.5, 0.0), group['momentum'], group['nesterov']) == (True, 0.25, False)
    argv = ['--data-dir', images, *SMALL, '--output', tmp_path, '--experiment', 'flat']
    argv += ['--sched', 'none', '--epochs', 3, '--resume', 'auto']
    folder = train(*argv, '--lr', 0.5, '--stop-epoch', 1)
    train(*argv, '--lr', 0.25, '--stop-epoch', 2)
    train(*argv, '--lr', 0.25)
    assert [row['lr'] for row in summary(folder)] == [0.5, 0.25, 0.25]


def test_figures_stand_under_their_own_names_though_a_resume_has_others(resume):
    resume('--hnc', 'mse')
    rows = summary(resume.folder)
    assert rows[0].keys() < rows[1].keys()
    assert rows[1].keys() - rows[0].keys() == {'train_criterion', 'train_hnc'}
    assert result(resume.folder)['best_metric']['top1'] == max(row['eval_top1'] for row in rows)
    resume('--hnc', 'none', '--stop-epoch', 3)
    assert summary(resume.folder)[:2] == rows
    assert summary(resume.folder)[2].keys() == rows[0].keys()


def test_args_yaml_says_nothing_of_where_an_attempt_began(resume, images, tmp_path):
    """It repeats the run under another name, and goes on with it, however often that was done before."""
    resume('--start-epoch', 0, '--no-resume-opt', how=resume.folder)
    written = arguments(resume.folder)
    assert [written[name] for name in ('resume', 'start_epoch', 'no_resume_opt')] == ['', None, False]
    argv = ['-c', resume.folder / 'args.yaml', '--output', tmp_path]
    again = train(*argv, '--experiment', 'again')
    assert [row['epoch'] for row in summary(again)] == [0, 1]
    train(*argv, '--experiment', 'run', '--resume', resume.folder, '--stop-epoch', 3)
    assert [row['epoch'] for row in summary(resume.folder)] == [0, 1, 2]


def test_a_finished_run_is_not_gone_on_with_elsewhere(begun, images, tmp_path, capsys):
    argv = ['--data-dir', images, *SMALL, '--epochs', 3, '--stop-epoch', 1, '--resume', begun, '--output', tmp_path]
    code, line = failure(capsys, 'train', *argv, '--experiment', 'other')
    assert (code, line.partition(':')[0]) == (2, 'nothing is left to train')
    assert not (tmp_path / 'other' / 'result.json').exists()


def test_weights_of_classes_are_those_of_the_options_in_force(images, tmp_path):
    argv = ['--data-dir', images, *SMALL, '--epochs', 2, '--output', tmp_path, '--experiment', 'run', '--loss']
    train(*argv, 'ce', '--stop-epoch', 1)
    losses = []

    def stop(run, publisher):
        losses.append(run.loss)
        return {}

    train(*argv, 'cb-focal', '--resume', 'auto', '--loss-kwargs', 'beta=0.9')
    with mock.patch('timm_hnc.training.run.fit', stop):
        train(*argv, 'cb-focal', '--resume', 'auto', '--epochs', 3, '--loss-kwargs', 'beta=0')
    assert losses[0].weight.tolist() == [1, 1, 1]


def test_the_patience_of_a_plateau_is_the_one_in_force(images, tmp_path):
    argv = ['--data-dir', images, *SMALL, '--output', tmp_path, '--experiment', 'run']
    argv += ['--sched', 'plateau', '--warmup-epochs', 0, '--epochs', 3, '--resume', 'auto']
    folder = train(*argv, '--patience-epochs', 7, '--stop-epoch', 1)
    train(*argv, '--patience-epochs', 3, '--decay-rate', 0.25, '--stop-epoch', 2)
    state = training_state(folder)['scheduler']
    assert (state['patience'], state['factor']) == (3, 0.25)


def test_fewer_updates_an_epoch_do_not_make_a_checkpoint_older(resume):
    resume('-b', 32)
    assert resume('-b', 32, '--stop-epoch', 3) is None
    assert [row['epoch'] for row in summary(resume.folder)] == [0, 1, 2]
    assert checkpoints(resume.folder) == {'epoch-0', 'epoch-1', 'epoch-2'}
    assert [part['epoch'] for part in parts(resume.folder)] == [0, 1]


def test_the_parts_are_those_of_the_checkpoint(resume):
    """A run that goes back to where it was not changed yet, was not."""
    assert resume('--lr', 0.01).startswith('--lr 0.003125 -> 0.01;')
    assert resume('--stop-epoch', 3, '--lr', 0.02).startswith('--lr 0.01 -> 0.02;')
    assert [part['options']['lr'] for part in parts(resume.folder)] == [0.003125, 0.01, 0.02]
    first = resume.folder / 'checkpoints' / 'epoch-0'
    assert resume(how=first) is None
    assert not (resume.folder / 'parts.json').exists()


def test_other_data_is_told(resume, images, tmp_path):
    other = tmp_path / 'images'
    shutil.copytree(images, other)
    for path in sorted((other / 'train' / 'red').iterdir())[:15]:
        path.unlink()
    assert resume('--data-dir', other) == (
        f'--data-dir {images} -> {other}, training images 59 -> 44, updates an epoch 7 -> 5; '
        'no longer exact from here on.'
    )


def test_a_complete_run_stays_as_it_is(resume, capsys, caplog):
    resume('--lr', 0.01)
    before, figures = contents(resume.folder), result(resume.folder)
    links = [(resume.folder / name).readlink() for name in ('last', 'model_best')]
    capsys.readouterr()
    assert resume('--lr', 0.02) is None
    assert f"Run '{resume.folder}' is complete, 2 of 2 epochs: its files stay as they are." in caplog.text
    assert json.loads(capsys.readouterr().out.partition('--result\n')[2]) == figures
    assert contents(resume.folder) == before
    assert [(resume.folder / name).readlink() for name in ('last', 'model_best')] == links
    # one that was killed before its figures were written is not
    (resume.folder / 'result.json').unlink()
    resume('--lr', 0.01)
    assert result(resume.folder)['final'] == figures['final']


def test_report_and_card_tell_of_the_change(resume, images, tmp_path):
    secret = tmp_path / 'secret'
    secret.symlink_to(images)
    resume('--lr', 0.01, '--on-nonfinite', 'skip')
    resume('--lr', 0.01, '--on-nonfinite', 'skip', '--stop-epoch', 3, '--data-dir', secret)
    main_of('report')([str(resume.folder), '--out', str(tmp_path / 'page.html')])
    page = (tmp_path / 'page.html').read_text()
    changed = '--lr 0.003125 -&gt; 0.01, --on-nonfinite stop -&gt; skip'
    assert sorted(re.findall('<p>Other options (.*).</p>', page)) == sorted(
        [
            f'from epoch 1 on: {changed}; not exact from there on',
            f'from epoch 2 on: --data-dir {images} -&gt; {secret}',
        ]
    )
    with bundled_run(resume.folder, 'user/name') as bundle:
        card = (bundle / 'README.md').read_text()
        assert not (bundle / 'parts.json').exists()
    assert 'Other options from epoch 1 on: `--lr 0.003125 -> 0.01, --on-nonfinite stop -> skip`; not exact' in card
    assert f'Other options from epoch 2 on: `--data-dir {images.name} -> secret`.' in card
    assert 'All options of the last part are in `args.yaml`' in card


def test_a_weight_that_follows_goes_by_epochs_and_is_measured_anew_of_another_loss(images, tmp_path, caplog):
    argv = ['--data-dir', images, *SMALL, '--epochs', 4, '--output', tmp_path, '--experiment', 'run', '--resume']
    argv += ['auto', '--hnc-weight', 'auto:0.5', '--warmup-epochs', 1]
    train(*argv, '--hnc', 'mse', '--stop-epoch', 1)
    train(*argv, '--hnc', 'mse', '--stop-epoch', 2, '-b', 32)  # fewer batches
    train(*argv, '--hnc', 'mse', '--stop-epoch', 3)
    train(*argv, '--hnc', 'kd', '--loss', 'ce', '--smoothing', 0.1)
    states = re.findall(r'Weight of HNC: (\S+), (\w+)', caplog.text)
    assert [state for _, state in states] == ['following', 'settled', 'settled', 'settled']
    weights = [weight for weight, _ in states]
    assert weights[0] != weights[1] == weights[2] != weights[3]
    assert caplog.text.count('--hnc-weight auto:0.5 is measured anew: --hnc mse -> kd.') == 1


def test_a_settled_weight_follows_where_it_is_to_follow(images, tmp_path, caplog):
    argv = ['--data-dir', images, *SMALL, '--epochs', 3, '--output', tmp_path, '--experiment', 'run', '--resume']
    argv += ['auto', '--warmup-epochs', 0, '--hnc', 'mse', '--hnc-weight']
    for weight, end in (('auto:0.5', 1), ('follow:0.5', 2), ('auto:0.5', 3)):
        train(*argv, weight, '--stop-epoch', end)
    states = re.findall(r'Weight of HNC: (\S+), (\w+)', caplog.text)
    assert [state for _, state in states] == ['settled', 'following', 'settled']
    assert len({weight for weight, _ in states}) == 3


def test_a_weight_is_measured_for_an_epoch_once_hnc_joins(images, tmp_path, caplog):
    argv = ['--data-dir', images, *SMALL, '--output', tmp_path, '--experiment', 'run', '--warmup-epochs', 0]
    train(*argv, '--epochs', 3, '--hnc', 'mse', '--hnc-weight', 'auto', '--hnc-start-epoch', 1)
    assert re.findall(r'Weight of HNC: 0, (\w+)', caplog.text) == ['following']
    assert re.findall(r'Weight of HNC: 0\.\d+, (\w+)', caplog.text) == ['settled', 'settled']


def test_without_a_schedule_there_is_no_warmup(images, tmp_path, caplog):
    argv = ['--data-dir', images, *SMALL, '--output', tmp_path, '--experiment', 'run', '--sched', 'none']
    train(*argv, '--epochs', 1, '--hnc', 'mse', '--hnc-weight', 'auto')
    assert ', settled.' in caplog.text
