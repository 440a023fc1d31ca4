"""What timm's own train.py does with its options, where that is easily missed."""

import json
import logging

import pytest
import yaml
from running import SMALL, checkpoints, summary, train

from timm_hnc.errors import UsageError
from timm_hnc.training.former_flags import FORMER_FLAGS
from timm_hnc.training.options import build_parser, parse_train_options

HERE = [*SMALL, '--cam-images', '0']


def test_a_milestone_is_evaluated_and_kept_whatever_the_interval(images, tmp_path):
    folder = train(
        *('--data-dir', images, *HERE, '--epochs', 6, '--stop-epoch', 5, '--val-interval', 3, '--save-epochs', 1, 6),
        *('--checkpoint-hist', 1, '--output', tmp_path, '--experiment', 'run'),
    )
    assert [row['epoch'] for row in summary(folder)] == [0, 2, 4]
    assert {'epoch-0', 'epoch-4'} <= checkpoints(folder)
    assert json.loads((folder / 'last' / 'state.json').read_text())['milestones'] == ['epoch-0']


@pytest.mark.parametrize(
    ('command', 'epochs'),
    [
        ('--epochs 2', 2),
        ('--epochs 2 --cooldown-epochs 3', 5),
        ('--epochs 4 --warmup-epochs 2 --warmup-prefix', 6),
        ('--epochs 2 --lr-cycle-limit 2', 4),
        ('--epochs 2 --sched step --decay-epochs 1', 2),
        ('--epochs 2 --sched none', 2),
        ('--epochs 2 --warmup-epochs 0 --sched wsd --decay-epochs .2 --sched-on-updates', 2),
    ],
)
def test_a_run_cannot_stop_behind_the_end_of_its_schedule(command, epochs):
    args, _ = parse_train_options([*command.split(), '--stop-epoch', str(epochs)])
    assert args.stop_epoch == epochs
    with pytest.raises(
        UsageError, match=rf'^--stop-epoch {epochs + 1}: the schedule has {epochs} epochs \(see --epoch'
    ):
        parse_train_options([*command.split(), '--stop-epoch', str(epochs + 1)])


def write_config(folder, values):
    (folder / 'args.yaml').write_text(yaml.safe_dump(values))
    return str(folder / 'args.yaml')


def test_options_of_other_versions_of_timm_are_passed_over_with_one_warning(tmp_path, caplog):
    values = vars(build_parser().parse_args(['/data', '--lr', '0.1']))
    path = write_config(tmp_path, {**values, **dict.fromkeys(FORMER_FLAGS, True), 'amp_impl': 'native'})
    args, explicit = parse_train_options(['-c', path])
    assert (args.lr, args.data_dir) == (0.1, '/data')
    assert not FORMER_FLAGS.keys() & (vars(args).keys() | explicit)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert message.startswith(f'{path}: options of other versions of timm are passed over: ')
    assert '\n' not in message
    for key, instead in FORMER_FLAGS.items():
        assert f'{key} (now {instead})' in message


def test_only_the_first_process_warns(tmp_path, caplog, monkeypatch):
    path = write_config(tmp_path, {'amp_impl': 'native'})
    monkeypatch.setenv('RANK', '1')
    parse_train_options(['-c', path])
    assert not caplog.records


def test_a_misspelt_key_is_an_error_also_beside_one_of_another_version(tmp_path):
    path = write_config(tmp_path, {'amp_impl': 'native', 'hnc_wieght': 0.1})
    with pytest.raises(UsageError, match=r"unknown key 'hnc_wieght', did you mean 'hnc_weight'\?$"):
        parse_train_options(['-c', path])


def test_former_flags_are_none_of_today_and_name_some_of_today():
    options = {option for action in build_parser()._actions for option in action.option_strings}
    assert not FORMER_FLAGS.keys() & vars(build_parser().parse_args([])).keys()
    named = [word for instead in FORMER_FLAGS.values() for word in instead.split() if word.startswith('--')]
    assert named
    assert set(named) <= options
