"""What timm's own train.py does with its options, where that is easily missed."""

import json

import pytest
from running import SMALL, checkpoints, summary, train

from timm_hnc.errors import UsageError
from timm_hnc.training.options import parse_train_options

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
